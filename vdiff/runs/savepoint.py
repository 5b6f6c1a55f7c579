"""Savepoints: what a training changes, saved whole,
the last two of a stage kept until it is complete.
"""

import contextlib
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from vdiff.disk import os_files, whole_folder
from vdiff.disk.ours import anything
from vdiff.errors import DivergedError, ModelFileError, UsageError
from vdiff.model_folder.checkpoint import load_tensors, num_bytes, save_tensors
from vdiff.networks.sharded import local_shard, on_host
from vdiff.runs.contents import AGAIN
from vdiff.runs.folder import SAVE, STATE, RunFolder, points
from vdiff.runs.values import LENGTHS as LENGTHS
from vdiff.runs.values import changed as changed
from vdiff.runs.values import changes as changes
from vdiff.runs.values import check_length, check_values
from vdiff.system import threads

NUM_KEPT = 2

State = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class SavePoint:
    """A verified savepoint.

    update: updates done.   state: tensors by part and name, see `Learner.state`.
    pending: the measurements that no line of the log holds yet, see `LossRecord.pending`.
    processes: of the run then.
    length: updates that the stage was to have when it was saved.
    """

    update: int
    state: State
    pending: Mapping[str, Tensor]
    processes: int
    length: int


class Saver:
    """Saves a stage's points in the background:
    training waits for the copy to the host's memory, not for the disk.

    At most one save is under way. What went wrong in it is raised by the next call.
    folder: of the stage's points.
    trajectory: the values that shape the weights; resuming asks for the same.
    processes: of the run; each has one, and all of them save together.
    writes: whether it is this one that writes.
    anywhere: whether something is true in any of the processes; all of them ask.
    """

    def __init__(
        self,
        folder: Path,
        trajectory: Mapping[str, Any],
        processes: int = 1,
        writes: bool = True,
        anywhere: Callable[[bool], bool] = bool,
    ) -> None:
        self._folder = folder
        self._facts = {"trajectory": dict(trajectory), "processes": processes}
        self._writes = writes
        self._anywhere = anywhere
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._saved: int | None = None

    def save(self, update: int, state: State, pending: Mapping[str, Tensor]) -> None:
        """Begin to save; see `write`.

        Errors: DivergedError, in all processes, for weights that are not finite in any of them;
        MachineError.
        """
        _check_finite(update, state, self._anywhere)
        copied = _on_host(state, pending, self._writes)
        if not self._writes:
            return
        self.wait()
        thread = threading.Thread(target=self._write, args=(update, copied), name=f"save {update}")
        threads.start(thread)
        self._thread = thread

    def saved(self) -> int | None:
        """The update of a save that has come onto the disk since the last call, if one has."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()
        update = self._saved
        self._saved = None
        return update

    def wait(self) -> None:
        """Until nothing is under way."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error = self._error
        self._error = None
        if error is not None:
            raise error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.wait()
            return
        # another error is under way, which says more
        with contextlib.suppress(Exception):
            self.wait()

    def _write(self, update: int, copied: State) -> None:
        try:
            _write(self._folder, {"update": update, **self._facts}, copied)
            self._saved = update
        except BaseException as err:
            self._error = err


def write(
    folder: Path,
    update: int,
    state: State,
    pending: Mapping[str, Tensor],
    trajectory: Mapping[str, Any],
    writes: bool = True,
) -> None:
    """Save into `folder`/<update>, read it back, then drop all but the last `NUM_KEPT`.

    writes: whether it is this process that does; those that share a network must all come here.

    Errors: DivergedError for weights that are not finite; MachineError. Nothing of the earlier
    saves is touched then.
    """
    _check_finite(update, state, bool)
    facts = {"update": update, "trajectory": dict(trajectory), "processes": 1}
    copied = _on_host(state, pending, writes)
    if writes:
        _write(folder, facts, copied)


def _check_finite(update: int, state: State, anywhere: Callable[[bool], bool]) -> None:
    verdicts = [torch.isfinite(local_shard(tensor)).all() for tensor in state["weights"].values()]
    # one answer for all tensors: each would be waited for. One for all processes: one that went on
    # alone would wait for the others for ever
    if anywhere(not bool(torch.stack(verdicts).all())):
        raise DivergedError(
            f"the weights are no longer finite after update {update}",
            "lower `learning_rate` and add --force to begin the stage again",
        )


def _on_host(state: State, pending: Mapping[str, Tensor], keeps: bool = True) -> State:
    """A copy of everything in the host's memory, for those that keep it; see `on_host`."""
    return {part: on_host(named, keeps) for part, named in {**state, "pending": pending}.items()}


def _write(folder: Path, facts: Mapping[str, Any], tensors: State) -> None:
    def fill(target: Path) -> None:
        for part, named in tensors.items():
            save_tensors(target / f"{part}.safetensors", dict(named))

    size = sum(map(num_bytes, tensors.values()))
    # older saves go only after this one was read back, which `write` does
    whole_folder.write(folder / f"{facts['update']:09d}", SAVE, facts, fill, size)
    for old in points(folder)[NUM_KEPT:]:
        _forget(old)


def newest(
    folder: Path, trajectory: Mapping[str, Any], say: Callable[[str], None]
) -> SavePoint | None:
    """The last save that is whole; None when there is none.

    say: told about every save that is damaged and passed over.
    Errors: UsageError when the run was begun with other values than `trajectory`, DataError with
    other pictures; ModelFileError when all of them are damaged.
    """
    found = points(folder)
    for point in found:
        try:
            return _read(point, trajectory, folder)
        except ModelFileError as err:
            say(_passed_over(err))
    if found:
        raise _none_whole(folder)
    return None


def clear(folder: Path) -> None:
    """Forget the saves of a stage that is complete.

    What vdiff did not make stays, and what holds it.
    """
    for point in points(folder):
        _forget(point)
    with contextlib.suppress(OSError):  # it holds something else, or is not there
        folder.rmdir()


def begin_anew(run: RunFolder, name: str) -> bool:
    """Have the savepoints of a stage lie beside those that are there, and its model stay;
    False where nothing is there of the stage.

    What an earlier such command has saved is forgotten.   Errors: MachineError.
    """
    clear(run.anew(name))
    if not run.model(name).exists() and not points(run.kept_saves(name)):
        return False
    text = json.dumps({"again": name}) + "\n"
    whole_folder.write_text(run.anew(name) / AGAIN, text, anything)
    return True


def settle(run: RunFolder, name: str, keeps_last: bool) -> None:
    """A stage is complete, and its model in place: forget its savepoints.

    keeps_last: all but the last, from which a longer training can go on.
    """
    anew, kept = run.anew(name), run.kept_saves(name)
    if run.is_anew(name):
        clear(kept)
        # From now on nobody goes on with it. Only then do its saves go: killed between the two, the
        # stage would be begun again, of which the model is there.
        (anew / AGAIN).unlink()
    if not keeps_last:
        clear(anew)
    elif points(anew):
        whole_folder.make(kept)
        for point in points(anew):
            if not (kept / point.name).exists():
                os_files.rename(point, kept / point.name)
    with contextlib.suppress(OSError):  # it is not there, or holds something else
        anew.rmdir()
    if keeps_last:
        keep_last(kept)
    else:
        clear(kept)


def _forget(point: Path) -> None:
    # somebody put something into it: that is no reason to end a training
    with contextlib.suppress(UsageError):
        whole_folder.remove(point, SAVE)


def keep_last(folder: Path) -> None:
    """Forget the saves of a stage that is complete, all but the last,
    from which a longer one can go on.
    """
    for old in points(folder)[1:]:
        _forget(old)


def reached(folder: Path, trajectory: Mapping[str, Any], say: Callable[[str], None]) -> int | None:
    """The update from which `newest` would go on, without taking its tensors into memory.

    Errors: those of `newest`, but for tensors that are whole and of another network.
    """
    found = points(folder)
    for point in found:
        try:
            return int(_verified(point, trajectory, folder)["update"])
        except ModelFileError as err:
            say(_passed_over(err))
    if found:
        raise _none_whole(folder)
    return None


def _passed_over(err: ModelFileError) -> str:
    told = err.problem
    if err.where:
        told += f" ({err.where})"
    return f"{told}; it is passed over"


def _none_whole(folder: Path) -> ModelFileError:
    return ModelFileError(
        "no save of this stage is whole", "add --force to begin the stage again", folder
    )


def _verified(point: Path, trajectory: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What a save tells of itself, after a look whether it is whole and of this training."""
    content = whole_folder.read(point, STATE)
    found = whole_folder.damage(point, content)
    if found:
        raise ModelFileError(f"`{point}` is damaged", "", "; ".join(found))
    update = content.get("update")
    before = content.get("trajectory")
    if type(update) is not int or not isinstance(before, dict):
        raise ModelFileError(
            f"`{point / STATE}` is damaged", "", "it does not tell its update and settings"
        )
    check_values(before, trajectory, folder)
    check_length(update, trajectory)
    return content


def _read(point: Path, trajectory: Mapping[str, Any], folder: Path) -> SavePoint:
    content = _verified(point, trajectory, folder)
    update = content["update"]
    before = content["trajectory"]
    processes = content.get("processes")
    if type(processes) is not int:
        processes = 1
    # nobody has vouched for any other file
    listed = (point / name for name in content["files"])
    parts = {path.stem: load_tensors(path) for path in listed if path.suffix == ".safetensors"}
    rows = parts.get("pending", {}).get("rows")
    if (
        not parts.keys() >= {"weights", "average", "optimizer"}
        or rows is None
        or rows.shape != (len(rows), 2)
    ):
        raise ModelFileError(f"`{point}` is damaged", "", "it does not list all that belongs to it")
    length = next((before[name] for name in LENGTHS if type(before.get(name)) is int), update)
    pending = parts.pop("pending")
    return SavePoint(update, parts, pending, processes, length)
