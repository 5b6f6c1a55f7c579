"""What a training tells: a line of log.jsonl per so many updates,
the trackers and the progress on the screen.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vdiff.disk import whole_folder
from vdiff.errors import DivergedError
from vdiff.machine.machine import Machine
from vdiff.system.plural import count
from vdiff.training.log_file import is_log
from vdiff.training.progress import Progress
from vdiff.training.settings import FitSection

Track = Callable[[Mapping[str, float], int], Any]

MOST_SKIPPED = 10
"""So many updates in a row with a loss or gradient that is not finite end a training."""

_MOST_DEBT = 3 * MOST_SKIPPED
"""So does this: a skipped update counts 2, a sound one takes 1 off.
One in three may be skipped for ever, not more.
"""

_READ_SECONDS = 2.0
"""Between two lines of the log, the loss is read back from the device this often,
for the screen.
"""


class LossRecord:
    """Collects losses on the device and reads them back in batches,
    so that the loop never waits for the device.

    path: log.jsonl.   first_update: updates that were done before.
    pending: what `pending` gave with the save. MOST_SKIPPED updates in a row that are not finite,
    or more than one in three for long, raise DivergedError, at the next line or save: in all
    processes.
    offset: updates of the stages before, so that the trackers' axis never goes backwards.
    """

    def __init__(
        self,
        stage: str,
        settings: FitSection,
        machine: Machine,
        progress: Progress,
        path: Path,
        track: Track,
        first_update: int = 0,
        pending: Mapping[str, Tensor] | None = None,
        offset: int = 0,
    ) -> None:
        self.loss = float("nan")
        self._stage = stage
        self._settings = settings
        self._machine = machine
        self._progress = progress
        self._path = path
        self._track = track
        self._offset = offset
        self._pending: list[Tensor] = []
        self._skips = _Skips(0, 0)
        if pending is not None:
            self._pending += _own_part(pending["rows"], machine)
            # saves of earlier versions do not tell
            if "skips" in pending:
                self._skips = _Skips(*pending["skips"].tolist())
        # loss and norm of the gradient, as the screen has them
        self._shown = (float("nan"), float("nan"))
        self._first_update = first_update
        self._begun = time.monotonic()
        self._last_read = 0.0
        if machine.is_first:
            _forget_after(path, stage, first_update)

    def add(self, update: int, measured: Tensor, learning_rate: float) -> None:
        """Take in one update. measured: [this process's part of the loss, norm of the gradient],
        on the device.
        """
        self._pending.append(measured)
        if update % self._settings.log_every == 0 or update == self._settings.updates:
            self._write(update, learning_rate)
        elif time.monotonic() - self._last_read > _READ_SECONDS:
            self._shown = (float(measured[0]) * self._machine.world_size, float(measured[1]))
            self._last_read = time.monotonic()
        num_images = (update - self._first_update) * self._settings.batch_size
        speed = num_images / (time.monotonic() - self._begun)
        self._progress.update(update, *self._shown, learning_rate, speed)

    def check_learned(self) -> None:
        """DivergedError, in all processes, after a training in which not a
        single update was finite.
        """
        if self._skips.total >= self._settings.updates:
            problem = (
                f"`{self._stage}` learned nothing: all its updates had a loss or "
                "gradient that is not finite"
            )
            raise DivergedError(problem, _FIX)

    def pending(self) -> dict[str, Tensor]:
        """What no line of the log holds yet, on the CPU; every process must ask.

        rows: [loss, gradient norm] of the updates since the last line, [n, 2].
        skips: as they were at that line.
        """
        rows = self._rows()
        self._skips.after(rows, self._stage)
        return {"rows": rows, "skips": torch.tensor(self._skips)}

    def trend(self, update: int, values: Mapping[str, float | None], num_images: int) -> None:
        """A line of its own for what was measured of so many pictures of the network;
        no time is in it.
        """
        if self._machine.is_first:
            line = {
                "stage": self._stage,
                "update": update,
                "num_images": num_images,
                "trend": dict(values),
            }
            with self._path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(line) + "\n")
            # numbers of another number of pictures are another curve
            curve = f"{self._stage}/trend-{num_images}"
            known = {
                f"{curve}/{name}": value for name, value in values.items() if value is not None
            }
            self._track(known, self._offset + update)

    def _rows(self) -> Tensor:
        """The measurements since the last line, losses summed over the processes:
        float32 [n, 2] on the CPU.
        """
        if not self._pending:
            return torch.zeros(0, 2)
        measured = torch.stack(self._pending)
        return torch.stack(
            [self._machine.sum(measured[:, 0].contiguous()), measured[:, 1]], 1
        ).cpu()

    def _write(self, update: int, learning_rate: float) -> None:
        rows = self._rows()
        before = self._skips.total
        self._pending.clear()
        self._skips = self._skips.after(rows, self._stage)
        if self._skips.total > before:
            told = (
                f"{self._skips.total - before} of the last {count(len(rows), 'update')} of "
                f"`{self._stage}` were skipped"
            )
            self._progress.note(f"{told}: their loss or gradient was not finite")
        finite = rows[rows.isfinite().all(1)]
        loss: float | None = None
        grad_norm: float | None = None
        if len(finite):
            loss, grad_norm = finite.mean(0).tolist()
        values = {
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "skipped": self._skips.total,
        }
        if loss is not None and grad_norm is not None:
            self.loss = loss
            self._shown = (loss, grad_norm)
            self._last_read = time.monotonic()
        if self._machine.is_first:
            with self._path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps({"stage": self._stage, "update": update, **values}) + "\n")
            known = {
                f"{self._stage}/{name}": value
                for name, value in values.items()
                if value is not None
            }
            self._track(known, self._offset + update)


_FIX = "lower `learning_rate` and add --force to begin the stage again"


class _Skips(NamedTuple):
    """Updates that were skipped: in a row until now, in all, and as `_MOST_DEBT` counts them."""

    in_a_row: int
    total: int
    debt: int = 0  # saves of vdiff 0.1 have none

    def after(self, rows: Tensor, stage: str) -> "_Skips":
        """With the updates of further `rows` counted in.

        Errors: DivergedError when too many in a row are skipped.
        """
        in_a_row, total, debt = self
        for is_finite in rows.isfinite().all(1).tolist():
            if is_finite:
                in_a_row = 0
                debt = max(debt - 1, 0)
            else:
                in_a_row += 1
                total += 1
                debt += 2
            if in_a_row >= MOST_SKIPPED:
                problem = (
                    f"`{stage}` diverged: {in_a_row} updates in a row had a loss or "
                    "gradient that is not finite"
                )
                raise DivergedError(problem, _FIX)
            if debt >= _MOST_DEBT:
                problem = (
                    f"`{stage}` diverged: of its last updates, "
                    "more than one in three had a loss or gradient that"
                )
                raise DivergedError(f"{problem} is not finite ({total} in all)", _FIX)
        return _Skips(in_a_row, total, debt)


def _own_part(pending: Tensor, machine: Machine) -> Tensor:
    """Losses were summed over the processes when they were saved: the first one takes them over."""
    share = torch.tensor([float(machine.is_first), 1.0])
    return (pending * share).to(machine.device)


def _forget_after(path: Path, stage: str, update: int) -> None:
    """Drop the lines of updates that will be done again."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines()
    kept = [line for line in lines if not _is_after(line, stage, update)]
    if kept != lines:
        whole_folder.write_text(path, "".join(f"{line.decode()}\n" for line in kept), is_log)


def _is_after(line: bytes, stage: str, update: int) -> bool:
    try:
        entry = json.loads(line.decode())
        return bool(entry["stage"] == stage and entry["update"] > update)
    except (ValueError, KeyError, TypeError):
        return True  # damaged, or half a line from a writer that was killed
