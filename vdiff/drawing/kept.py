"""What an interrupted drawing has come to:
its batches, kept in a folder beside the place that the pictures go to, until they are there.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vdiff.disk import array_file, lock, manifest, whole_folder
from vdiff.disk.ours import Kind, anything
from vdiff.errors import ModelFileError, UsageError

ABOUT = "drawing.json"
"""The file that tells what is drawn."""

_BATCH = r"\d{8,}\.npz"
_WRITTEN = rf"{re.escape(ABOUT)}|{_BATCH}"
_LOCK = re.escape(lock.FILE)


def _was_just_begun(folder: Path) -> bool:
    """Whether a process was killed here before it could tell what it draws, or what it told is
    damaged.
    """
    names = {path.name for path in folder.iterdir()}
    return lock.is_signed(folder) and all(_OURS.fullmatch(name) for name in names)


_OURS = re.compile(rf"{_WRITTEN}|{_LOCK}|\.({_WRITTEN})\.partial-\d+(-\d+)*")


KEPT = Kind(
    ABOUT,
    _OURS,
    _was_just_begun,
)
"""How vdiff knows a folder of batches that it left."""


class KeptBatches:
    """The batches of one drawing that are done: `.x.npz.drawing/` beside `x.npz`.

    target: where the pictures go.
    about: all that shapes them, and how they are divided into batches; as JSON holds it.
    """

    def __init__(self, target: Path, about: Mapping[str, str | int]) -> None:
        self._target = target
        self._about = dict(about)
        # `.` has a name of its own elsewhere
        place = target if target.name else Path(os.path.abspath(target))
        self.folder = place.parent / f".{place.name or 'root'}.drawing"

    def is_begun(self) -> bool:
        """Whether an earlier command has left batches of this very drawing, as far as `about` goes.

        Errors: UsageError for a folder that vdiff did not make.
        """
        before = self._before()
        return before is not None and not self._changes(before)

    def may_replace(self) -> bool:
        """Whether what is at the target may go: an earlier command was told so, or had made it."""
        before = self._before()
        return self.is_begun() and before is not None and before.get("replaces") is True

    def refuse_other(self) -> None:
        """UsageError where another drawing for the same target is begun and not finished."""
        before = self._before()
        changes = self._changes(before or {})
        if before is None or not changes:
            return
        problem = f"another drawing for `{self._target}` is begun, and the two are not mixed"
        fix = (
            "type that command again and it goes on; or `--force` gives up what it has drawn; "
            "or name another place: --out PATH"
        )
        raise UsageError(problem, fix, "; ".join(changes))

    def refuse_if_held(self) -> None:
        """InUseError where another command draws for the same target."""
        lock.refuse_if_held(self.folder)

    @contextlib.contextmanager
    def held(self, replaces: bool) -> Iterator[None]:
        """Keep others out. Within it batches are read and written, and what another drawing has
        left is given up.

        replaces: whether something is at the target, and may go.
        When nothing was kept, nothing stays behind.
        Errors: InUseError; UsageError for what vdiff did not make; MachineError.
        """
        KEPT.refuse_stranger(self.folder)
        with lock.held(self.folder):
            KEPT.refuse_stranger(self.folder)
            for leftover in self.folder.glob(".*.partial-*"):
                leftover.unlink(missing_ok=True)
            if not self.is_begun():
                for batch in self._batches():
                    batch.unlink(missing_ok=True)
            try:
                self._tell(replaces or self.may_replace())
                yield
            finally:
                if not self._batches():
                    self.forget()

    def read(self, start: int, shape: tuple[int, ...]) -> Tensor | None:
        """The batch that begins at this place, uint8 of this shape [b, C, H, W]; None where it is
        not there, or damaged.
        """
        images = (array_file.read(self._path(start)) or {}).get("images", _NOTHING)
        if images.shape != shape or images.dtype != np.uint8:
            return None
        return torch.from_numpy(images)

    def write(self, start: int, images: Tensor) -> None:
        """Keep a batch, whole or not at all.   Errors: MachineError."""
        data = array_file.packed({"images": images.numpy()})
        # Not flushed: a batch that a power cut has damaged does not have its CRC, and is made anew.
        whole_folder.write_bytes(self._path(start), data, anything, is_flushed=False)

    def count(self) -> int:
        """How many batches are kept."""
        return len(self._batches())

    def is_ending(self) -> None:
        """All batches are there: from now on what is at the target is of this drawing."""
        self._tell(replaces=True)

    def forget(self) -> None:
        """The pictures are where they belong. What vdiff did not make stays."""
        KEPT.delete(self.folder)

    def _before(self) -> dict[str, Any] | None:
        if not os.path.lexists(self.folder):
            return None
        KEPT.refuse_stranger(self.folder)
        try:
            return manifest.read(self.folder, ABOUT)
        except ModelFileError:
            return None

    def _changes(self, before: Mapping[str, Any]) -> list[str]:
        """What differs, as `steps: 4 -> 2`."""
        return [
            f"{name}: {_brief(before.get(name))} -> {_brief(now)}"
            for name, now in self._about.items()
            if before.get(name) != now
        ]

    def _tell(self, replaces: bool) -> None:
        # `files`: none of the batches is listed, each has its own checksum
        content: dict[str, Any] = {**self._about, "replaces": replaces, "files": {}}
        whole_folder.write_text(self.folder / ABOUT, manifest.sealed(content), anything)

    def _batches(self) -> list[Path]:
        return [path for path in self.folder.glob("*.npz") if re.fullmatch(_BATCH, path.name)]

    def _path(self, start: int) -> Path:
        return self.folder / f"{start:08d}.npz"


def _brief(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) <= _MOST_SHOWN:
        return text
    return f"{text[:_MOST_SHOWN]}..."


_MOST_SHOWN = 60
_NOTHING = np.zeros(0)
