"""iPNDM: Adams-Bashforth of fourth order along the predicted noise (Liu et al. 2022; Zhang & Chen
2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from vdiff.config import free_to_change
from vdiff.samplers.grids import Grid
from vdiff.samplers.sampler import Point, Predict, Sampler, scalars
from vdiff.samplers.solver import Solver, SolverSection

if TYPE_CHECKING:
    from torch import Tensor

    from vdiff.randomness import Randomness

COEFFICIENTS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Of eps and the eps before it, by how many there are; those of steps of equal length."""


class IpndmSection(SolverSection):
    """iPNDM of order 4: one call a step, for undistilled models."""

    kind: Literal["ipndm"] = free_to_change("ipndm")
    """Which sampler."""
    grid: Grid = free_to_change("karras")
    """Where the steps are: as Karras et al. 2022 have them (karras), evenly in t (uniform), or in
    the logarithm of signal to noise (logsnr).
    """

    def build(self) -> Sampler:
        return Ipndm(self.grid, self.clip)


class Ipndm(Solver):
    """z_s / alpha_s = z_t / alpha_t + (e_s - e_t) (c_0 eps + c_1 eps' + ...),  e = sigma / alpha.

    Of as high an order as there are points, 4 at most. The step to t = 0 is DDIM's.
    """

    num_remembered = 3

    def __str__(self) -> str:
        return f"ipndm {self.options()}"

    def step(
        self, here: Point, s: float, before: Sequence[Point], predict: Predict, rng: Randomness
    ) -> Tensor:
        x, eps = here.prediction.x, here.prediction.eps
        if s == 0:
            return x
        alpha_s, sigma_s = scalars(predict.schedule, s)
        z = alpha_s * x + sigma_s * eps
        if not before:
            return z
        points = (here, *reversed(before))
        mixed = sum(
            share * point.prediction.eps
            for share, point in zip(COEFFICIENTS[len(before)], points, strict=True)
        )
        # from DDIM's step: so alpha_t divides only the difference
        alpha_t, sigma_t = scalars(predict.schedule, here.t)
        moved: Tensor = z + (sigma_s - alpha_s * sigma_t / alpha_t) * (mixed - eps)
        return moved
