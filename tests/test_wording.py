"""How numbers are written on a page."""

import math

import pytest

from vdiff.reporting.wording import number, signed_range


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
