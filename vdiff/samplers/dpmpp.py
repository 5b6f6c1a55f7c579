"""DPM-Solver++: each step uses the pictures that were predicted before, too (Lu et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from math import expm1
from typing import TYPE_CHECKING, Literal

from vdiff.config import free_to_change
from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.samplers.grids import Grid
from vdiff.samplers.sampler import Point, Predict, Sampler, Watch
from vdiff.samplers.solver import Solver, SolverSection, log_rho, moved_towards

if TYPE_CHECKING:
    from torch import Tensor

    from vdiff.diffusion.denoiser import Denoiser
    from vdiff.diffusion.schedule import Schedule
    from vdiff.randomness import Randomness


FEWEST_OF_THIRD = 11
"""Steps from which on the third order is used."""


class DpmppSection(SolverSection):
    """DPM-Solver++ with a memory (2M, 3M): one call a step, for undistilled models."""

    kind: Literal["dpmpp"] = free_to_change("dpmpp")
    """Which sampler."""
    order: Literal[2, 3] = free_to_change(2)
    """Order of the steps: 2, or 3 where there are more than 10 of them."""

    def build(self) -> Sampler:
        return Dpmpp(self.order, self.grid, self.clip)


class Dpmpp(Solver):
    """The DDIM step with D in place of x; the first step and the one to t = 0 have D = x.

    2M: D = x + h / (2 h') (x - x'), the step before having had the length h' in log rho.
    3M: its third order, equation of `D_3`; its second step is 2M's, and so are all in fewer than
    `FEWEST_OF_THIRD` steps, where it is no better.
    """

    def __init__(
        self, order: Literal[2, 3] = 2, grid: Grid = "uniform", clip: float | None = None
    ) -> None:
        super().__init__(grid, clip)
        self.order = order
        self.num_remembered = order - 1

    def __str__(self) -> str:
        return f"dpmpp order={self.order} {self.options()}"

    def __call__(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        num_steps: int,
        rng: Randomness,
        condition: Condition = NOTHING,
        model_steps: int | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        if self.order == 3 and num_steps < FEWEST_OF_THIRD:
            second = Dpmpp(2, self.grid, self.clip)
            return second(denoiser, noise, num_steps, rng, condition, model_steps, watch)
        return super().__call__(denoiser, noise, num_steps, rng, condition, model_steps, watch)

    def step(
        self, here: Point, s: float, before: Sequence[Point], predict: Predict, rng: Randomness
    ) -> Tensor:
        x = here.prediction.x
        if s == 0:
            return x
        if self.order == 3 and len(before) >= 2:
            x = third_order(here, s, before, predict.schedule)
        elif before:
            x = second_order(here, s, before[-1], predict.schedule)
        return moved_towards(x, here.z, here.t, s, predict.schedule)


def second_order(here: Point, s: float, before: Point, schedule: Schedule) -> Tensor:
    """D = x + h / (2 h') (x - x'): 2M, and the predictor of UniPC's second order."""
    now = log_rho(schedule, here.t)
    ahead = log_rho(schedule, s) - now
    # infinite where the point before had nothing of the picture: then D = x
    behind = now - log_rho(schedule, before.t)
    x: Tensor = here.prediction.x
    return x + ahead / (2 * behind) * (x - before.prediction.x)


def third_order(here: Point, s: float, before: Sequence[Point], schedule: Schedule) -> Tensor:
    """D_3 = x + a h x' + b h^2 x'' / 2: by the parabola in log rho through three pictures.

    With p_1 = e^-h - 1, p_2 = p_1 / h + 1 and p_3 = p_2 / h - 1/2:  a = -p_2 / p_1,  b = p_3 / p_1.
    The third order wants x'' and not half of it. This is what its authors and diffusers run, and
    it is the better of the two in few steps: `docs/solvers.md` has the numbers.
    """
    now, last, first = (log_rho(schedule, point.t) for point in (here, before[-1], before[-2]))
    h = log_rho(schedule, s) - now
    r0 = (now - last) / h
    r1 = (last - first) / h
    x, x_last, x_first = (point.prediction.x for point in (here, before[-1], before[-2]))
    near = (x - x_last) / r0
    far = (x_last - x_first) / r1
    slope = near + r0 / (r0 + r1) * (near - far)
    bend = (near - far) / (r0 + r1)
    p1 = expm1(-h)
    p2 = p1 / h + 1
    p3 = p2 / h - 0.5
    return x - p2 / p1 * slope + p3 / p1 * bend
