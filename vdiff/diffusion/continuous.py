"""What a recipe says of the noise schedules of models that were trained with continuous noise:
EDM's range of noise levels, and the variance-preserving SDE; `schedule` has the formulas.
"""

from collections.abc import Sequence
from math import atan, exp, expm1, sqrt, tan
from typing import TYPE_CHECKING, Literal, Self

from pydantic import model_validator

from vdiff.config import shapes_weights
from vdiff.diffusion.section import Scales, ScheduleSection

if TYPE_CHECKING:
    from vdiff.diffusion.schedule import Schedule


class EdmScheduleSection(ScheduleSection):
    """A range of noise levels sigma / alpha, of which the network is told the logarithm;
    for networks in EDM's frame.
    """

    kind: Literal["edm"] = shapes_weights("edm")
    """Which schedule."""
    grid: int = shapes_weights(1024, ge=1, le=1 << 16)
    """Base steps T that `times: grid` of an objective counts in; no network is told of them."""
    sigma_min: float = shapes_weights(0.002, ge=1e-8, le=1e8)
    """sigma / alpha just after t = 0: the least noise that the network knows."""
    sigma_max: float = shapes_weights(80.0, ge=1e-8, le=1e8)
    """sigma / alpha at t = 1: the most noise that the network knows."""
    sigma_data: float = shapes_weights(0.5, ge=1e-4, le=1e4)
    """Deviation of the pictures: about half of the times have less noise than this. sigma / alpha
    is this times the tangent of an angle that rises evenly with t.
    """

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if not self.sigma_min < self.sigma_max:
            raise ValueError("`sigma_min` must be smaller than `sigma_max`")
        return self

    def build(self) -> "Schedule":
        from vdiff.diffusion.schedule import EdmSchedule

        return EdmSchedule(self.grid, self.sigma_min, self.sigma_max, self.sigma_data)

    def scales_at(self, times: Sequence[float]) -> list[Scales]:
        start = atan(self.sigma_min / self.sigma_data)
        slope = atan(self.sigma_max / self.sigma_data) - start
        scales = []
        for t in times:
            level = self.sigma_data * tan(slope * t + start)
            alpha = 1 / sqrt(1 + level**2)
            scales.append((1.0, 0.0) if t == 0 else (alpha, level * alpha))
        return scales


class VpScheduleSection(ScheduleSection):
    """The variance-preserving SDE with its rising rate of noise (Song et al. 2021)."""

    kind: Literal["vp"] = shapes_weights("vp")
    """Which schedule."""
    grid: int = shapes_weights(1000, ge=2, le=1 << 16)
    """The network is told (T - 1) t."""
    beta_min: float = shapes_weights(0.1, gt=0, le=100)
    """Rate of noise at t = 0."""
    beta_d: float = shapes_weights(19.9, ge=0, le=200)
    """By how much the rate rises up to t = 1."""

    def build(self) -> "Schedule":
        from vdiff.diffusion.schedule import VpSchedule

        return VpSchedule(self.grid, self.beta_min, self.beta_d)

    def scales_at(self, times: Sequence[float]) -> list[Scales]:
        scales = []
        for t in times:
            spent = self.beta_d * t**2 / 2 + self.beta_min * t
            scales.append((exp(-spent / 2), sqrt(-expm1(-spent))))
        return scales
