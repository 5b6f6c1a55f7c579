"""Heun's method: the mean of the directions at both ends of a step, for two calls each."""

from __future__ import annotations

from collections.abc import Sequence
from math import atan2
from typing import TYPE_CHECKING, Literal

from vdiff.config import free_to_change
from vdiff.samplers.sampler import Point, Predict, Sampler, scalars
from vdiff.samplers.solver import Solver, SolverSection

if TYPE_CHECKING:
    from torch import Tensor

    from vdiff.randomness import Randomness


class HeunSection(SolverSection):
    """Two calls a step, and one for the last; for many steps of undistilled models: in few calls
    unipc is far ahead.
    """

    kind: Literal["heun"] = free_to_change("heun")
    """Which sampler."""

    def build(self) -> Sampler:
        return Heun(self.grid, self.clip)


class Heun(Solver):
    """z_s = z_t + (phi_s - phi_t) (v + v') / 2,  phi the angle of (alpha, sigma): dz / dphi = v.

    v' is predicted where DDIM's step leads. It stays finite at both ends of any schedule.

    On the karras grid it is the method of Karras et al. 2022 (algorithm 1 without fresh noise):
    z_s = DDIM's step + (alpha_s / 2) (e_s - e_t) (eps' - eps),  e = sigma / alpha. On another grid
    that grows beyond all limits, as e does near t = 1.

    The step to t = 0 is DDIM's, with one call.
    """

    calls_per_step = 2

    def __str__(self) -> str:
        return f"heun {self.options()}"

    def calls(self, num_steps: int) -> int:
        return 2 * num_steps - 1

    def step(
        self, here: Point, s: float, before: Sequence[Point], predict: Predict, rng: Randomness
    ) -> Tensor:
        x, eps, v = here.prediction
        if s == 0:
            return x
        alpha_s, sigma_s = scalars(predict.schedule, s)
        alpha_t, sigma_t = scalars(predict.schedule, here.t)
        z = alpha_s * x + sigma_s * eps
        there = predict(z, s)
        if self.grid == "karras":
            moved: Tensor = z + (sigma_s - alpha_s * sigma_t / alpha_t) / 2 * (there.eps - eps)
            return moved
        turn = atan2(sigma_s, alpha_s) - atan2(sigma_t, alpha_t)
        turned: Tensor = here.z + turn / 2 * (v + there.v)
        return turned
