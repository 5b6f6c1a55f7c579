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

# For each file whose pages were checked: its size and time then, and the checksum of the pages.
_checked: dict[_Identity, tuple[tuple[int, int], int]] = {}


class Opened(NamedTuple):
    """A file that `process` has mapped into memory.

    identity: device and inode.   size: how many bytes of the file LMDB may read.
    """

    process: int
    environment: Any
    identity: tuple[int, int]
    size: int

    def is_usable(self) -> bool:
        """Whether this process may read from it: LMDB forbids that after a fork,
        and `forget` may have closed it.
        """
        return self.process == os.getpid() and _files.get(self.identity) is self

    def is_cut_off(self, path: Path) -> bool:
        """Whether the file has become too short: reading from the map would then end
        the process with SIGBUS.
        """
        # A file that was deleted or replaced does no harm: the map keeps the old one as it is.
        with contextlib.suppress(FileNotFoundError):
            return _identity(path) == self.identity and (path / FILE).stat().st_size < self.size
        return False


def open_file(path: Path) -> Opened:
    """The store's file, opened once per process. `check_pages` must have been called before."""
    opened = _files.get(_identity(path))
    if opened is not None and opened.is_usable():
        return opened
    forget(path)
    identity = _identity(path)
    size = lmdb_pages.whole_size(path / FILE)
    # No lock: it would be a file beside the store, which may lie on a read-only disk. A finished
    # store never changes.
    environment = lmdb.open(os.fsencode(path), readonly=True, lock=False, create=False)
    opened = Opened(os.getpid(), environment, identity, size)
    _files[identity] = opened
    return opened


def forget(path: Path) -> None:
    """Close the store's file if this process, or the one that it was forked from, has it open."""
    opened = _files.pop(_identity(path), None)
    if opened is not None:
        opened.environment.close()


def check_pages(path: Path, writing: bool = False) -> int:
    """The CRC-32 of the pages that lead to the records. A file that has not changed is read only
    once.

    DataError if LMDB cannot read the file safely, or cannot write to it; PausedError if the machine
    refuses.
    """
    # liblmdb trusts its pages: at a damaged one it would abort, read beyond the file or go in a
    # circle.
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
    """The error for a store that cannot be read:
    PausedError if the machine refuses, DataError if it is damaged.
    """
    if is_of_machine(err):
        return paused(str(path), err)
    if isinstance(err, lmdb.Error) and is_refusal(str(err)):
        fix = "give it more memory, files or a better disk; the same command then goes on from here"
        return PausedError(f"cannot read the image store: {err}", fix, path)
    return damaged(path, str(err))


def damaged(path: Path, problem: str) -> DataError:
    """The error for a store that is not what it should be."""
    return DataError(
        f"the image store is damaged: {problem}", "make it again: vdiff prepare --force", path
    )


def _identity(path: Path) -> _Identity:
    status = (path / FILE).stat()
    return status.st_dev, status.st_ino
