"""UniPC: a step of DPM-Solver++, mended by the prediction at its end (Zhao et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from math import expm1
from typing import TYPE_CHECKING, Literal

from vdiff.config import free_to_change
from vdiff.samplers.dpmpp import Dpmpp
from vdiff.samplers.grids import Grid
from vdiff.samplers.sampler import Point, Predict, Sampler
from vdiff.samplers.solver import SolverSection, log_rho, moved_towards

if TYPE_CHECKING:
    from torch import Tensor

    from vdiff.diffusion.schedule import Schedule


class UniPcSection(SolverSection):
    """UniPC of order 2 (bh2): one call a step and the best in few steps, for undistilled models."""

    kind: Literal["unipc"] = free_to_change("unipc")
    """Which sampler."""

    def build(self) -> Sampler:
        return UniPc(self.grid, self.clip)


class UniPc(Dpmpp):
    """The predictor is 2M of DPM-Solver++. What the network says where it leads mends the way
    there, without another call: that step is taken again with a D that knows its end.

    The first step and the one to t = 0 have D = x.
    """

    def __init__(self, grid: Grid = "uniform", clip: float | None = None) -> None:
        super().__init__(2, grid, clip)
        # the corrector looks one point further back than the predictor
        self.num_remembered = 2

    def __str__(self) -> str:
        return f"unipc {self.options()}"

    def corrected(self, here: Point, before: Sequence[Point], predict: Predict) -> Tensor:
        if not before:
            return here.z
        start = before[-1]
        x, x_new = start.prediction.x, here.prediction.x
        if len(before) == 1:
            mended = x + (x_new - x) / 2
        else:
            ahead, of_earlier, of_new = _weights(before[-2].t, start.t, here.t, predict.schedule)
            earlier = before[-2].prediction.x
            mended = x + of_earlier / ahead * (earlier - x) + of_new * (x_new - x)
        return moved_towards(mended, start.z, start.t, here.t, predict.schedule)


def _weights(earlier: float, t: float, s: float, schedule: Schedule) -> tuple[float, float, float]:
    """(r, rho_1, rho_2): where the earlier point lies, in lengths of the step from t to s, and the
    weights of the corrector bh2.

    rho_1 + rho_2 = b_1 and r rho_1 + rho_2 = b_2, with B = e^-h - 1, p_1 = -B / h - 1,
    p_2 = -p_1 / h - 1/2, b_1 = p_1 / B, b_2 = 2 p_2 / B.
    """
    now = log_rho(schedule, t)
    h = log_rho(schedule, s) - now
    r = (log_rho(schedule, earlier) - now) / h
    growth = expm1(-h)
    p1 = -growth / h - 1
    p2 = -p1 / h - 0.5
    b1 = p1 / growth
    b2 = 2 * p2 / growth
    of_earlier = (b1 - b2) / (1 - r)
    return r, of_earlier, b1 - of_earlier
