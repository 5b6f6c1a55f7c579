"""How numbers are written on a page: the same kind of number in the same way everywhere."""

import math

from vdiff.chain.plan import counted
from vdiff.system.plural import count

__all__ = ["amount", "count", "counted", "duration", "megabytes", "number", "signed_range", "speed"]

_UNKNOWN = "–"


def number(value: float) -> str:
    """A measured number with three digits that count: `0.0123`, `4.57`, `128`, `12,300`."""
    return _written(value, 0)


def _written(value: float, places: int) -> str:
    """With three digits that count, and at least so many places."""
    # neither zero nor infinity has a logarithm to take the number of places from
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return "infinite"
    places = max(places, 2 - math.floor(math.log10(abs(value))))
    if places > 6:
        # `0.00000025` is wider than its column on a phone, and nobody counts the zeros
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa} × 10{_raised(int(exponent))}"
    return f"{round(value, places):,.{places}f}"


def signed_range(low: float | None, high: float | None) -> str:
    """An interval, `2.91 to 3.30`, its ends as exact as it is narrow: `16.68 to 16.73`;
    nothing where there is none.
    """
    if low is None or high is None:
        return ""
    places = 0
    if low < high:
        # two digits of the width, else both ends of a narrow interval would read `16.7`
        places = 1 - math.floor(math.log10(high - low))
    return f"{_written(low, places)} to {_written(high, places)}"


def amount(value: int | None) -> str:
    """A count, `1,234`; a dash for an unknown one."""
    if value is None:
        return _UNKNOWN
    return f"{value:,}"


def megabytes(num_bytes: int | None) -> str:
    """`4.5 MB`, and `0.012 MB` below 100 kB."""
    if num_bytes is None:
        return _UNKNOWN
    if num_bytes < 1e5:
        return f"{num_bytes / 1e6:,.3f} MB"
    return f"{num_bytes / 1e6:,.1f} MB"


def duration(seconds: float | None) -> str:
    """`1.2 s`, `12 s`, `3 min 20 s`, `5 h 02 min`, `1 d 7 h`."""
    if seconds is None:
        return _UNKNOWN
    whole = round(seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days:,} d {hours} h"


def speed(seconds: float | None) -> str:
    """Time per picture: `3.2 ms`, `1.4 s`."""
    if seconds is None:
        return _UNKNOWN
    if seconds < 1:
        return f"{number(seconds * 1000)} ms"
    return f"{number(seconds)} s"


def _raised(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
