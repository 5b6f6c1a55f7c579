"""The table of an evaluation on a terminal, with the conditions that its numbers hold under."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vdiff.cli import console
from vdiff.cli.options import mode

if TYPE_CHECKING:
    from vdiff.metrics.table import AgreementWith, EvaluationTable, Row, Value

TEACHER, ORIGINAL, SSIM, SECONDS = "dB to\nteacher", "dB to\noriginal", "ssim to\noriginal", "s per\npicture"

_MOST_PLACES = 6
"""Smaller intervals are written with an exponent."""


def show(found: "EvaluationTable", path: Path | None) -> None:
    """Print it. path: where it is kept, None for nowhere."""
    from vdiff.metrics.metric import ordered

    if mode.json:
        console.emit_json({**found.model_dump(mode="json"), "path": str(path) if path else None})
        return
    names = ordered({name for row in found.rows for name in row.metrics})
    pairs = [ORIGINAL, TEACHER, SSIM] if any(row.teacher or row.original for row in found.rows) else []
    columns = ["model", "steps", *names, *pairs, SECONDS]
    importance = [*names, *pairs[:2], SECONDS, *pairs[2:]]
    left_out = console.table(columns, [_cells(row, names, pairs) for row in found.rows], columns[1:], importance)
    console.write("")
    console.prose(found.protocol.line())
    for name, features in found.protocol.features.items():
        console.prose(f"{name}: {features}")
    console.prose(f"seconds on {found.machine}; ± is half of a 95 % interval by bootstrap of the samples")
    if left_out:
        shown = ", ".join(name.replace("\n", " ") for name in left_out)
        console.say(f"left out, for want of room: {shown}; a wider terminal, a file or --json has them", "cyan")
    if path is not None:
        console.say(f"written to `{path}`", "green")


def _cells(row: "Row", names: Sequence[str], pairs: Sequence[str]) -> list[str]:
    name = f"{row.model}, undistilled" if row.role == "undistilled" else row.model
    cells = [name, str(row.num_steps), *(_value(row.metrics.get(name)) for name in names)]
    if pairs:
        ssim = f"{row.original.ssim:.3f}" if row.original else ""
        cells += [_psnr(row.original), _psnr(row.teacher), ssim]
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
        f"{found.value:.{places}f} ±{half:.{places}f}" if places <= _MOST_PLACES else f"{found.value:.3g} ±{half:.2g}"
    )


def _psnr(found: "AgreementWith | None") -> str:
    if found is None:
        return ""
    return "equal" if found.psnr is None else f"{found.psnr:.1f}"
