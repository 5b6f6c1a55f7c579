"""status.json: what a run says about itself while it works and after its end,
for people, schedulers and `inspect`.
"""

import contextlib
import json
import math
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Self

from vdiff import __version__
from vdiff.disk import whole_folder
from vdiff.errors import ModelFileError, UsageError, VdiffError
from vdiff.runs.contents import is_status
from vdiff.runs.folder import RunFolder
from vdiff.training.progress import Progress, StageRow

State = Literal["running", "done", "stopped", "failed", "killed"]

SECONDS_BETWEEN = 30.0
"""A working run writes at least this often, so that one can see that it is alive."""


@dataclass(frozen=True)
class Status:
    """The content of status.json.

    state: `running`, `done`, `stopped` (somebody asked, everything is saved) or `failed`; a reader
    says `killed` of a run that is marked as running and does not.   exit_code: None while it runs.
    reason: why it ended.
    resume_command: what to type to go on.   stage, update, updates: where it is.
    began, changed: times in UTC.
    machine: what it works on, in words.   seconds: how long each stage was worked on, in all
    sittings together.
    """

    state: State
    resume_command: str
    stage: str = ""
    update: int = 0
    updates: int = 0
    exit_code: int | None = None
    reason: str = ""
    pid: int = 0
    host: str = ""
    began: str = ""
    changed: str = ""
    machine: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    made_by: str = f"vdiff {__version__}"


def read(path: Path, is_at_work: bool | None = None) -> Status | None:
    """What a run says about itself; None where it says nothing that can be believed.

    is_at_work: whether a process holds the run; one that is marked as running and does not was
    killed. None: look.
    """
    try:
        content = whole_folder.read_json(path)
    except (ModelFileError, OSError):
        return None
    kinds = {name: type(value) for name, value in asdict(_EXAMPLE).items()}
    known = {name: value for name, value in content.items() if type(value) is kinds.get(name)}
    if content.get("state") not in ("running", "done", "stopped", "failed"):
        return None
    known["seconds"] = {
        str(name): value for name, value in known.get("seconds", {}).items() if _is_duration(value)
    }
    status = replace(_EXAMPLE, **{"exit_code": None, **known})
    if is_at_work is None:
        is_at_work = RunFolder(path.parent).is_at_work()
    if status.state == "running" and not is_at_work:
        return replace(status, state="killed")
    return status


_EXAMPLE = Status("running", "", exit_code=0, made_by="")


def _is_duration(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


class _Sitting(NamedTuple):
    """A stage that is being worked on since `begun` (a monotonic clock), and the seconds that
    earlier sittings spent on it.
    """

    stage: str
    begun: float
    before: float


_NO_SITTING = _Sitting("", 0.0, 0.0)


class StatusWriter:
    """Passes on what a run tells, and writes status.json from it. A disk that refuses does not end
    the run here.

    path: of status.json, whose seconds are gone on from.   resume_command: what to type to go on.
    machine: what the run works on, in words.
    """

    def __init__(self, told: Progress, path: Path, resume_command: str, machine: str = "") -> None:
        self._told = told
        self._path = path
        self._written = 0.0
        self._has_begun = False
        self._is_fresh = not path.exists()
        self._before = read(path, is_at_work=False)
        self._seconds: dict[str, float] = {}
        if self._before is not None:
            self._seconds |= self._before.seconds
        self._sitting = _NO_SITTING
        own = {"pid": os.getpid(), "host": socket.gethostname(), "began": _now(), "changed": _now()}
        self._status = Status("running", resume_command, machine=machine, **own)  # type: ignore[arg-type]

    def show_stages(self, stages: Sequence[StageRow]) -> None:
        self._told.show_stages(stages)

    def begin(self, stage: str, updates: int, first_update: int) -> None:
        self._has_begun = True
        before = 0.0
        if first_update:
            before = self._seconds.get(stage, 0.0)
        self._sitting = _Sitting(stage, time.monotonic(), before)
        self._write(stage=stage, updates=updates, update=first_update)
        self._told.begin(stage, updates, first_update)

    def update(
        self,
        update: int,
        loss: float,
        grad_norm: float,
        learning_rate: float,
        images_per_second: float,
    ) -> None:
        self._status = replace(self._status, update=update)
        if time.monotonic() - self._written > SECONDS_BETWEEN:
            self._write()
        self._told.update(update, loss, grad_norm, learning_rate, images_per_second)

    def saved(self, what: str) -> None:
        self._write()
        self._told.saved(what)

    def note(self, text: str) -> None:
        self._told.note(text)

    def end(self, stage: str, loss: float, seconds: float) -> None:
        self._write()
        self._sitting = _NO_SITTING
        self._told.end(stage, loss, seconds)

    def close(self) -> None:
        self._told.close()

    def ended(self, state: State, exit_code: int, reason: str = "") -> None:
        """The last word. A command that failed before it began anything leaves
        none in a fresh folder.

        In another one it leaves where the run is and the command to go on as they were: a slip must
        not hide them.
        """
        if not self._has_begun and (self._is_fresh or exit_code == UsageError.exit_code):
            return
        if not self._has_begun and self._before is not None and state == "failed":
            kept = {
                name: getattr(self._before, name)
                for name in ("stage", "update", "updates", "resume_command")
            }
            self._status = replace(self._status, **kept)
        self._write(state=state, exit_code=exit_code, reason=reason)

    def __enter__(self) -> Self:
        self._told.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._told.__exit__(kind, err, trace)

    def _write(self, **changes: object) -> None:
        sitting = self._sitting
        if sitting.stage:
            spent = time.monotonic() - sitting.begun
            self._seconds[sitting.stage] = round(sitting.before + spent, 1)
        self._status = replace(self._status, changed=_now(), seconds=dict(self._seconds), **changes)  # type: ignore[arg-type]
        self._written = time.monotonic()
        with contextlib.suppress(VdiffError):  # what matters is said by whoever cannot save
            whole_folder.write_text(
                self._path, json.dumps(asdict(self._status), indent=1) + "\n", is_status
            )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
