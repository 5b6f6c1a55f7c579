"""One tracker that is open: what it is told of a training,
and the file in the run that remembers how far it was told.
"""

import json
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vdiff.choices import TrackerKind
from vdiff.disk import whole_folder
from vdiff.disk.ours import beginning, refuse_strange_file

PROJECT = "vdiff"
"""The name under which trackers that have projects keep runs."""


class Tracker:
    """A tracker of accelerate, opened by the subclass. It may raise whatever it likes."""

    _tracker: Any

    def _start(self, tracker: Any) -> None:
        """Open a tracker of accelerate, which this one is then."""
        self._tracker = tracker
        tracker.start()

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each of these curves."""
        self._tracker.log(values, step=step)

    def picture(self, name: str, picture: Tensor, step: int) -> None:
        """Show a picture, uint8 [C, H, W], without transparency."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing more will be told."""
        self._tracker.finish()


class ToldTracker(Tracker):
    """A tracker whose steps never go back. A file in the run remembers how far it was told: that is
    not told again.

    id: of its run; another one after `begin_anew`.
    """

    def __init__(self, kind: TrackerKind, folder: Path) -> None:
        """Read what is remembered; a subclass opens the tracker.

        Errors: UsageError, MachineError.
        """
        self._memory = memory_of(folder, kind)
        refuse_strange_file(self._memory, is_memory)
        known: dict[str, Any] = {}
        if self._memory.is_file():
            known = whole_folder.read_json(self._memory)
        self._id = str(known.get("id", uuid.uuid4().hex[:16]))
        self._told = int(known.get("last_step", -1))  # by earlier sittings
        self._last = self._told
        folder.mkdir(parents=True, exist_ok=True)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each of these curves, unless that was done before."""
        if step > self._told:
            super().log(values, step)
            self._remember(step)

    def picture(self, name: str, picture: Tensor, step: int) -> None:
        """Show a picture, uint8 [C, H, W], unless that was done before."""
        if step > self._told:
            self._show(name, picture, step)
            self._remember(step)

    def _show(self, name: str, picture: Tensor, step: int) -> None:
        raise NotImplementedError

    def _remember(self, step: int) -> None:
        if step > self._last:
            self._last = step
            remembered = json.dumps({"id": self._id, "last_step": step}) + "\n"
            whole_folder.write_text(self._memory, remembered, is_memory)


def memory_of(folder: Path, kind: str) -> Path:
    """The file that remembers the run of a tracker, and how far it was told."""
    return folder / f"{kind}.json"


def is_memory(path: Path) -> bool:
    """Whether vdiff has written this file: what anybody else has written is not replaced."""
    content = rb'\{("id": "\w+", "last_step": \d+)?\}\n?'
    return re.fullmatch(content, beginning(path, 300)) is not None
