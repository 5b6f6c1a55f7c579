"""A schedule whose angle grows evenly: alpha = cos(a t), sigma = sin(a t),
a a little less than pi / 2.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from vdiff.config import shapes_weights
from vdiff.diffusion.schedule import Schedule, ScheduleSection, tabled_betas


class StraightSection(ScheduleSection):
    """The angle between signal and noise grows evenly."""

    kind: Literal["straight"] = shapes_weights("straight")
    """Which schedule."""
    grid: int = shapes_weights(1024, ge=2, le=1 << 16)
    """Base steps T that the network's time input counts in."""

    def build(self) -> Schedule:
        return Straight(self.grid)


class Straight(Schedule):
    """The angle goes from 0 to 0.99 pi / 2."""

    def powers(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = t * (0.99 * math.pi / 2)
        return torch.cos(angle) ** 2, torch.sin(angle) ** 2

    def diffusers_config(self) -> dict[str, Any]:
        return {"beta_schedule": "linear", "trained_betas": tabled_betas(self).tolist()}
