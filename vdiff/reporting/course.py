"""How the trainings went: losses by stage, and the students' errors by noise level."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from vdiff.metrics.metric import ordered, words_for
from vdiff.reporting.chart import Axis, Line, Point, chart, suits_log
from vdiff.reporting.markup import Markup, tag
from vdiff.reporting.record import Record
from vdiff.reporting.wording import count, counted, number


def losses(record: Record) -> Markup:
    """A chart per stage that has written losses."""
    figures = []
    # one chart each: losses against different teachers must not share an axis
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
        drawn = chart(f"Loss of {stage}", lines, Axis("updates"), Axis("loss", _log(values, 4)))
        said = f"{count(round(points[-1][0]), 'update')}, last {number(values[-1])}"
        figures.append(tag("figure", tag("h3", stage, tag("span", said, class_="aside")), drawn))
    return tag("div", figures, class_="charts small")


def _log(values: Sequence[float], ratio: float = 8) -> Literal[10] | None:
    """The base of an axis for these values, see `suits_log`."""
    if suits_log(values, ratio):
        return 10
    return None


def trends(record: Record) -> Markup:
    """A chart per metric and number of pictures: the stages one after another."""
    offsets = _offsets(record)
    # psnr says the same as mse, in the unit that people compare
    names = ordered({name for name, _ in record.trends if name != "mse"})
    figures = [
        _trend(name, num_images, record, offsets)
        for name in names
        for num_images in _counts(record, name)
    ]
    return tag("div", figures, class_="charts small")


def _offsets(record: Record) -> dict[str, float]:
    """How many updates the stages before each one had, as far as the log tells:
    also those without a trend.
    """
    curves = [record.losses, *record.trends.values()]
    logged = list(dict.fromkeys(stage for curve in curves for stage in curve))
    known = [stage.name for stage in record.stages if stage.name in logged]
    # of stages that the recipe does not name any longer, only the log tells an order
    unknown = [stage for stage in logged if stage not in known]
    offset = 0.0
    offsets = {}
    for stage in [*known, *unknown]:
        offsets[stage] = offset
        offset += max(curve[stage][-1][0] for curve in curves if stage in curve)
    return offsets


def _counts(record: Record, name: str) -> list[int | None]:
    """The numbers of pictures that a trend was measured with, the smallest first,
    an unknown one last.
    """
    return sorted(
        (num_images for metric, num_images in record.trends if metric == name),
        key=lambda num_images: num_images or math.inf,
    )


def _trend(
    name: str, num_images: int | None, record: Record, offsets: Mapping[str, float]
) -> Markup:
    title, better = TREND_TITLES.get(name, words_for(name)[:2])
    lines = []
    for stage, points in record.trends[name, num_images].items():
        marks = [
            Point(offsets[stage] + at, y, note=f"{stage}, update {at:,.0f}: {number(y)}")
            for at, y in points
        ]
        lines.append(Line(stage, "plain", marks))
    values = [point.y for line in lines for point in line.points]
    most = words_for(name).most
    if name == "ssim":
        # no metric of its own: it is one of the numbers of `agreement`
        most = 1.0
    log: Literal[10] | None = None
    # similarities have an upper end, near which a logarithm hides all
    if better.startswith("less"):
        log = _log(values)
    up = Axis(title, log, most=most)
    # logs of an older vdiff do not say with how many pictures they measured
    of = "of an unknown number of pictures"
    if num_images is not None:
        of = f"of {count(num_images, 'picture')}"
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
    # one span for all students: their charts stand beside one another to be compared
    up = Axis("squared error", _log(values), span=(min(values), max(values)))
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
