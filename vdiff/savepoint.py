"""Points to resume from: what a training changes, saved whole, the last two of a stage kept until it is complete."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdiff import whole_folder
from vdiff.checkpoint import load_tensors, save_tensors
from vdiff.errors import DataError, DivergedError, ModelFileError, UsageError
from vdiff.run_folder import STATE, points

NUM_KEPT = 2

State = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class SavePoint:
    """A verified point to resume from.

    update: updates done.   state: tensors by part and name, see `Learner.state`.
    pending: the measurements that no line of the log holds yet, see `Report.pending`.
    """

    update: int
    state: State
    pending: Tensor


def write(folder: Path, update: int, state: State, pending: Tensor, trajectory: Mapping[str, Any]) -> None:
    """Save into `folder`/<update>, then drop all but the last `NUM_KEPT`.

    trajectory: the values that shape the weights; resuming asks for the same.   Errors: DivergedError, MachineError.
    """
    tensors = {
        part: {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
        for part, named in {**state, "pending": {"rows": pending}}.items()
    }
    if not all(torch.isfinite(tensor).all() for tensor in tensors["weights"].values()):
        raise DivergedError(
            f"the weights are no longer finite after update {update}",
            "lower `learning_rate` and add --force to begin the stage again",
        )

    def fill(target: Path) -> None:
        for part, named in tensors.items():
            save_tensors(target / f"{part}.safetensors", named)

    whole_folder.write(folder / f"{update:09d}", STATE, {"update": update, "trajectory": dict(trajectory)}, fill)
    for old in points(folder)[NUM_KEPT:]:
        shutil.rmtree(old)


def newest(folder: Path, trajectory: Mapping[str, Any], say: Callable[[str], None]) -> SavePoint | None:
    """The last save that is whole; None when there is none.

    say: told about every save that is damaged and passed over.
    Errors: UsageError when the run was begun with other values than `trajectory`, DataError with other pictures.
    """
    for point in points(folder):
        try:
            content = whole_folder.read(point, STATE)
            found = whole_folder.damage(point, content)
            if found:
                raise ModelFileError(f"`{point}` is damaged", "", "; ".join(found))
            _check_trajectory(content["trajectory"], trajectory, folder)
            parts = {path.stem: load_tensors(path) for path in sorted(point.glob("*.safetensors"))}
        except (ModelFileError, KeyError) as err:
            say(f"{getattr(err, 'problem', err)}; the save before it is used")
            continue
        return SavePoint(int(content["update"]), parts, parts.pop("pending")["rows"])
    return None


def clear(folder: Path) -> None:
    """Forget the saves of a stage that is complete."""
    shutil.rmtree(folder, ignore_errors=True)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Which values differ, as `train.updates: 2000 -> 3000`."""
    before, now = json.loads(json.dumps(before)), json.loads(json.dumps(now))
    return [
        f"{name}: {before.get(name)} -> {now.get(name)}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def _check_trajectory(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    different = changes(before, now)
    recipe = [change for change in different if not change.startswith("data: ")]
    if recipe:
        raise UsageError(
            "the recipe changed since this stage was begun",
            "take the change back, give the run another `name`, or add --force to begin the stage again",
            "; ".join(recipe[:8]),
        )
    if different:
        raise DataError(
            "the pictures are not those that this stage was begun with",
            "put the old store back, give the run another `name`, or add --force to begin the stage again",
            folder,
        )
