"""The numbers of an evaluation as curves and as a table,
always with the protocol that they hold under.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from vdiff.metrics.metric import ordered, words_for
from vdiff.metrics.pair_metric import Measure, Partner, measures_of, written
from vdiff.metrics.table import EvaluationRow, EvaluationTable, Value
from vdiff.reporting.chart import Axis, Line, Point, chart, extent, suits_log
from vdiff.reporting.markup import Markup, code, joined, tag
from vdiff.reporting.published import CURVES
from vdiff.reporting.wording import counted, number, signed_range, speed


def metrics_of(table: EvaluationTable) -> list[str]:
    """All metrics that any row has, the most telling first."""
    return ordered({name for row in table.rows for name in row.metrics})


def measures(table: EvaluationTable) -> list[Measure]:
    """What metrics of pairs tell in any row and people are told of, the most telling first."""
    partners = (partner for row in table.rows for partner in (row.original, row.teacher))
    return [measure for measure in measures_of(partners) if measure.beside]


def curves(table: EvaluationTable, published: str | None = None) -> Markup:
    """A chart per metric and per measure of pairs, against the number of steps."""
    table = table.alike()
    figures = [_metric(table, name, published) for name in metrics_of(table)]
    figures += [_of_pairs(table, measure) for measure in measures(table)]
    return tag("div", figures, class_="charts")


def legend(roles: Sequence[tuple[str, str]]) -> Markup:
    """What the marks mean: (role, words) each."""
    items = [
        tag("li", tag("i", class_=f"key {role}", aria_hidden="true"), words)
        for role, words in roles
    ]
    return tag("ul", items, class_="legend")


def numbers(table: EvaluationTable) -> Markup:
    """Every number of the table."""
    metrics = metrics_of(table)
    heads = ["model", "steps", *(words_for(metric).title for metric in metrics)]
    pairs = [
        (measure, whom)
        for measure in measures(table)
        for whom in _IN_TABLE
        if whom in measure.beside
    ]
    heads += [f"{measure.brief}, {_IN_TABLE[whom]}" for measure, whom in pairs]
    heads.append("per picture")
    # all but the model's name are numbers, which stand at the right of their column
    head = tag(
        "tr",
        tag("th", heads[0], scope="col"),
        [tag("th", text, scope="col", class_="n") for text in heads[1:]],
    )
    rows = [_number_row(row, metrics, pairs) for row in table.shown()]
    line = tag(
        "p",
        f"{table.line()}. In small print: 95 % intervals by bootstrap.",
        class_="protocol",
    )
    caption = tag("caption", "All numbers of the evaluation", class_="unseen")
    inside = tag("table", caption, tag("thead", head), tag("tbody", rows), class_="numbers")
    wide = tag(
        "div",
        inside,
        class_="wide",
        tabindex=0,
        role="region",
        aria_label="All numbers of the evaluation",
    )
    return joined((line, wide))


def protocol(
    table: EvaluationTable, metric: str | None = None, has_reference: bool = True
) -> Markup:
    """The line that stands with a number. has_reference:
    whether the metric looks at the reference pictures.
    """
    line = table.line(has_reference)
    features = ""
    if metric is not None:
        features = table.protocol.features.get(metric, "")
    if features:
        line = f"{features}; {line}"
    return tag("p", line, class_="protocol")


_IN_TABLE: dict[Partner, str] = {"teacher": "its teacher", "original": "original"}


def _number_row(
    row: EvaluationRow, metrics: Sequence[str], pairs: Sequence[tuple[Measure, Partner]]
) -> Markup:
    cells = [tag("th", _name(row), scope="row"), _cell(row.calls)]
    cells += [_value(row.metrics.get(metric)) for metric in metrics]
    cells += [_cell(_compared(row, measure, whom)) for measure, whom in pairs]
    cells.append(_cell(speed(row.seconds_per_image)))
    return tag("tr", cells, class_=row.role)


def _cell(text: str) -> Markup:
    return tag("td", text, class_="n")


def _value(value: Value | None) -> Markup:
    if value is None:
        return _cell("–")
    interval = signed_range(value.low, value.high)
    if not interval:
        return _cell(number(value.value))
    return tag("td", number(value.value), tag("small", interval), class_="n")


def _compared(row: EvaluationRow, measure: Measure, whom: Partner) -> str:
    partner = row.partner(whom)
    if partner is None or measure.name not in partner.numbers:
        return "–"
    return amount_of(measure, partner.numbers[measure.name])


def amount_of(measure: Measure, value: float | None) -> str:
    """A number of a metric of pairs with its unit: `23.1 dB`, `0.92`, `equal`."""
    if value is None:
        return written(measure, value)
    if not measure.unit:
        return number(value)
    return f"{written(measure, value)} {measure.unit}"


def _metric(table: EvaluationTable, name: str, published: str | None) -> Markup | None:
    def point(row: EvaluationRow) -> Point | None:
        value = row.metrics.get(name)
        if value is None:
            return None
        return Point(
            row.num_steps, value.value, value.low, value.high, _note(row, number(value.value))
        )

    lines = _lines(table, point)
    source = None
    # the paper tells FID alone; beside another metric its numbers would mean nothing
    curve = CURVES.get(published or "")
    if name == "fid" and curve is not None:
        lines.append(_published("distilled", curve.distilled))
        lines.append(_published("plain DDIM", curve.undistilled))
        source = f"Dashed: {curve.name} as published by {curve.source}."
    title, better, _, most = words_for(name)
    return _figure(Axis(title, most=most), better, lines, protocol(table, name), source)


def _published(words: str, values: Mapping[int, float]) -> Line:
    points = [Point(steps, value, note=f"published: {value}") for steps, value in values.items()]
    return Line(f"published, {words}", "published", points)


def _of_pairs(table: EvaluationTable, measure: Measure) -> Markup | None:
    def point_with(whom: Partner) -> Callable[[EvaluationRow], Point | None]:
        def point(row: EvaluationRow) -> Point | None:
            partner = row.partner(whom)
            # the original agrees with itself: that point would only stretch the axis
            if partner is None or row.role == "original":
                return None
            value = partner.numbers.get(measure.name)
            if value is None:
                return None
            return Point(row.num_steps, value, note=_note(row, number(value)))

        return point

    lines = [line for line in _lines(table, point_with("original")) if line.role != "original"]
    with_teacher = _points(_students(table), point_with("teacher"))
    lines.append(Line("student, with its own teacher", "teacher", with_teacher))
    note = (
        "From the same noise: circles and diamonds with the original, "
        "squares each student with its own teacher."
    )
    line = protocol(table, measure.metric, has_reference=False)
    return _figure(Axis(measure.title, most=measure.most), measure.better, lines, line, note)


def _figure(
    up: Axis, better: str, lines: Sequence[Line], line: Markup, note: str | None
) -> Markup | None:
    points = [point for drawn_line in lines for point in drawn_line.points]
    if not points:
        return None
    steps = _ticks([point.x for point in points])
    # similarities have an upper end, near which a logarithm hides all
    is_distance = better.startswith("less")
    if is_distance and suits_log(extent(points)):
        up = replace(up, log=10)
    drawn = chart(up.label, lines, Axis("steps", 2, steps), up)
    head = tag("h3", up.label, tag("span", better, class_="aside"))
    caption = [line]
    if note:
        caption.append(tag("p", note, class_="note"))
    return tag("figure", head, drawn, tag("figcaption", caption))


def _lines(table: EvaluationTable, point: Callable[[EvaluationRow], Point | None]) -> list[Line]:
    """Students, the undistilled base up to its full number of steps, by the best solver too, and
    that point by itself.
    """
    originals = [row for row in table.rows if row.role == "original"]
    plain = [row for row in table.rows if row.role == "undistilled"]
    return [
        Line("not distilled", "undistilled", _points(plain, point)),
        # without marks: the last point has that of the original
        Line(
            "not distilled, up to the original",
            "undistilled",
            _points([*plain, *originals], point),
            marked=False,
        ),
        Line("not distilled, best solver", "solved", _points(_solved(table), point)),
        Line("students", "student", _points(_students(table), point)),
        Line("original", "original", _points(originals, point)),
    ]


def _points(
    rows: Sequence[EvaluationRow], point: Callable[[EvaluationRow], Point | None]
) -> list[Point]:
    """The points of the rows that have one, fewest steps first."""
    points = [place for row in rows if (place := point(row)) is not None]
    return sorted(points, key=lambda place: place.x)


def _students(table: EvaluationTable) -> list[EvaluationRow]:
    return [row for row in table.rows if row.role == "student"]


def _solved(table: EvaluationTable) -> list[EvaluationRow]:
    return [row for row in table.shown() if row.role == "solved"]


def _ticks(steps: Sequence[float]) -> list[float]:
    """The numbers of steps that there are, thinned to about seven; the fewest stays."""
    different = sorted(set(steps))
    # more would write their numbers over one another on a phone
    every = math.ceil(len(different) / 7)
    return different[::every]


def _note(row: EvaluationRow, value: str) -> str:
    return f"{_name(row)}, {counted(row.num_steps)}: {value}"


def _name(row: EvaluationRow) -> str:
    if row.role == "undistilled":
        return f"{row.name}, not distilled"
    if row.role == "solved":
        return f"{row.name}, not distilled, {row.sampler}"
    return row.name


def features(table: EvaluationTable) -> Markup:
    """What each metric compares, as the protocol says."""
    compared = table.protocol.features.items()
    return joined((tag("dt", code(name)), tag("dd", words)) for name, words in compared)
