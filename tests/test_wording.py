"""How numbers are written on a page."""

import math

import pytest

from vdiff.reporting.wording import duration, number, signed_range
from vdiff.system.plural import count


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.01234, "0.0123"),
        (4.567, "4.57"),
        (128.4, "128"),
        (12345.0, "12,345"),
        (-0.5, "-0.500"),
        (0.0, "0"),
        (math.inf, "infinite"),
        (2.5e-7, "2.5 × 10⁻⁷"),
    ],
)
def test_a_number_has_three_digits_that_count(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (2.91, 3.3, "2.91 to 3.30"),
        (16.6778, 16.7258, "16.678 to 16.726"),
        (0.0, 0.1, "0 to 0.100"),
        (1.0, 1.0, "1.00 to 1.00"),
        (None, 1.0, ""),
        (1.0, None, ""),
    ],
)
def test_the_ends_of_a_narrow_interval_can_be_told_apart(
    low: float | None, high: float | None, text: str
) -> None:
    assert signed_range(low, high) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (1.24, "1.2 s"),
        (12.4, "12 s"),
        (200.0, "3 min 20 s"),
        (18_120.0, "5 h 02 min"),
        (86_399.0, "23 h 59 min"),
        (111_600.0, "1 d 7 h"),
        (86_400.0 * 1234, "1,234 d 0 h"),
    ],
)
def test_a_duration_of_over_a_day_is_told_in_days(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number_of", "noun", "text"),
    [
        (0, "update", "0 updates"),
        (1, "update", "1 update"),
        (2000, "update", "2,000 updates"),
        (1, "class", "1 class"),
        (10, "class", "10 classes"),
    ],
)
def test_one_thing_is_told_in_the_singular(number_of: int, noun: str, text: str) -> None:
    assert count(number_of, noun) == text
