"""Folders and files that appear complete or not at all: written beside, flushed to the disk, renamed."""

import contextlib
import errno
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from vdiff.disk import os_files
from vdiff.disk.manifest import damage, manifest, read, read_json, sealed, sha256_of
from vdiff.disk.ours import IsOurs, Kind, refuse_strange_file, strange
from vdiff.errors import MachineError, ModelFileError
from vdiff.system.os_processes import is_alive

__all__ = [
    "check",
    "clean",
    "damage",
    "flush_one",
    "forget_leftovers",
    "free_beside",
    "is_leftover",
    "is_taken",
    "make",
    "publish",
    "publish_file",
    "read",
    "read_json",
    "refusals",
    "remove",
    "sealed",
    "sha256_of",
    "write",
    "write_bytes",
    "write_text",
]

_BESIDE = ".partial-"
_OLD = "old-"
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.partial-(?P<old>old-)?\d+(-\d+)*", re.DOTALL)
_AGAIN = "move it away, and type the same command again: what was done until now is kept"


def write(
    target: Path,
    kind: Kind,
    facts: Mapping[str, Any],
    fill: Callable[[Path], None],
    num_bytes: int,
    unlisted: Collection[str] = (),
) -> dict[str, Any]:
    """Make the folder `target` with what `fill` puts into it and the mark of its kind, which comes last.

    The mark is a JSON file that holds `facts` and `files`: {relative path: {size, sha256}}. Returns its content.
    A folder of the kind that was there before is replaced, once the new one has been read back from the disk.
    num_bytes: about how many it will have, to be told where the disk is full.
    unlisted: files that the mark does not vouch for, as people may change them.
    Errors: MachineError when the disk refuses, UsageError for what vdiff did not make; what was there before is there
    then, and nothing beside it.
    """
    with _beside(target, kind, num_bytes) as folder:
        fill(folder)
        content = {
            **facts,
            "files": {
                name: file for name, file in manifest(folder).items() if name not in unlisted
            },
        }
        (folder / kind.mark).write_text(sealed(content), encoding="utf-8", newline="\n")
        _flush(folder)
        check(folder, kind.mark, target)
        publish(folder, target, kind)
    return content


def check(folder: Path, mark: str, target: Path | None = None) -> None:
    """Read back what `write` left in `folder`, from the disk and not from memory where the system can tell them apart.

    target: the name that errors give it.   Errors: MachineError when anything is not as it was written.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            os_files.forget_cached(path)
    try:
        found = damage(folder, read(folder, mark))
    except ModelFileError as err:
        found = [err.problem]
    if found:
        problem = f"what was written to `{target or folder}` cannot be read back: {found[0]}"
        raise MachineError(
            problem, "look at the disk's health, or write to another disk", "; ".join(found[1:3])
        )


def write_text(path: Path, text: str, is_ours: IsOurs) -> None:
    """Make or replace the file `path` in one step: a reader finds the old text or the new one, also after a power cut.

    is_ours: whether the file that is there was made by vdiff; any other is not replaced.
    Errors: MachineError when the disk refuses, UsageError for what vdiff did not make; the old text is still there
    then, and nothing beside it.
    """
    write_bytes(path, text.encode(), is_ours)


def write_bytes(path: Path, data: bytes, is_ours: IsOurs, is_flushed: bool = True) -> None:
    """As `write_text`, with bytes. is_flushed: not, for what is quickly made again after a power cut."""
    with refusals(path, len(data)):
        make(path.parent)
        beside = free_beside(path)
        try:
            with beside.open("xb") as file:
                file.write(data)
                if is_flushed:
                    file.flush()
                    os_files.flush(file.fileno())
            publish_file(beside, path, is_ours)
            if is_flushed:
                flush_one(path.parent)
        finally:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)


def publish_file(beside: Path, path: Path, is_ours: IsOurs) -> None:
    """Give the finished file `beside` its name.   Errors: UsageError for what vdiff did not make; OSError."""
    refuse_strange_file(path, is_ours)
    os_files.replace(beside, path)


def forget_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what processes of this machine that have ended left in `folder` of files that they wrote.

    name: of the file; None for any.
    """
    for leftover in folder.glob(f".*{_BESIDE}*"):
        found = _LEFTOVER.fullmatch(leftover.name)
        if (
            found is not None
            and name in (None, found["name"])
            and is_leftover(leftover)
            and not _is_alive(leftover)
        ):
            leftover.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether this is what a writer of a file left, or what it is writing: nobody else gives such a name."""
    found = _LEFTOVER.fullmatch(path.name)
    return found is not None and not found["old"] and path.is_file() and not path.is_symlink()


def clean(
    parent: Path,
    kind: Kind | None = None,
    name: str | None = None,
    files: Collection[str] | None = None,
) -> None:
    """Remove what writers that were killed left beside their targets in `parent`, and put back what they set aside.

    kind: of the folders that are made there. What has another name, or holds anything else, stays as it is.
    name: of the one target that is meant; None for all.   files: names of those that are written there; None for any
    where no folders are made, and else for no file.
    """
    for leftover in parent.glob(f".*{_BESIDE}*"):
        found = _LEFTOVER.fullmatch(leftover.name)
        if found is None or name not in (None, found["name"]):
            continue
        if found["old"] and not os.path.lexists(parent / found["name"]):
            os_files.rename(leftover, parent / found["name"])
        elif kind is not None and kind.is_leftover(leftover):
            kind.delete(leftover)
        elif is_leftover(leftover) and (kind is None if files is None else found["name"] in files):
            leftover.unlink(missing_ok=True)


def remove(folder: Path, kind: Kind) -> None:
    """Remove a folder in one step, if it is there: one that is half removed is never found under its name.

    What a kill leaves of it is for `clean`.   Errors: MachineError; UsageError for what vdiff did not make.
    """
    with refusals(folder):
        old = _set_aside(folder, kind)
        if old is not None:
            beside = _given_up(old, folder)
            try:
                flush_one(
                    folder.parent
                )  # else its files may be gone and its name back after a power cut
            finally:
                kind.delete(beside)


@contextlib.contextmanager
def _beside(target: Path, kind: Kind, num_bytes: int) -> Iterator[Path]:
    with refusals(target, num_bytes):
        make(target.parent)
        folder = free_beside(target)
        try:
            folder.mkdir()
            yield folder
        finally:
            kind.delete(folder)


def free_beside(target: Path, aside: str = "") -> Path:
    """Where it is written, or set aside; processes and threads do not meet, and nothing is there."""
    name = f".{target.name}{_BESIDE}{aside}{os.getpid()}-{threading.get_native_id()}"
    place, number = target.with_name(name), 0
    while os.path.lexists(place):
        number += 1
        place = target.with_name(f"{name}-{number}")
    return place


def _is_alive(leftover: Path) -> bool:
    """Whether the process that a leftover is named after is at work."""
    return is_alive(int(leftover.name.rpartition(_BESIDE)[2].split("-")[0]))


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


def publish(folder: Path, target: Path, kind: Kind) -> None:
    """Give the finished `folder` its name; whatever fails, what had that name before has it again.

    A folder of the kind that was there goes afterwards.   Errors: OSError; UsageError for what vdiff did not make.
    """
    old = _set_aside(target, kind)
    try:
        os_files.rename(folder, target)
        flush_one(target.parent)
    except BaseException as err:
        if not folder.exists():
            os_files.rename(target, folder)
        if old is not None:
            _put_back(old, target)
        if isinstance(err, OSError) and err.errno in _TAKEN:  # within this moment
            raise strange(target, target, _AGAIN) from err
        raise
    if old is not None:
        try:
            kind.delete(_given_up(old))
        except OSError:
            kind.delete(old)


_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


def _set_aside(target: Path, kind: Kind) -> Path | None:
    """Where a folder of this kind lies now, None if there was none.   Errors: UsageError for anything else."""
    if not os.path.lexists(target):
        return None
    kind.refuse_stranger(target, _AGAIN)
    old = free_beside(target, _OLD)
    os_files.rename(target, old)
    try:
        kind.refuse_stranger(
            old, _AGAIN, target
        )  # somebody may have put another one there meanwhile
    except BaseException:
        _put_back(old, target)
        raise
    return old


def _given_up(old: Path, target: Path | None = None) -> Path:
    """Where a folder that was set aside is now: under no name that `clean` would put back when it is half gone.

    target: takes it back if that fails.   Errors: OSError.
    """
    found = _LEFTOVER.fullmatch(old.name)
    assert found is not None
    beside = free_beside(old.with_name(found["name"]))
    try:
        os_files.rename(old, beside)
    except OSError:
        if target is not None:
            _put_back(old, target)
        raise
    return beside


def _put_back(old: Path, target: Path) -> None:
    if not os.path.lexists(target):
        os_files.rename(old, target)


def make(folder: Path, made: list[Path] | None = None) -> None:
    """Make a folder and its parents, so that they are there after a power cut.

    made: takes those that were not there.   Errors: OSError; FileExistsError where something else is in the place.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        try:
            each.mkdir()
        except FileExistsError:
            if is_taken(each):
                raise
            continue  # somebody else makes the same one
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
    os_files.flush_path(path)
