"""The one hand that draws with a model folder:
in its own steps, by DDIM and in turn, unless told otherwise.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vdiff.diffusion.condition import Condition, of_seeds
from vdiff.model_folder.checkpoint import Checkpoint
from vdiff.samplers.advised import sampler_for
from vdiff.samplers.draw import Replays, draw
from vdiff.samplers.sampler import Sampler, Watch


def draw_with(
    model: Checkpoint,
    seeds: Sequence[int],
    num_steps: int | None = None,
    *,
    sampler: Sampler | None = None,
    condition: Condition | None = None,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    graphs: Replays | None = None,
    watch: Watch | None = None,
    on_batch: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """What the network draws, before `model.codec` decodes it:
    float32 [len(seeds), C, H, W] on the CPU.

    num_steps: of the sampler; None for those that the model is meant for.
    sampler: None for the one that it is meant for, which is DDIM unless its card names another.
    condition: of all images; None for the class of each seed.
    The rest is as in `samplers.draw.draw`.
    """
    card = model.card
    if sampler is None:
        sampler = sampler_for(None, card.sampler, card.name).build()
    return draw(
        model.denoiser,
        sampler,
        seeds,
        model.codec.shape(card.shape),
        num_steps or card.num_steps,
        model_steps=card.times,
        condition=of_seeds(seeds, card.num_classes) if condition is None else condition,
        batch_size=batch_size,
        device=device,
        graphs=graphs,
        watch=watch,
        on_batch=on_batch,
    )
