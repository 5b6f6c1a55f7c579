"""LMDB files that this process has opened for reading, and whose pages it has looked at."""

import contextlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import lmdb

from vdiff.data import lmdb_pages
from vdiff.data.patience import is_of_machine, is_refusal, paused
from vdiff.data.seal import FILE
from vdiff.errors import DataError, PausedError, VdiffError

_Identity = tuple[int, int]
"""Device and inode."""

# LMDB allows one environment per file and process.
_files: dict[_Identity, "Opened"] = {}

# Size and time of files whose pages were looked at, and the checksum of these.
_checked: dict[_Identity, tuple[tuple[int, int], int]] = {}


class Opened(NamedTuple):
    """A file that `process` has mapped, by device and inode; `size`: how far it must go."""

    process: int
    environment: Any
    identity: tuple[int, int]
    size: int

    def is_usable(self) -> bool:
        return self.process == os.getpid() and _files.get(self.identity) is self

    def is_cut_off(self, path: Path) -> bool:
        """Whether reading would end the process. A file that was deleted or replaced stays as it is in the map."""
        with contextlib.suppress(FileNotFoundError):
            return _identity(path) == self.identity and (path / FILE).stat().st_size < self.size
        return False


def open_file(path: Path) -> Opened:
    """The file of the store as this process has it open, or opens it now; its pages must have been looked at."""
    if not (found := _files.get(_identity(path))) or not found.is_usable():
        forget(path)
        identity, size = _identity(path), lmdb_pages.whole_size(path / FILE)
        environment = lmdb.open(os.fsencode(path), readonly=True, lock=False, create=False)
        found = _files[identity] = Opened(os.getpid(), environment, identity, size)
    return found


def forget(path: Path) -> None:
    """Close what this process, or the one that it was forked from, has open of the store."""
    if found := _files.pop(_identity(path), None):
        found.environment.close()


def check_pages(path: Path, writing: bool = False) -> int:
    """The CRC-32 of the pages that lead to the records; a file is looked at once.

    DataError if LMDB cannot read the file safely, or cannot write to it; PausedError if the machine refuses.
    """
    try:
        status = (path / FILE).stat()
        state = (status.st_size, status.st_mtime_ns)
        if writing:
            lmdb_pages.check_for_writing(path / FILE)
            return 0
        checked, pages = _checked.get(_identity(path), (None, 0))
        if checked != state:
            pages = lmdb_pages.check(path / FILE)
            _checked[_identity(path)] = (state, pages)
        return pages
    except (ValueError, OSError) as err:
        raise unreadable(path, err) from err


def unreadable(path: Path, err: OSError | lmdb.Error | ValueError) -> VdiffError:
    """What to raise when the store cannot be read: the machine refuses, which is not its fault, or it is damaged."""
    if is_of_machine(err):
        return paused(str(path), err)
    if isinstance(err, lmdb.Error) and is_refusal(str(err)):
        fix = "give it more memory, files or a better disk; the same command then goes on from here"
        return PausedError(f"cannot read the image store: {err}", fix, path)
    return damaged(path, str(err))


def damaged(path: Path, problem: str) -> DataError:
    """What to raise when the store is not what it should be."""
    return DataError(
        f"the image store is damaged: {problem}", "make it again: vdiff prepare --force", path
    )


def _identity(path: Path) -> _Identity:
    status = (path / FILE).stat()
    return status.st_dev, status.st_ino
