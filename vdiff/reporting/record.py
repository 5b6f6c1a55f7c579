"""What a run has come to, as far as its files tell; read without judging, damaged parts named.

No torch here.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vdiff.chain.plan import Stage, plan
from vdiff.errors import VdiffError
from vdiff.metrics import table
from vdiff.metrics.table import EvaluationTable
from vdiff.recipe import text as recipe_text
from vdiff.recipe.recipe import Recipe
from vdiff.reporting import inspection
from vdiff.runs.folder import RunFolder

Facts = dict[str, Any]
Curves = dict[str, list[tuple[float, float]]]
Measured = tuple[str, int | None]
"""A metric and the number of pictures it was measured with,
None where that was not written down.
"""

MOST_POINTS = 120
"""A curve of losses is drawn with this many points, each the mean of those around it."""

# A run folder may come from somebody else. These bounds keep a page from growing without end,
# and a chart from numbers that overflow when it computes with them.
_LONGEST = 1 << 16
_LONGEST_NAME = 64
_LARGEST_NUMBER = 1e300
_LARGEST_COUNT = 10**9
_LARGEST_LOG = 256 << 20


@dataclass(frozen=True)
class Record:
    """A run, ready to be shown.

    rows: what `vdiff inspect` lists, finished and stopped stages.
    cards: the models by name, those that are whole.
    stages: what the recipe asks for; empty where it cannot be read.
    losses: stage -> (update, loss), thinned.
    trends: metric and number of pictures -> stage -> (update, value); numbers of different numbers
    are never one curve.
    warnings: what is damaged or does not fit together.
    """

    folder: RunFolder
    name: str
    rows: Sequence[Facts]
    cards: dict[str, Facts]
    status: Facts | None
    stages: Sequence[Stage]
    table: EvaluationTable | None
    losses: Curves
    trends: dict[Measured, Curves]
    recipe: str
    warnings: list[str] = field(default_factory=list)

    @property
    def base(self) -> Facts | None:
        """The card of the undistilled model."""
        return next((card for card in self.cards.values() if not card["is_distilled"]), None)

    @property
    def students(self) -> list[Facts]:
        """The cards of the students that descend from the base, most steps first."""
        distilled = [card for card in self.cards.values() if card["is_distilled"]]
        return sorted(distilled, key=lambda card: (card["stage"], -card["num_steps"]))

    def missing(self) -> list[str]:
        """Stages that the recipe asks for and that have no model folder."""
        return [stage.name for stage in self.stages if stage.name not in self.cards]


def read(folder: Path) -> Record:
    """Everything a run's files tell; nothing is changed."""
    run = RunFolder(folder)
    facts = inspection.run(folder)
    warnings = list(facts["warnings"])
    warnings += [
        f"`{row['name']}`: {problem}" for row in facts["models"] for problem in row["problems"]
    ]
    return Record(
        run,
        folder.resolve().name,
        facts["models"],
        _cards(facts["models"], warnings),
        facts["status"],
        _stages(run.recipe, warnings),
        _table(run.table, warnings),
        losses(run.log),
        trends(run.log),
        _text(run.recipe),
        warnings,
    )


def losses(path: Path) -> Curves:
    """The losses in log.jsonl by stage, at most MOST_POINTS each;
    lines that tell none are passed over.
    """
    curves: Curves = {}
    for entry in entries(path):
        if _is_number(entry.get("loss")):
            point = (float(entry["update"]), float(entry["loss"]))
            curves.setdefault(entry["stage"], []).append(point)
    return {stage: thinned(points) for stage, points in curves.items()}


def trends(path: Path) -> dict[Measured, Curves]:
    """What log.jsonl tells of networks that were looked at while they learned."""
    measured: dict[Measured, Curves] = {}
    for entry in entries(path):
        values = entry.get("trend")
        if not isinstance(values, dict):
            continue
        num_images = entry.get("num_images")
        # not isinstance: to Python, `true` in a log is a whole number
        if type(num_images) is not int or not 0 < num_images < _LARGEST_COUNT:
            num_images = None
        for name, value in values.items():
            if _is_number(value) and len(name) <= _LONGEST_NAME:
                curves = measured.setdefault((name, num_images), {})
                points = curves.setdefault(entry["stage"], [])
                points.append((float(entry["update"]), float(value)))
    return {
        key: {stage: thinned(points) for stage, points in curves.items()}
        for key, curves in measured.items()
    }


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS points: each the mean of its neighbours, at the last one's place."""
    size = math.ceil(len(points) / MOST_POINTS)
    parts = [points[start : start + size] for start in range(0, len(points), max(size, 1))]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def entries(path: Path) -> Iterator[Facts]:
    """Lines of log.jsonl that tell a stage and an update; others are passed over."""
    if not path.is_file() or path.stat().st_size > _LARGEST_LOG:
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            # A crash of the machine may leave half a line, or zeros. A line of 100,000 brackets
            # makes json run out of stack.
            try:
                entry = json.loads(line)
                is_right = isinstance(entry["stage"], str) and _is_number(entry["update"])
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            if is_right:
                yield {**entry, "stage": entry["stage"][:_LONGEST_NAME]}


def _is_number(value: object) -> bool:
    # NaN is not below it either
    return type(value) in (int, float) and abs(value) < _LARGEST_NUMBER  # type: ignore[arg-type]


def _cards(rows: Sequence[Facts], warnings: list[str]) -> dict[str, Facts]:
    cards = {}
    for row in rows:
        if row["state"] == "whole":
            try:
                cards[row["name"]] = inspection.model(Path(row["path"]))
            except VdiffError as err:
                warnings.append(err.problem)
    return cards


def _stages(path: Path, warnings: list[str]) -> list[Stage]:
    if not path.is_file():
        return []
    try:
        return plan(recipe_text.validate(Recipe, recipe_text.read_file(path)))
    except VdiffError as err:
        warnings.append(f"the run's recipe cannot be read: {err.problem}")
        return []


def _table(path: Path, warnings: list[str]) -> EvaluationTable | None:
    try:
        return table.read(path)
    except VdiffError as err:
        warnings.append(f"{err.problem}: {err.fix}")
        return None


def _text(path: Path) -> str:
    """The beginning of a text file; nothing where there is none."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_LONGEST)
    except OSError:
        return ""
