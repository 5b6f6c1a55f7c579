"""The numbers of sampler steps along a chain, and what would mend factors that do not
lead where they should.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise, repeat
from math import prod

Factor = int | tuple[int, ...]
"""One for all stages, or one per stage."""


def step_counts(start: int, end: int, factor: Factor) -> tuple[int, ...]:
    """Steps of the base and of every student, as in (1024, 512, ..., 4);
    ValueError that says what would lead there.
    """
    if end > start:
        raise ValueError(
            f"`end_steps` {end} is more than `start_steps` {start}: "
            "students have fewer steps, not more"
        )
    found, trouble = _followed(start, end, factor)
    if trouble:
        raise ValueError(
            f"`factor` {_written(factor)} {trouble}: {_advice(start, end, factor, found)}"
        )
    return tuple(found)


class StageStepsError(ValueError):
    """A number of steps that a list of stages cannot have.

    place: of the stage in the list, from 0.
    """

    def __init__(self, place: int, problem: str) -> None:
        super().__init__(problem)
        self.place = place


def listed_counts(start: int, wanted: Sequence[tuple[int | None, int | None]]) -> tuple[int, ...]:
    """Steps of the base and of every student, as a list of stages asks for them.

    wanted: of each stage its number of steps, or the factor by which it divides that of its
    teacher; the other is None.
    Errors: StageStepsError.
    """
    found = [start]
    for place, (steps, factor) in enumerate(wanted):
        before = found[-1]
        if (steps is None) == (factor is None):
            said = "neither" if steps is None else "both"
            raise StageStepsError(
                place, f"a stage says either its `steps` or its `factor`, this one says {said}"
            )
        if factor is not None:
            if before % factor:
                raise StageStepsError(
                    place, f"`factor` {factor} does not divide the {before} steps of its teacher"
                )
            steps = before // factor
        assert steps is not None
        if steps > before:
            problem = (
                f"its teacher has {before} steps and it would have {steps}: "
                "students have no more than teachers"
            )
            raise StageStepsError(place, problem)
        if before % steps:
            raise StageStepsError(place, f"{steps} steps do not divide the {before} of its teacher")
        found.append(steps)
    return tuple(found)


def _followed(start: int, end: int, factor: Factor) -> tuple[list[int], str]:
    """The numbers as far as the factors lead to them, and why they do not lead to the end;
    nothing where they do.
    """
    found = [start]
    factors: Iterable[int] = repeat(factor) if isinstance(factor, int) else factor
    for each in factors:
        if found[-1] <= end:
            break
        if each < 2:
            return found, f"makes nothing shorter ({each} is less than 2)"
        if found[-1] % each and len(found) > 1:
            return found, f"leads from {start} steps to {found[-1]}, which {each} does not divide"
        if found[-1] % each:
            if isinstance(factor, tuple):
                return found, f"begins with {each}, which does not divide {start} steps"
            return found, f"does not divide {start} steps"
        found.append(found[-1] // each)
    if found[-1] < end:
        return found, f"leads from {found[-2]} steps to {found[-1]}, past `end_steps` {end}"
    if found[-1] > end:
        return found, f"leads from {start} steps to {found[-1]}, and `end_steps` is {end}"
    if isinstance(factor, tuple) and len(found) <= len(factor):
        return found, f"is at `end_steps` {end} before its last number"
    return found, ""


def _advice(start: int, end: int, factor: Factor, found: Sequence[int]) -> str:
    """What leads to the end, and where the factors lead as they are.

    found: the numbers up to where trouble began.
    """
    if end == start:
        return "leave it out, there is no stage between them"
    if start % end == 0:
        advice = f"`factor: {_written(_leading(end, found))}` leads to {end}"
    else:
        advice = f"no factors lead from {start} steps to {end}, which does not divide it"
    ends = _ends(start, end, factor, found)
    if ends:
        others = " or ".join(map(str, ends))
        advice += f"; with `factor` as it is, `end_steps` may be {others}"
    return advice


def _ends(start: int, end: int, factor: Factor, found: Sequence[int]) -> list[int]:
    """Where the factors lead: their end, or with one for all stages the numbers of steps
    before and after the one that is wanted.
    """
    if isinstance(factor, tuple):
        if _all_divide(start, factor):
            return [start // prod(factor)]
        return []
    above = [number for number in found[1:] if number > end]
    below = [number for number in found if number < end]
    return above[-1:] + below[:1]


def _all_divide(start: int, factors: Sequence[int]) -> bool:
    return min(factors, default=0) > 1 and start % prod(factors) == 0


def _leading(end: int, found: Sequence[int]) -> Factor:
    """Factors to the end, which divides the first number:
    as many of the given ones as lead towards it, then others.
    """
    kept = [number for number in found if number % end == 0]
    factors = (
        *(before // after for before, after in pairwise(kept)),
        *_prime_factors(kept[-1] // end),
    )
    if len(set(factors)) == 1:
        return factors[0]
    return factors


def _prime_factors(number: int) -> list[int]:
    """In rising order; what only large ones would divide stays whole."""
    found = []
    for divisor in range(2, 1000):
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
    if number > 1:
        found.append(number)
    return found


def _written(factor: Factor) -> str:
    if isinstance(factor, tuple):
        return str(list(factor))
    return str(factor)
