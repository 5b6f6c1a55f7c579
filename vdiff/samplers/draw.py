"""Pictures from seeds: each depends on its own seed alone,
and on the batch size by rounding only.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.diffusion.denoiser import Denoiser
from vdiff.randomness import Randomness, exact
from vdiff.samplers.recorded import drawn
from vdiff.samplers.sampler import Sampler, Watch


class Replays(Protocol):
    """What replays the network's calls, such as recorded CUDA graphs."""

    def of(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser with such calls, or as it is."""


@torch.no_grad()
def draw(
    denoiser: Denoiser,
    sampler: Sampler,
    seeds: Sequence[int],
    shape: tuple[int, int, int],
    num_steps: int,
    *,
    model_steps: int | None = None,
    condition: Condition = NOTHING,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    graphs: Replays | None = None,
    watch: Watch | None = None,
    on_batch: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Images in [-1, 1] up to what the network overshoots:
    float32 [len(seeds), C, H, W] on the CPU.

    Another batch size may change the last digits of a float32: its sums are taken in another order.
    condition: of all pictures.   graphs: replay the network's calls.
    watch: sees the steps of every batch.
    on_batch: told how many pictures are done.
    """
    denoiser = graphs.of(denoiser) if graphs is not None else denoiser
    parts = []
    for start in range(0, len(seeds), batch_size):
        chosen = torch.tensor(
            seeds[start : start + batch_size], dtype=torch.int64, device=exact(device)
        )
        rng = Randomness.for_images(chosen)
        told = condition.of(slice(start, start + batch_size)).to(device)
        noise = rng.normal(*shape).to(device)

        def by_steps(noise: Tensor, told: Condition, rng: Randomness = rng) -> Tensor:
            return sampler(denoiser, noise, num_steps, rng, told, model_steps, watch)

        if watch is None:
            images = drawn(sampler, denoiser, noise, told, num_steps, model_steps, by_steps)
        else:
            images = by_steps(noise, told)
        parts.append(images.float().cpu())
        on_batch(min(start + batch_size, len(seeds)))
    return torch.cat(parts) if parts else torch.zeros(0, *shape)
