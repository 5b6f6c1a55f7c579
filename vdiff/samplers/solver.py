"""What solvers have in common: they follow the mean of all pictures that fit, in few long steps."""

from __future__ import annotations

from math import expm1, inf, log
from typing import TYPE_CHECKING

from vdiff.config import free_to_change
from vdiff.samplers.grids import Grid, grid_times
from vdiff.samplers.sampler import Sampler, SamplerSection, scalars

if TYPE_CHECKING:
    from torch import Tensor

    from vdiff.diffusion.schedule import Schedule


class SolverSection(SamplerSection):
    """What all solvers may be told."""

    grid: Grid = free_to_change("uniform")
    """Where the steps are: evenly in t (uniform), in the logarithm of signal to noise (logsnr),
    or as Karras et al. 2022 have them (karras).
    """
    clip: float | None = free_to_change(None, gt=0)
    """Limit of the predicted image; null leaves it free."""


class Solver(Sampler):
    """A sampler of higher order, for models whose x is E[x | z] at every time.

    A distilled student's is not: it is only defined by its own steps.
    """

    needs_denoiser = True

    def __init__(self, grid: Grid = "uniform", clip: float | None = None) -> None:
        self.grid = grid
        self.clip = clip

    def times(
        self, num_steps: int, schedule: Schedule, model_steps: int | None = None
    ) -> list[float]:
        """As of the grid.   ValueError for a model that does not know all times."""
        if model_steps is not None:
            raise ValueError(f"`{self}` is for models that know all times, not {model_steps}")
        return grid_times(self.grid, num_steps, schedule)

    def options(self) -> str:
        """Of all solvers, as their names end."""
        told = f"grid={self.grid}"
        if self.clip is not None:
            told += f" clip_x={self.clip}"
        return told


def log_rho(schedule: Schedule, t: float) -> float:
    """log(alpha / sigma), float64; minus infinity where nothing of the picture is left, infinity
    at t = 0.
    """
    alpha, sigma = scalars(schedule, t)
    if alpha == 0:
        return -inf
    if sigma == 0:
        return inf
    return log(alpha) - log(sigma)


def moved_towards(x: Tensor, z: Tensor, t: float, s: float, schedule: Schedule) -> Tensor:
    """z_s = (sigma_s / sigma_t) z + alpha_s (1 - e^-h) x,  h = log rho_s - log rho_t

    The DDIM step with x for what the network predicts: every solver of the exponential kind is this
    step with an x of its own.

    0 < s < t; alpha_t may be 0.
    """
    sigma_t = scalars(schedule, t)[1]
    alpha_s, sigma_s = scalars(schedule, s)
    h = log_rho(schedule, s) - log_rho(schedule, t)
    return (sigma_s / sigma_t) * z - alpha_s * expm1(-h) * x
