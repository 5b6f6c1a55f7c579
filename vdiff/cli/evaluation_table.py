"""The table of an evaluation on a terminal, with the conditions that its numbers hold under."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vdiff.cli import console
from vdiff.cli.options import mode

if TYPE_CHECKING:
    from vdiff.metrics.pair_metric import Measure, Partner
    from vdiff.metrics.table import EvaluationRow, EvaluationTable, Value

SECONDS = "s per\npicture"

_MOST_PLACES = 6
"""Smaller intervals are written with an exponent."""


def show(table: "EvaluationTable", path: Path | None) -> None:
    """Print it. path: where it is kept, None for nowhere."""
    from vdiff.metrics.metric import ordered
    from vdiff.metrics.pair_metric import measures_of

    if mode.json:
        place = None
        if path is not None:
            place = str(path)
        console.emit_json({**table.model_dump(mode="json"), "path": place})
        return
    names = ordered({name for row in table.rows for name in row.metrics})
    measures = measures_of(partner for row in table.rows for partner in (row.original, row.teacher))
    pairs = [(measure, whom) for measure in measures for whom in measure.beside]
    heads = [f"{measure.column or measure.name} to\n{whom}" for measure, whom in pairs]
    columns = ["model", "steps", *names, *heads, SECONDS]
    # a narrow terminal leaves out from the end; the model and its steps always stay
    importance = [*names, *heads[:2], SECONDS, *heads[2:]]
    left_out = console.table(
        columns, [_cells(row, names, pairs) for row in table.shown()], columns[1:], importance
    )
    console.write("")
    console.prose(table.line())
    for name, features in table.protocol.features.items():
        console.prose(f"{name}: {features}")
    console.prose(
        f"seconds on {table.machine}; ± is half of a 95 % interval by bootstrap of the samples"
    )
    if left_out:
        shown = ", ".join(name.replace("\n", " ") for name in left_out)
        console.say(
            f"left out, for want of room: {shown}; a wider terminal, a file or --json has them",
            "cyan",
        )
    if path is not None:
        console.say(f"written to `{path}`", "green")


def _cells(
    row: "EvaluationRow", names: Sequence[str], pairs: "Sequence[tuple[Measure, Partner]]"
) -> list[str]:
    model = row.name
    if row.role == "undistilled":
        model = f"{row.name}, undistilled"
    if row.role == "solved":
        model = f"{row.name}, {row.sampler}".replace("grid=", "")
    cells = [model, row.calls]
    cells += [_value(row.metrics.get(name)) for name in names]
    cells += [_compared(row, measure, whom) for measure, whom in pairs]
    seconds = ""
    if row.seconds_per_image is not None:
        seconds = f"{row.seconds_per_image:.2g}"
    return [*cells, seconds]


def _value(value: "Value | None") -> str:
    """A number, and half of its interval to two digits, both as exact as that:
    `0.185 ±0.052`, `0.0480 ±0.0046`.
    """
    if value is None:
        return ""
    half = 0.0
    if value.low is not None and value.high is not None:
        half = (value.high - value.low) / 2
    if half <= 0:
        return f"{value.value:.3g}"
    places = max(0, 1 - math.floor(math.log10(half)))
    if places > _MOST_PLACES:
        return f"{value.value:.3g} ±{half:.2g}"
    return f"{value.value:.{places}f} ±{half:.{places}f}"


def _compared(row: "EvaluationRow", measure: "Measure", whom: "Partner") -> str:
    """A number without its unit, which stands over it; nothing where there is none."""
    from vdiff.metrics.pair_metric import written

    partner = row.partner(whom)
    if partner is None or measure.name not in partner.numbers:
        return ""
    return written(measure, partner.numbers[measure.name])
