"""What a schedule cannot serve: eps where no signal is left, and students between whose steps nothing changes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vdiff.diffusion.prediction import Predicts
from vdiff.diffusion.schedule import Schedule

LEAST_ALPHA = 2.0**-50
"""Of a network that predicts eps: x = (z - sigma eps) / alpha, whose square must be a finite float32."""

_ALL = 1 << 16
"""Of more times than these, only the first and the last are looked at: between its ends a schedule is smooth."""


def check_prediction(schedule: Schedule, predicts: Predicts) -> None:
    """ValueError for a network that could not tell the picture at the end of the schedule."""
    if predicts != "eps":
        return
    alpha = float(schedule.alpha_sigma(torch.ones(()))[0])
    if not alpha >= LEAST_ALPHA:
        left = "no signal is left" if alpha == 0 else f"hardly any signal is left (alpha is {alpha:.1g})"
        raise ValueError(
            f"`predicts: eps` cannot tell the picture at the end of the schedule, where {left}: "
            "x = (z - sigma eps) / alpha; `predicts: v` and `predicts: x` can"
        )


def check_chain(schedule: Schedule, steps: Sequence[int]) -> None:
    """ValueError unless all targets of a chain are finite.

    steps: of the base and of every student; each divides the one before, so the times of the later ones are among those
    of the first student.
    """
    sigma = float(schedule.alpha_sigma(torch.tensor(1 / steps[0], dtype=torch.float64))[1])
    if not sigma > 0:
        raise ValueError(f"at the last of {steps[0]:,} steps the schedule has no noise; take fewer steps")
    if len(steps) == 1 or _changes(schedule, steps[1]):
        return
    times = _times(steps[1])
    flat = float(times[1:][~(_ratios(schedule, times) < 1)][0])
    raise ValueError(
        f"a student of {steps[1]:,} steps would have no target: the schedule does not change between its times "
        f"{flat - 1 / steps[1]:.7g} and {flat:.7g}; with this schedule and its `grid`, the first student may have at "
        f"most {_most_steps(schedule, steps[1]):,} steps"
    )


def _most_steps(schedule: Schedule, too_many: int) -> int:
    """The largest number of steps, below one that is too large, at which every step changes something."""
    most = 1
    while too_many - most > 1:
        middle = (most + too_many) // 2
        if _changes(schedule, middle):
            most = middle
        else:
            too_many = middle
    return most


def _changes(schedule: Schedule, num_steps: int) -> bool:
    return bool((_ratios(schedule, _times(num_steps)) < 1).all())


def _ratios(schedule: Schedule, times: Tensor) -> Tensor:
    """rho at each time over rho at the time before it, as the target's weights are made of it: float64 [n - 1]."""
    alpha, sigma = schedule.alpha_sigma(times)
    return alpha[1:] * sigma[:-1] / (sigma[1:] * alpha[:-1])


def _times(num_steps: int) -> Tensor:
    """The times i / N of a student, in rising order, float64: all, or the first and the last of very many."""
    first = torch.arange(1, min(num_steps, _ALL // 2) + 1, dtype=torch.float64)
    last = torch.arange(max(num_steps - _ALL // 2, len(first)) + 1, num_steps + 1, dtype=torch.float64)
    return torch.cat([first, last]) / num_steps
