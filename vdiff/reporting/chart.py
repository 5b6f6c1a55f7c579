"""Charts as SVG: lines over one axis or the other, small enough for a phone,
with words for who cannot see them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vdiff.reporting.markup import Markup, tag
from vdiff.reporting.wording import number

Role = Literal["original", "undistilled", "solved", "student", "teacher", "published", "plain"]
# as wide as a narrow phone; a wider page puts several charts beside one another
WIDTH = 340
HEIGHT = 230

# what is left free round the lines, for the numbers at the axes
_LEFT = 52
_RIGHT = 14
_TOP = 12
_BOTTOM = 38


@dataclass(frozen=True)
class Point:
    """A place on a line. low, high: its interval, if there is one.   note: what is said of it."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Line:
    """Points of one kind. role: gives colour and mark.

    marked: whether each point has its mark.
    """

    name: str
    role: Role
    points: Sequence[Point]
    marked: bool = True
    joined: bool = True


@dataclass(frozen=True)
class Axis:
    """One direction of a chart.

    log: base 2 for steps, 10 for the rest, None for equal distances.
    ticks: where they are, None for round numbers.
    span: values that the axis reaches from and to at least.   most: no value is greater.
    """

    label: str
    log: Literal[2, 10] | None = None
    ticks: Sequence[float] | None = None
    span: Sequence[float] = ()
    most: float | None = None


def chart(title: str, lines: Sequence[Line], x: Axis, y: Axis) -> Markup:
    """The lines that have points, as one picture; `title` says what it shows.

    Empty without any point.
    """
    points = [point for line in lines for point in line.points]
    if not points:
        return Markup("")
    across = _Scale(x, [point.x for point in points], _LEFT, WIDTH - _RIGHT)
    # SVG counts its rows from the top, so the axis goes from the larger number to the smaller
    up = _Scale(y, extent(points), HEIGHT - _BOTTOM, _TOP)
    body = [*_grid(across, up), _label(x)]
    for line in lines:
        body += _drawn(line, across, up)
    box = f"0 0 {WIDTH} {HEIGHT}"
    return tag(
        "svg",
        body,
        viewBox=box,
        role="img",
        aria_label=f"{title}. {_told(lines, x)}",
        class_="chart",
    )


def extent(points: Sequence[Point]) -> list[float]:
    """All values that points reach to, with the ends of their intervals."""
    return [
        value for point in points for value in (point.low, point.y, point.high) if value is not None
    ]


def suits_log(values: Sequence[float], ratio: float = 8) -> bool:
    """Whether values differ so much that only a logarithmic axis shows all of them."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > ratio


class _Scale:
    """Value -> place on the page.

    Values of a logarithmic axis that are not positive sit at its end.
    """

    def __init__(self, axis: Axis, values: Sequence[float], start: float, end: float) -> None:
        self.axis = axis
        self._start = start
        self._end = end
        values = [*values, *axis.span]
        self._floor = min((value for value in values if value > 0), default=1.0)
        low = min(map(self._bent, values))
        high = max(map(self._bent, values))
        air = self._air(low, high)
        self._low = low - air
        self._high = high + air
        if axis.log is None and axis.ticks is None and low >= 0:
            # the air must not make a loss look as if it could be negative
            self._low = max(self._low, 0.0)
        if axis.most is not None:
            # nor a similarity as if it could be more than 1
            self._high = max(high, min(self._high, self._bent(axis.most)))

    def __call__(self, value: float) -> float:
        share = (self._bent(value) - self._low) / (self._high - self._low)
        return round(self._start + share * (self._end - self._start), 1)

    def ticks(self) -> list[float]:
        if self.axis.ticks is not None:
            return list(self.axis.ticks)
        if self.axis.log:
            return _powers(self._low, self._high)
        return _even(self._low, self._high)

    def _air(self, low: float, high: float) -> float:
        """How far the axis goes on beyond the values from `low` to `high`, on the bent scale."""
        # all values are equal, up to rounding: an axis without length would divide by zero
        if high - low < 1e-12 * max(1.0, abs(high)):
            if self.axis.log is None:
                return 0.5 * max(abs(high), 1e-6)
            return 0.5
        if self.axis.ticks is not None:
            return 0.0
        return 0.06 * (high - low)

    def _bent(self, value: float) -> float:
        if self.axis.log is None:
            return value
        return math.log(max(value, self._floor), self.axis.log)


def _even(low: float, high: float) -> list[float]:
    """About four round numbers from `low` to `high`."""
    rough = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
    first = math.ceil(low / step)
    return [round(place * step, 12) for place in range(first, math.floor(high / step) + 1)]


def _powers(low: float, high: float) -> list[float]:
    """Round numbers between 10^low and 10^high:
    whole powers of ten, and some between them where there is room.
    """
    factors = {0: (1, 2, 5), 1: (1, 2, 5), 2: (1, 3)}.get(math.floor(high - low), (1,))
    # a loss may fall by ten powers; more than about five numbers would touch one another
    every = max(1, math.ceil((high - low) / 5))
    candidates = [
        factor * 10.0**power
        for power in range(math.floor(low), math.ceil(high) + 1)
        if power % every == 0
        for factor in factors
    ]
    return [value for value in candidates if low <= math.log10(value) <= high]


def _grid(across: _Scale, up: _Scale) -> list[Markup]:
    body = []
    for value in up.ticks():
        height = up(value)
        body.append(tag("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=height, y2=height, class_="rule"))
        body.append(tag("text", _tick(value), x=_LEFT - 6, y=height + 4, class_="tick up"))
    foot = HEIGHT - _BOTTOM + 16
    body.extend(
        tag("text", _tick(value), x=across(value), y=foot, class_="tick across")
        for value in across.ticks()
    )
    return body


def _tick(value: float) -> str:
    if value and not 1e-4 <= abs(value) < 1e6:
        # `1.0 × 10⁻⁷` does not fit beside the axis: `10⁻⁷`
        return number(value).replace(".0 ", " ").replace("1 × ", "").replace(" × ", "×")
    return f"{value:,.10g}"


def _label(x: Axis) -> Markup:
    return tag("text", x.label, x=(_LEFT + WIDTH - _RIGHT) / 2, y=HEIGHT - 4, class_="axis")


def _drawn(line: Line, across: _Scale, up: _Scale) -> list[Markup]:
    places = [(across(point.x), up(point.y)) for point in line.points]
    body = []
    if len(places) > 1 and line.joined:
        body.append(
            tag(
                "polyline",
                points=" ".join(f"{x},{y}" for x, y in places),
                class_=f"line {line.role}",
            )
        )
    for point, (x, y) in zip(line.points, places, strict=True):
        if point.low is not None and point.high is not None:
            body.append(
                tag(
                    "line",
                    x1=x,
                    x2=x,
                    y1=up(point.low),
                    y2=up(point.high),
                    class_=f"interval {line.role}",
                )
            )
        if line.marked:
            body.append(_mark(line.role, x, y, point.note))
    return body


def _mark(role: Role, x: float, y: float, note: str) -> Markup:
    """A shape of its own for each role: colour alone does not tell."""
    title = None
    if note:
        title = tag("title", note)
    look = f"mark {role}"
    if role in ("original", "teacher"):
        return tag("rect", title, x=x - 4, y=y - 4, width=8, height=8, class_=look)
    if role in ("undistilled", "published"):
        corners = f"{x},{y - 5} {x + 5},{y} {x},{y + 5} {x - 5},{y}"
        return tag("polygon", title, points=corners, class_=look)
    if role == "solved":
        corners = f"{x},{y - 5} {x + 5},{y + 4} {x - 5},{y + 4}"
        return tag("polygon", title, points=corners, class_=look)
    return tag("circle", title, cx=x, cy=y, r=4, class_=look)


def _told(lines: Sequence[Line], x: Axis) -> str:
    """The lines in words: all points of short ones, the ends of long ones."""
    parts = []
    for line in lines:
        shown = line.points
        if len(shown) > 12:
            # a screen reader that reads out 120 losses helps nobody
            shown = [shown[0], shown[-1]]
        if shown:
            values = ", ".join(f"{number(point.y)} at {_tick(point.x)}" for point in shown)
            parts.append(f"{line.name}: {values}")
    return f"Against {x.label}. {'; '.join(parts)}"
