"""At which times a solver stands: evenly in t, in the logarithm of rho, or as Karras et al. do."""

from __future__ import annotations

from math import exp, log
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vdiff.diffusion.schedule import Schedule

Grid = Literal["uniform", "logsnr", "karras"]
"""uniform: the times i / N.

logsnr: log rho rises evenly from sigma / alpha = 80 to its value at t = 1/64, then 0. Ending far
below the noise that the data's smallest parts drown in would waste calls. More than 64 points end
at t = 1 / N.

karras: the noise levels of Karras et al. 2022 with their exponent 7, from sigma / alpha = 80 to
0.002, then 0; no level is below that of the schedule's own grid, which the network has seen.

The last two begin where sigma / alpha is 80, not at t = 1, and take the noise for z there: a
schedule such as the cosine one ends at log rho = -9.9, and steps in log rho from there are so long
that solvers with a memory go astray. What is left of the picture there, alpha = 0.0125, is the
error of that.
"""

MOST_NOISE = 80.0
"""sigma / alpha at the first point of `logsnr` and `karras`, or the schedule's own where less."""

LEAST_NOISE = 0.002
"""sigma / alpha at the last point of `karras` before t = 0."""

EXPONENT = 7.0
"""Of `karras`."""

FEW = 64
"""1 / the last time of `logsnr` before t = 0, of so many points at most."""


def grid_times(grid: Grid, num_steps: int, schedule: Schedule) -> list[float]:
    """The times t_N > ... > t_0 = 0 of N = num_steps steps; t_N is 1, or a time with so much noise
    that nothing else is seen.
    """
    from vdiff.diffusion.schedule import sampling_times
    from vdiff.samplers.sampler import scalars

    if grid == "uniform":
        return sampling_times(num_steps)

    def noise_at(t: float) -> float:
        alpha, sigma = scalars(schedule, t)
        if alpha == 0:
            return float("inf")
        return sigma / alpha

    most = min(noise_at(1.0), MOST_NOISE)
    shares = [place / max(num_steps - 1, 1) for place in range(num_steps)]
    if grid == "logsnr":
        ends = log(most), log(noise_at(1 / max(FEW, num_steps)))
        levels = [exp(_between(*ends, share)) for share in shares]
    else:
        least = max(LEAST_NOISE, noise_at(1 / max(schedule.grid, FEW, num_steps)))
        ends = most ** (1 / EXPONENT), least ** (1 / EXPONENT)
        levels = [_between(*ends, share) ** EXPONENT for share in shares]
    return [*(schedule.inverse(1 / level) for level in levels), 0.0]


def _between(first: float, last: float, share: float) -> float:
    return first + share * (last - first)
