"""How numbers are written on a page: the same kind of number in the same way everywhere."""

import math

from vdiff.chain.plan import counted

__all__ = ["amount", "counted", "duration", "megabytes", "number", "signed_range", "speed"]


def number(value: float) -> str:
    """A measured number with three digits that count: `0.0123`, `4.57`, `128`, `12,300`."""
    return _written(value, 0)


def _written(value: float, places: int) -> str:
    """With three digits that count, and at least so many places."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "infinite"
    places = max(places, 2 - math.floor(math.log10(abs(value))))
    if places > 6:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa} × 10{_raised(int(exponent))}"
    return f"{round(value, places):,.{places}f}"


def signed_range(low: float | None, high: float | None) -> str:
    """An interval, `2.91 to 3.30`, its ends as exact as it is narrow: `16.68 to 16.73`; nothing where there is none."""
    if low is None or high is None:
        return ""
    places = 1 - math.floor(math.log10(high - low)) if low < high else 0
    return f"{_written(low, places)} to {_written(high, places)}"


def amount(count: int | None) -> str:
    """A count, `1,234`; a dash for an unknown one."""
    return "–" if count is None else f"{count:,}"


def megabytes(num_bytes: int | None) -> str:
    """`4.5 MB`."""
    return "–" if num_bytes is None else f"{num_bytes / 1e6:,.{1 if num_bytes >= 1e5 else 3}f} MB"


def duration(seconds: float | None) -> str:
    """`12 s`, `3 min 20 s`, `5 h 02 min`."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return (
        f"{minutes} min {rest:02d} s"
        if minutes < 60
        else f"{minutes // 60:,} h {minutes % 60:02d} min"
    )


def speed(seconds: float | None) -> str:
    """Time per picture: `3.2 ms`, `1.4 s`."""
    if seconds is None:
        return "–"
    return f"{number(seconds * 1000)} ms" if seconds < 1 else f"{number(seconds)} s"


def _raised(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
