"""The values that shape a stage's weights: what changed since it was begun, and what may change."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vdiff.errors import DataError, UsageError


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Which values differ, as `train.updates: 2000 -> 3000`."""
    return [f"{name}: {before.get(name)} -> {now.get(name)}" for name in changed(before, now)]


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of the values that shape the weights and differ."""
    # as JSON holds them: tuples are lists
    before = json.loads(json.dumps(before))
    now = json.loads(json.dumps(now))
    return [
        name
        for name in sorted({*before, *now})
        if before.get(name, _MEANT.get(name)) != now.get(name)
        and (name, before.get(name)) != _UNTOLD
        and name not in _HARMLESS_NOW
    ]


LENGTHS = ("train.updates", "distill.updates")
"""The length of a stage: what was learned until now does not depend on it
but by the learning rate.
"""

_MEANT = {
    "diffusion.schedule.time_scale": 1.0,
    "diffusion.schedule.zero_terminal": False,
    "distill.objective.teacher": "ddim",
    "train.label_drop": 0.0,
}
"""What earlier versions did, and so did not record."""

_UNTOLD = ("precision", "auto")
"""Runs of earlier versions did not record what `auto` came to."""

_HARMLESS_NOW = ("train.log_every", "distill.log_every")
"""Earlier versions recorded these, which do not shape the weights."""


def check_length(update: int, now: Mapping[str, Any]) -> None:
    """UsageError where more updates are done than the stage is to have now."""
    for name in LENGTHS:
        if name in now and now[name] < update:
            raise UsageError(
                f"{update:,} updates of this stage are done, "
                f"and the recipe asks for {now[name]:,} now",
                f"ask for {update:,} or more, or add --force to begin the stage again",
                name,
            )


def check_values(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """UsageError where the recipe says otherwise than when a stage was begun, DataError for other
    pictures.

    folder: of its saves.
    """
    lengths = {name: now[name] for name in LENGTHS if name in now and name in before}
    different = changes({**before, **lengths}, now)
    recipe = [change for change in different if not change.startswith("data: ")]
    if recipe:
        problem = "the recipe changed since this stage was begun"
        back = "take the change back"
        if all(change.startswith("precision: ") for change in recipe):
            problem = "this stage was begun in another precision"
            back = f"add `--set precision={before['precision']}`, on a machine that can do that"
        raise UsageError(
            problem,
            f"{back}, give the run another `name`, or add --force to begin the stage again",
            "; ".join(recipe[:8]),
        )
    if different:
        raise DataError(
            "the pictures are not those that this stage was begun with",
            "put the old store back, give the run another `name`, "
            "or add --force to begin the stage again",
            folder,
        )
