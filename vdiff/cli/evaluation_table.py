"""The table of an evaluation on a terminal, with the conditions that its numbers hold under."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vdiff.cli import console
from vdiff.cli.options import mode

if TYPE_CHECKING:
    from vdiff.metrics.pair_metric import Measure, Partner
    from vdiff.metrics.table import EvaluationTable, Row, Value

SECONDS = "s per\npicture"

_MOST_PLACES = 6
"""Smaller intervals are written with an exponent."""


def show(found: "EvaluationTable", path: Path | None) -> None:
    """Print it. path: where it is kept, None for nowhere."""
    from vdiff.metrics.metric import ordered
    from vdiff.metrics.pair_metric import measures_of

    if mode.json:
        console.emit_json({**found.model_dump(mode="json"), "path": str(path) if path else None})
        return
    names = ordered({name for row in found.rows for name in row.metrics})
    measures = measures_of(each for row in found.rows for each in (row.original, row.teacher))
    pairs = [(measure, whom) for measure in measures for whom in measure.beside]
    heads = [f"{measure.column or measure.name} to\n{whom}" for measure, whom in pairs]
    columns = ["model", "steps", *names, *heads, SECONDS]
    importance = [*names, *heads[:2], SECONDS, *heads[2:]]
    left_out = console.table(
        columns, [_cells(row, names, pairs) for row in found.rows], columns[1:], importance
    )
    console.write("")
    console.prose(found.protocol.line())
    for name, features in found.protocol.features.items():
        console.prose(f"{name}: {features}")
    console.prose(
        f"seconds on {found.machine}; ± is half of a 95 % interval by bootstrap of the samples"
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
    row: "Row", names: Sequence[str], pairs: "Sequence[tuple[Measure, Partner]]"
) -> list[str]:
    name = f"{row.model}, undistilled" if row.role == "undistilled" else row.model
    cells = [name, str(row.num_steps), *(_value(row.metrics.get(name)) for name in names)]
    cells += [_compared(row, measure, whom) for measure, whom in pairs]
    return [*cells, "" if row.seconds_per_image is None else f"{row.seconds_per_image:.2g}"]


def _value(found: "Value | None") -> str:
    """A number, and half of its interval to two digits, both as exact as that: `0.185 ±0.052`, `0.0480 ±0.0046`."""
    if found is None:
        return ""
    half = (found.high - found.low) / 2 if found.low is not None and found.high is not None else 0.0
    if half <= 0:
        return f"{found.value:.3g}"
    places = max(0, 1 - math.floor(math.log10(half)))
    return (
        f"{found.value:.{places}f} ±{half:.{places}f}"
        if places <= _MOST_PLACES
        else f"{found.value:.3g} ±{half:.2g}"
    )


def _compared(row: "Row", measure: "Measure", whom: "Partner") -> str:
    """A number without its unit, which stands over it; nothing where there is none."""
    from vdiff.metrics.pair_metric import written

    found = row.partner(whom)
    if found is None or measure.name not in found.numbers:
        return ""
    return written(measure, found.numbers[measure.name])
