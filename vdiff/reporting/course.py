"""How the trainings went: losses by stage, and the students' errors by noise level."""

import math
from collections.abc import Mapping, Sequence

from vdiff.metrics.metric import ordered, words_for
from vdiff.reporting.chart import Axis, Line, Point, chart, suits_log
from vdiff.reporting.markup import Markup, tag
from vdiff.reporting.record import Record
from vdiff.reporting.wording import counted, number


def losses(record: Record) -> Markup:
    """A chart per stage that has written losses."""
    figures = []
    for stage in _in_order(record):
        points = record.losses[stage]
        lines = [
            Line(
                stage,
                "plain",
                [Point(update, loss) for update, loss in points],
                marked=len(points) == 1,
            )
        ]
        values = [loss for _, loss in points]
        drawn = chart(
            f"Loss of {stage}",
            lines,
            Axis("updates"),
            Axis("loss", 10 if suits_log(values, 4) else None),
        )
        said = f"{points[-1][0]:,.0f} updates, last {number(values[-1])}"
        figures.append(tag("figure", tag("h3", stage, tag("span", said, class_="aside")), drawn))
    return tag("div", figures, class_="charts small")


def trends(record: Record) -> Markup:
    """A chart per metric and number of pictures: the stages one after another."""
    offsets = _offsets(record)
    names = ordered({name for name, _ in record.trends if name != "mse"})  # psnr says the same
    figures = [
        _trend(name, count, record, offsets) for name in names for count in _counts(record, name)
    ]
    return tag("div", figures, class_="charts small")


def _offsets(record: Record) -> dict[str, float]:
    """How many updates the stages before each one had, as far as the log tells: also those without a trend."""
    curves = [record.losses, *record.trends.values()]
    told = list(dict.fromkeys(stage for found in curves for stage in found))
    known = [stage.name for stage in record.stages if stage.name in told]
    offset, offsets = 0.0, {}
    for stage in [*known, *(stage for stage in told if stage not in known)]:
        offsets[stage] = offset
        offset += max(found[stage][-1][0] for found in curves if stage in found)
    return offsets


def _counts(record: Record, name: str) -> list[int | None]:
    """The numbers of pictures that a trend was measured with, the smallest first, an unknown one last."""
    return sorted(
        (count for found, count in record.trends if found == name),
        key=lambda count: count or math.inf,
    )


def _trend(name: str, count: int | None, record: Record, offsets: Mapping[str, float]) -> Markup:
    title, better = TREND_TITLES.get(name, words_for(name)[:2])
    lines = []
    for stage, points in record.trends[name, count].items():
        marks = [
            Point(offsets[stage] + at, y, note=f"{stage}, update {at:,.0f}: {number(y)}")
            for at, y in points
        ]
        lines.append(Line(stage, "plain", marks))
    values = [point.y for line in lines for point in line.points]
    most = 1.0 if name == "ssim" else words_for(name).most
    up = Axis(title, 10 if better.startswith("less") and suits_log(values) else None, most=most)
    of = f"of {count:,} pictures" if count is not None else "of an unknown number of pictures"
    drawn = chart(f"Trend of {title}, {of}", lines, Axis("updates of all stages in turn"), up)
    aside = "; ".join(filter(None, (better, of)))
    return tag("figure", tag("h3", title, tag("span", aside, class_="aside")), drawn)


TREND_TITLES = {
    "psnr": ("PSNR with the own teacher, in dB", "more is better"),
    "ssim": ("Structural similarity with the own teacher", "more is better"),
}


def levels(errors: Mapping[str, Sequence[tuple[float, float]]], record: Record) -> Markup:
    """A chart per student, all with the same axes."""
    steps = {card["name"]: card["num_steps"] for card in record.students}
    values = [error for points in errors.values() for _, error in points]
    across = Axis("time: 0 clean, 1 noise", None, (0, 0.25, 0.5, 0.75, 1), (0, 1))
    up = Axis("squared error", 10 if suits_log(values) else None, span=(min(values), max(values)))
    figures = []
    for name, points in errors.items():
        marks = [
            Point(time, error, note=f"time {time:.2f}: {number(error)}") for time, error in points
        ]
        drawn = chart(f"Error of {name} by noise level", [Line(name, "student", marks)], across, up)
        figures.append(
            tag("figure", tag("h3", name, tag("span", counted(steps[name]), class_="aside")), drawn)
        )
    return tag("div", figures, class_="charts small")


def _in_order(record: Record) -> list[str]:
    known = [stage.name for stage in record.stages] + [row["name"] for row in record.rows]
    listed = [name for name in dict.fromkeys(known) if name in record.losses]
    return [*listed, *(name for name in record.losses if name not in listed)]
