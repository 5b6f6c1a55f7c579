"""Folders and files that appear complete or not at all: written beside, flushed to the disk, renamed."""

import contextlib
import errno
import os
import shutil
import stat
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from vdiff.errors import MachineError, ModelFileError
from vdiff.mark import damage, manifest, read, read_json, sealed, sha256_of

__all__ = [
    "check",
    "clean",
    "damage",
    "flush_one",
    "make",
    "read",
    "read_json",
    "remove",
    "sealed",
    "sha256_of",
    "write",
    "write_bytes",
    "write_text",
]

_BESIDE = ".partial-"
_OLD = "old-"


def write(
    target: Path,
    mark: str,
    facts: Mapping[str, Any],
    fill: Callable[[Path], None],
    num_bytes: int,
    unlisted: Collection[str] = (),
) -> dict[str, Any]:
    """Make the folder `target` with what `fill` puts into it and the file `mark`, which comes last.

    mark: name of the JSON file that holds `facts` and `files`: {relative path: {size, sha256}}. Returns its content.
    A folder that was there before is replaced, once the new one has been read back from the disk.
    num_bytes: about how many it will have, to be told where the disk is full.
    unlisted: files that the mark does not vouch for, as people may change them.
    Errors: MachineError when the disk refuses; the old folder is there then, and nothing beside it.
    """
    with _beside(target, num_bytes) as folder:
        fill(folder)
        content = {**facts, "files": {name: file for name, file in manifest(folder).items() if name not in unlisted}}
        (folder / mark).write_text(sealed(content), encoding="utf-8")
        _flush(folder)
        check(folder, mark, target)
        _publish(folder, target)
    return content


def check(folder: Path, mark: str, target: Path | None = None) -> None:
    """Read back what `write` left in `folder`, from the disk and not from memory where the system can tell them apart.

    target: the name that errors give it.   Errors: MachineError when anything is not as it was written.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            _forget_cached(path)
    try:
        found = damage(folder, read(folder, mark))
    except ModelFileError as err:
        found = [err.problem]
    if found:
        problem = f"what was written to `{target or folder}` cannot be read back: {found[0]}"
        raise MachineError(problem, "look at the disk's health, or write to another disk", "; ".join(found[1:3]))


def write_text(path: Path, text: str) -> None:
    """Make or replace the file `path` in one step: a reader finds the old text or the new one, also after a power cut.

    Errors: MachineError when the disk refuses; the old text is still there then, and nothing beside it.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """As `write_text`, with bytes."""
    beside = _name_beside(path)
    with refusals(path, len(data)):
        make(path.parent)
        try:
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
            flush_one(path.parent)
        finally:
            _delete(beside)


def clean(parent: Path) -> None:
    """Remove what writers that were killed left beside their targets in `parent`, and put back what they set aside."""
    for leftover in parent.glob(f".*{_BESIDE}*"):
        name, _, kind = leftover.name.removeprefix(".").partition(_BESIDE)
        if kind.startswith(_OLD) and not os.path.lexists(parent / name):
            leftover.rename(parent / name)
        else:
            _delete(leftover)


def remove(folder: Path) -> None:
    """Remove a folder in one step, if it is there: one that is half removed is never found under its name.

    What a kill leaves of it is for `clean`.   Errors: MachineError.
    """
    if os.path.lexists(folder):
        with refusals(folder):
            beside = _name_beside(folder)
            _delete(beside)
            try:
                folder.rename(beside)
                flush_one(folder.parent)  # else its files may be gone and its name back after a power cut
            finally:
                _delete(beside)


@contextlib.contextmanager
def _beside(target: Path, num_bytes: int) -> Iterator[Path]:
    folder = _name_beside(target)
    with refusals(target, num_bytes):
        try:
            make(target.parent)
            _delete(folder)
            folder.mkdir()
            yield folder
        finally:
            _delete(folder)


def _name_beside(target: Path, kind: str = "") -> Path:
    """Where it is written, or set aside; threads of one process do not meet."""
    return target.with_name(f".{target.name}{_BESIDE}{kind}{os.getpid()}-{threading.get_native_id()}")


@contextlib.contextmanager
def refusals(target: Path, num_bytes: int = 0) -> Iterator[None]:
    """Errors of the disk while `target` is written, of about so many bytes, in words."""
    try:
        yield
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            there = next(folder for folder in target.absolute().parents if folder.exists())
            free = shutil.disk_usage(there).free
            fix = "free some space and run the same command again: it goes on where it stopped"
            needed = f"{num_bytes:,} bytes are needed, " if num_bytes else ""
            raise MachineError(f"the disk is full: {needed}{free:,} are free", fix, target) from err
        fix = "choose a folder you may write to, and look at the disk's health"
        raise MachineError(f"cannot write `{target}`: {err.strerror or err}", fix) from err


def _publish(folder: Path, target: Path) -> None:
    """Give the finished `folder` its name; whatever fails, what had that name before has it again."""
    old = _set_aside(target)
    try:
        folder.rename(target)
        flush_one(target.parent)
    except BaseException:
        if not folder.exists():
            target.rename(folder)
        if old is not None:
            old.rename(target)
        raise
    if old is not None:
        try:
            old.rename(folder)  # no longer a name that `clean` would put back when it is half removed
        except OSError:
            _delete(old)


def _set_aside(target: Path) -> Path | None:
    if not os.path.lexists(target):
        return None
    old = _name_beside(target, _OLD)
    _delete(old)
    target.rename(old)
    return old


def _delete(path: Path) -> None:
    """As far as the disk allows; of a link, only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def make(folder: Path, made: list[Path] | None = None) -> None:
    """Make a folder and its parents, so that they are there after a power cut.

    made: takes those that were not there.   Errors: OSError; FileExistsError where something else is in the place.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):  # somebody else makes the same one
            each.mkdir()
            if made is not None:
                made.append(each)
            flush_one(each.parent)
    if is_taken(folder):
        raise FileExistsError(errno.EEXIST, "something else than a folder is there", str(folder))


def is_taken(place: Path) -> bool:
    """Whether no folder can be made here: there is a file, or a link that leads nowhere."""
    try:
        return not stat.S_ISDIR(place.stat().st_mode)
    except FileNotFoundError:
        return place.is_symlink()


def _flush(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        flush_one(path)
    flush_one(folder)


def flush_one(path: Path) -> None:
    """Bring a file, or the names in a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _forget_cached(path: Path) -> None:
    """Drop what memory holds of a flushed file: the next reading asks the disk."""
    if hasattr(os, "POSIX_FADV_DONTNEED"):
        with path.open("rb") as file, contextlib.suppress(OSError):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
