"""A store under construction: claimed by one process, built beside its final place, published by rename."""

import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from vdiff.errors import InUseError, MachineError
from vdiff.whole_folder import flush_one, make

_LOCK = ".lock"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make `folder` and hold it for this process; InUseError with the holder's name if another process does.

    The lock goes when its process does, however it dies.
    """
    with writing(folder):
        make(folder)
        lock = (folder / _LOCK).open("a+")
    with lock:
        _lock(lock, folder)
        if not _is_still(lock.fileno(), folder / _LOCK):
            raise InUseError(f"another process has just finished `{folder}`", "type the command again", folder)
        _sign(lock.fileno(), folder)
        yield


def refuse_if_claimed(folder: Path) -> None:
    """InUseError if another process holds `folder`: to be asked before long work. Nothing is written."""
    with suppress(OSError), (folder / _LOCK).open("r") as lock:
        _lock(lock, folder)


def publish(folder: Path, place: Path) -> None:
    """Rename the finished `folder` to `place`; what was there goes afterwards.

    Everything is on the disk before the rename: a loss of power at any moment leaves the old or the new store.
    """
    old = _replaced(place)
    with writing(place):
        for path in (*folder.iterdir(), folder):
            flush_one(path)
        if place.exists():
            discard(old)
            place.rename(old)
        folder.rename(place)
        flush_one(place.parent)
    tidy(place)


def tidy(place: Path) -> None:
    """Delete what publishing a store at `place` may have left: its lock, and the store that it replaced."""
    with writing(place):
        if (place / _LOCK).exists():  # a file system that is read-only refuses even to delete nothing
            (place / _LOCK).unlink(missing_ok=True)
        discard(_replaced(place))


def _replaced(place: Path) -> Path:
    """Where the old store is until it is deleted: a hidden name, that no folder of the user has."""
    return place.with_name(f".{place.name}.replaced")


def discard(folder: Path) -> None:
    """Delete a folder that vdiff made, if it is there; of a link to a folder, the link."""
    with suppress(FileNotFoundError):
        if folder.is_symlink():
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(folder)


def clear(folder: Path) -> None:
    """Delete the files in a claimed folder, all but its lock."""
    with writing(folder):
        for path in folder.iterdir():
            if path.name != _LOCK:
                path.unlink()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into a MachineError that names `path`."""
    try:
        yield
    except OSError as err:
        fix = "choose a place that can be written to and has space"
        raise MachineError(f"cannot write `{err.filename or path}`: {err.strerror}", fix, path) from err


def _lock(lock: IO[str], folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as err:
        lock.seek(0)
        raise InUseError(f"{lock.read() or 'another process'} works in `{folder}`", "wait for it", folder) from err


def _sign(lock: int, folder: Path) -> None:
    """Write this process's name into its lock; where the disk is too full even for that, a new folder goes again."""
    with writing(folder):
        try:
            os.truncate(lock, 0)
            os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
        except OSError:
            if [path.name for path in folder.iterdir()] == [_LOCK]:
                discard(folder)
            raise


def _is_still(descriptor: int, path: Path) -> bool:
    return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())
