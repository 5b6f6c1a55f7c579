"""The one hand that draws with a model folder:
in its own steps, by DDIM and in turn, unless told otherwise.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vdiff.diffusion.condition import Condition, of_seeds
from vdiff.drawing import asked
from vdiff.drawing.guidance import UNASKED, Guidance, guided
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
    guidance: Guidance = UNASKED,
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
    guidance: with its guide loaded, if it has one.   Errors: UsageError for one that the model
    cannot be given.
    The rest is as in `samplers.draw.draw`.
    """
    card = model.card
    if sampler is None:
        section = sampler_for(None, card.sampler, card.name, is_solvable=card.is_solvable)
        sampler = section.build()
    asked.check_sampler(card, sampler)
    if condition is None:
        condition = of_seeds(seeds, card.num_classes)
    denoiser, condition = guided(card, model.denoiser, guidance, condition, len(seeds))
    return draw(
        denoiser,
        sampler,
        seeds,
        model.codec.shape(card.shape),
        num_steps or card.num_steps,
        model_steps=card.times,
        condition=condition,
        batch_size=batch_size,
        device=device,
        graphs=graphs,
        watch=watch,
        on_batch=on_batch,
    )
