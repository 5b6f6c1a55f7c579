"""A store under construction: claimed by one process, built beside its final place, published by rename."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vdiff import lock
from vdiff.errors import MachineError
from vdiff.whole_folder import flush_one


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
        if (place / lock.FILE).exists():  # a file system that is read-only refuses even to delete nothing
            (place / lock.FILE).unlink(missing_ok=True)
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
            if path.name != lock.FILE:
                path.unlink()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into a MachineError that names `path`."""
    try:
        yield
    except OSError as err:
        fix = "choose a place that can be written to and has space"
        raise MachineError(f"cannot write `{err.filename or path}`: {err.strerror}", fix, path) from err
