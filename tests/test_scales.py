"""What a recipe's schedule tells of itself without torch is what the
schedule computes with torch.
"""

from collections.abc import Sequence
from typing import Any, Literal

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tests.test_every_schedule import EXPECTED
from tests.test_limits import SCHEDULE, ZERO_SNR
from vdiff.config import shapes_weights
from vdiff.diffusion import SCHEDULES
from vdiff.diffusion.limits import HasScales, check_chain, check_prediction
from vdiff.diffusion.schedule import CosineSchedule, Schedule
from vdiff.diffusion.section import CosineSection, ScheduleSection

TIMES = [
    *(i / 4096 for i in range(4097)),
    *(i / 1000 for i in range(1001)),
    1e-9,
    1 / 3,
    1 - 2**-40,
]
KNOWN = [(kind, options) for kind, choices in EXPECTED.items() for options, _ in choices]


def opened(section: dict[str, Any]) -> ScheduleSection:
    return SCHEDULES.section(section["kind"]).model_validate(section)


def verdict(schedule: HasScales, steps: Sequence[int]) -> str:
    """What is said against a chain of these steps, and against eps."""
    told = []
    for check in (lambda: check_chain(schedule, steps), lambda: check_prediction(schedule, "eps")):
        try:
            check()
        except ValueError as err:
            told.append(str(err))
    return "\n".join(told)


@pytest.mark.parametrize(("kind", "options"), KNOWN, ids=str)
def test_every_schedule_has_the_same_scales_with_and_without_torch(
    kind: str, options: dict[str, Any]
) -> None:
    section = opened({"kind": kind, **options})
    alone, with_torch = section.scales_at(TIMES), section.build().scales_at(TIMES)
    # the betas of a cosine are differences of about 1 / grid: they keep four digits fewer
    close = 1e-11 if options.get("table") == "squaredcos_cap_v2" else 1e-14
    assert [alpha for alpha, _ in alone] == pytest.approx(
        [alpha for alpha, _ in with_torch], rel=close, abs=0
    )
    assert [sigma for _, sigma in alone] == pytest.approx(
        [sigma for _, sigma in with_torch], rel=close, abs=0
    )
    assert alone[0] == with_torch[0] == (1, 0)


def test_all_kinds_of_vdiff_tell_their_scales_themselves() -> None:
    for kind in SCHEDULES:
        assert SCHEDULES.section(kind).scales_at is not ScheduleSection.scales_at


@given(SCHEDULE, st.integers(1, 5000), st.integers(1, 4))
@example({"kind": "cosine", "grid": 32}, 1011, 2)
@example({"kind": "cosine", "grid": 32}, 1012, 2)
@example({"kind": "cosine", "grid": 1}, 64, 2)
@example({"kind": "cosine_logsnr", "smallest": -1e-20, "largest": 1e-20}, 8, 2)
@example(ZERO_SNR, 7, 3)
@example({"kind": "betas", "table": [1 - 1e-16, 0.5]}, 2, 1)
@settings(deadline=None, max_examples=60)
def test_the_same_chains_are_refused_with_the_same_words(
    section: Any, num_steps: int, teacher_steps: int
) -> None:
    try:
        found = opened(section)
    except ValueError:
        assume(False)
        raise
    steps = (num_steps * teacher_steps, num_steps)
    assert verdict(found, steps) == verdict(found.build(), steps)


def test_a_schedule_from_elsewhere_that_only_builds_is_checked_too() -> None:
    class GuestSection(ScheduleSection):
        kind: Literal["guest"] = shapes_weights("guest")

        def build(self) -> Schedule:
            return CosineSchedule(32)

    guest, own = GuestSection(), CosineSection(grid=32)
    assert guest.scales_at(TIMES) == CosineSchedule(32).scales_at(TIMES)
    assert verdict(guest, (2200, 1100)) == verdict(own, (2200, 1100)) != ""
    assert verdict(guest, (2000, 1000)) == verdict(own, (2000, 1000)) == ""
