"""What a training tells: a line of log.jsonl per so many updates, the trackers and the progress on the screen."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdiff.errors import DivergedError
from vdiff.training.machine import Machine
from vdiff.training.report import Progress
from vdiff.training.settings import FitSection

Track = Callable[[Mapping[str, float], int], Any]

_READ_SECONDS = 2.0
"""Between two lines of the log, the loss is read back from the device this often, for the screen."""


class Report:
    """Collects losses on the device and reads them back in batches, so that the loop never waits for the device.

    path: log.jsonl.   first_update: updates that were done before.   pending: what `pending` gave with the save.
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
        pending: Tensor | None = None,
        offset: int = 0,
    ) -> None:
        self.is_first_update = True
        self.loss = float("nan")
        self._stage, self._settings, self._machine, self._progress = stage, settings, machine, progress
        self._path, self._track, self._offset = path, track, offset
        self._pending = list(_own_part(pending, machine)) if pending is not None else []
        self._shown = (float("nan"), float("nan"))
        self._first_update, self._begun = first_update, time.monotonic()
        self._last_read = 0.0
        if machine.is_first:
            _forget_after(path, stage, first_update)

    def add(self, update: int, measured: Tensor, learning_rate: float) -> None:
        """Take in one update. measured: [this process's part of the loss, norm of the gradient], on the device."""
        self._pending.append(measured)
        self.is_first_update = False
        if update % self._settings.log_every == 0 or update == self._settings.updates:
            self._write(update, learning_rate)
        elif time.monotonic() - self._last_read > _READ_SECONDS:
            self._shown = (float(measured[0]) * self._machine.world_size, float(measured[1]))
            self._last_read = time.monotonic()
        speed = (update - self._first_update) * self._settings.batch_size / (time.monotonic() - self._begun)
        self._progress.update(update, *self._shown, learning_rate, speed)

    def pending(self) -> Tensor:
        """The [loss, gradient norm] of updates that no line holds yet, float32 [n, 2]; every process must ask."""
        if not self._pending:
            return torch.zeros(0, 2)
        measured = torch.stack(self._pending)
        return torch.stack([self._machine.sum(measured[:, 0].contiguous()), measured[:, 1]], 1).cpu()

    def _write(self, update: int, learning_rate: float) -> None:
        measured = torch.stack(self._pending)
        losses = self._machine.sum(measured[:, 0].contiguous()).cpu()
        self._pending.clear()
        values = {
            "loss": float(losses.mean()),
            "grad_norm": float(measured[:, 1].mean()),
            "learning_rate": learning_rate,
        }
        self._shown, self._last_read = (values["loss"], values["grad_norm"]), time.monotonic()
        self.loss = values["loss"]
        if not all(torch.isfinite(torch.tensor(value)) for value in values.values()):
            raise DivergedError(
                f"the loss of `{self._stage}` is no longer finite at update {update}",
                "lower `learning_rate` and add --force to begin the stage again",
            )
        if self._machine.is_first:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"stage": self._stage, "update": update, **values}) + "\n")
            self._track({f"{self._stage}/{name}": value for name, value in values.items()}, self._offset + update)


def _own_part(pending: Tensor, machine: Machine) -> Tensor:
    """Losses were summed over the processes when they were saved: the first one takes them over."""
    share = torch.tensor([float(machine.is_first), 1.0])
    return (pending * share).to(machine.device)


def _forget_after(path: Path, stage: str, update: int) -> None:
    """Drop the lines of updates that will be done again."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not _is_after(line, stage, update)]
    if kept != lines:
        beside = path.with_suffix(".partial")
        beside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        beside.replace(path)


def _is_after(line: str, stage: str, update: int) -> bool:
    try:
        entry = json.loads(line)
        return bool(entry["stage"] == stage and entry["update"] > update)
    except (ValueError, KeyError, TypeError):
        return True  # half a line, from a writer that was killed
