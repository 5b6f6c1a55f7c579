"""What a schedule cannot serve: eps where no signal is left,
and students between whose steps nothing changes.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import Protocol

from vdiff.choices import Predicts

LEAST_ALPHA = 2.0**-50
"""Of a network that predicts eps: x = (z - sigma eps) / alpha,
whose square must be a finite float32.
"""

_ALL = 1 << 16
"""Of more times than these, only the first and the last are looked at:
between its ends a schedule is smooth.
"""


class HasScales(Protocol):
    """A schedule, or what a recipe says of one: that can often tell without torch."""

    def scales_at(self, times: Sequence[float], /) -> Sequence[tuple[float, float]]:
        """(alpha, sigma) at each of the times in [0, 1]."""
        ...


def check_prediction(schedule: HasScales, predicts: Predicts) -> None:
    """ValueError for a network that could not tell the picture at the end of the schedule."""
    if predicts != "eps":
        return
    [(alpha, _)] = schedule.scales_at([1.0])
    if not alpha >= LEAST_ALPHA:
        left = (
            "no signal is left"
            if alpha == 0
            else f"hardly any signal is left (alpha is {alpha:.1g})"
        )
        raise ValueError(
            f"`predicts: eps` cannot tell the picture at the end of the schedule, where {left}: "
            "x = (z - sigma eps) / alpha; `predicts: v` and `predicts: x` can"
        )


def check_chain(schedule: HasScales, steps: Sequence[int]) -> None:
    """ValueError unless all targets of a chain are finite.

    steps: of the base and of every student; each divides the one before, so the times of the later
    ones are among those of the first student.
    """
    [(_, sigma)] = schedule.scales_at([1 / steps[0]])
    if not sigma > 0:
        raise ValueError(
            f"at the last of {steps[0]:,} steps the schedule has no noise; take fewer steps"
        )
    if len(steps) == 1:
        return
    flat = next(_flat_times(schedule, steps[1]), None)
    if flat is None:
        return
    raise ValueError(
        f"a student of {steps[1]:,} steps would have no target: the schedule does not change "
        f"between its times {flat - 1 / steps[1]:.7g} and {flat:.7g}; with this schedule and its "
        f"`grid`, the first student may have at most {_most_steps(schedule, steps[1]):,} steps"
    )


def _most_steps(schedule: HasScales, too_many: int) -> int:
    """The largest number of steps, below one that is too large,
    at which every step changes something.
    """
    most = 1
    while too_many - most > 1:
        middle = (most + too_many) // 2
        if next(_flat_times(schedule, middle), None) is None:
            most = middle
        else:
            too_many = middle
    return most


def _flat_times(schedule: HasScales, num_steps: int) -> Iterator[float]:
    """The times of a student at which rho, which its targets are weighted by,
    is not below rho at the time before.
    """
    times = _times(num_steps)
    steps = zip(times[1:], pairwise(schedule.scales_at(times)), strict=True)
    for time, ((alpha, sigma), (alpha_after, sigma_after)) in steps:
        below = sigma_after * alpha
        is_falling = below != 0 and alpha_after * sigma / below < 1
        if not is_falling:
            yield time


def _times(num_steps: int) -> list[float]:
    """The times i / N of a student, in rising order:
    all, or the first and the last of very many.
    """
    num_first = min(num_steps, _ALL // 2)
    start_of_last = max(num_steps - _ALL // 2, num_first) + 1
    numbers = chain(range(1, num_first + 1), range(start_of_last, num_steps + 1))
    return [number / num_steps for number in numbers]
