"""A slow copy of the student that an objective may learn towards, or ask in the student's place."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from vdiff.diffusion.denoiser import Denoiser
from vdiff.networks.sharded import local_shard, scatter_into


class Target:
    """target <- decay target + (1 - decay) student after every update;
    with a decay of 0, the student as it was.

    denoiser: the target, in evaluation mode; nothing is learned through it.
    For an objective's `prepare`, `follow`, `state` and `load`, which pass on what they are given.
    """

    def __init__(self, student: Denoiser, copied: Callable[[], nn.Module], decay: float) -> None:
        self.denoiser: Denoiser = replace(student, network=copied())
        self._decay = decay
        self._student = student.network

    @torch.no_grad()
    def follow(self, is_done: Tensor) -> None:
        """Move towards the student, or stay where the update was skipped;
        buffers are the student's.
        """
        share = is_done * (1 - self._decay)
        mine = self.denoiser.network
        other = self._student
        for weight, towards in zip(mine.parameters(), other.parameters(), strict=True):
            here = local_shard(weight)
            # exact where the share is 0 or 1
            here.lerp_(local_shard(towards), share.to(here.dtype))
        for buffer, current in zip(mine.buffers(), other.buffers(), strict=True):
            buffer.copy_(current)

    def state(self) -> dict[str, Tensor]:
        """The target's weights and buffers, by name."""
        return dict(self.denoiser.network.state_dict())

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take weights back."""
        with torch.no_grad():
            for name, tensor in self.state().items():
                scatter_into(tensor, state[name])
