"""Folders and files that appear complete or not at all:
written beside, flushed to the disk, renamed.
"""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from vdiff.disk import os_files
from vdiff.disk.beside import LEFTOVER, OLD, clean, forget_leftovers, free_beside, is_leftover
from vdiff.disk.manifest import damage, manifest, read, read_json, sealed, sha256_of
from vdiff.disk.ours import IsOurs, Kind, refuse_strange_file, strange
from vdiff.errors import MachineError, ModelFileError

__all__ = [
    "check",
    "clean",
    "damage",
    "flush_one",
    "forget_leftovers",
    "free_beside",
    "is_leftover",
    "is_taken",
    "keep_as",
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

_AGAIN = "move it away, and type the same command again: what was done until now is kept"


def write(
    target: Path,
    kind: Kind,
    facts: Mapping[str, Any],
    fill: Callable[[Path], None],
    num_bytes: int,
    unlisted: Collection[str] = (),
) -> dict[str, Any]:
    """Make the folder `target` with what `fill` puts into it and the manifest of its kind,
    which comes last.

    The manifest is a JSON file that holds `facts` and `files`: {relative path: {size, sha256}}.
    Returns its content. A folder of the kind that was there before is replaced, once the new one
    has been read back from the disk.
    num_bytes: about how many it will have, for the message when the disk is full.
    unlisted: files that the manifest does not list, because people may change them.
    Errors: MachineError when the disk refuses, UsageError for what vdiff did not make. After an
    error, what was there before is still there, and nothing is left beside it.
    """
    with _beside(target, kind, num_bytes) as folder:
        fill(folder)
        files = {name: file for name, file in manifest(folder).items() if name not in unlisted}
        content = {**facts, "files": files}
        (folder / kind.manifest).write_text(sealed(content), encoding="utf-8", newline="\n")
        # Flush, then read back, then rename. A rename may reach the disk before the data does:
        # after a power cut, the new name would lead to empty files.
        _flush(folder)
        check(folder, kind.manifest, target)
        publish(folder, target, kind)
    return content


def keep_as(folder: Path, target: Path, kind: Kind) -> None:
    """Have the finished `folder` under the name `target` too, whole or not at all.

    Its files are not written again where the disk can give one file two names: nobody changes a
    file of a finished folder in its place.
    Errors: MachineError; UsageError for what vdiff did not make.
    """
    kind.refuse_stranger(folder, _AGAIN)
    paths = sorted(folder.rglob("*"))
    num_bytes = sum(path.stat().st_size for path in paths if path.is_file())
    with _beside(target, kind, num_bytes) as beside:
        for path in paths:
            place = beside / path.relative_to(folder)
            if path.is_dir():
                place.mkdir()
            else:
                _second_name(path, place)
        _flush(beside)
        publish(beside, target, kind)


def _second_name(file: Path, place: Path) -> None:
    try:
        os.link(file, place, follow_symlinks=False)
    except (OSError, NotImplementedError):  # some file systems have no second names
        shutil.copy2(file, place, follow_symlinks=False)


def check(folder: Path, name: str, target: Path | None = None) -> None:
    """Read back what `write` left in `folder`: on Linux from the disk,
    elsewhere perhaps from memory.

    target: the name that errors give it.   Errors: MachineError when anything is not as it was
    written.
    """
    # Else memory would answer, and a failing disk would go unnoticed until the only other copy is
    # deleted.
    for path in folder.rglob("*"):
        if path.is_file():
            os_files.forget_cached(path)
    try:
        faults = damage(folder, read(folder, name))
    except ModelFileError as err:
        faults = [err.problem]
    if faults:
        problem = f"what was written to `{target or folder}` cannot be read back: {faults[0]}"
        raise MachineError(
            problem, "look at the disk's health, or write to another disk", "; ".join(faults[1:3])
        )


def write_text(path: Path, text: str, is_ours: IsOurs) -> None:
    """Make or replace the file `path` in one step:
    a reader finds the old text or the new one, also after a power cut.

    is_ours: whether the file that is there was made by vdiff; any other is not replaced.
    Errors: MachineError when the disk refuses, UsageError for what vdiff did not make. After an
    error, the old text is still there, and nothing is left beside it.
    """
    write_bytes(path, text.encode(), is_ours)


def write_bytes(path: Path, data: bytes, is_ours: IsOurs, is_flushed: bool = True) -> None:
    """As `write_text`, with bytes.

    is_flushed: False for what is quickly made again after a power cut.
    """
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
                # The new name is content of the folder: it needs a flush of its own.
                flush_one(path.parent)
        finally:
            # The disk may refuse this too; the error that brought us here tells more.
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)


def publish_file(beside: Path, path: Path, is_ours: IsOurs) -> None:
    """Give the finished file `beside` its name.

    Errors: UsageError for what vdiff did not make; OSError.
    """
    refuse_strange_file(path, is_ours)
    os_files.replace(beside, path)


def remove(folder: Path, kind: Kind) -> None:
    """Remove a folder in one step, if it is there:
    one that is half removed is never found under its name.

    What a kill leaves of it is for `clean`.   Errors: MachineError; UsageError for what vdiff did
    not make.
    """
    with refusals(folder):
        old = _set_aside(folder, kind)
        if old is not None:
            beside = _given_up(old, folder)
            try:
                # Before the files go: after a power cut, the folder could have its name back and
                # lack its files.
                flush_one(folder.parent)
            finally:
                kind.delete(beside)


@contextlib.contextmanager
def _beside(target: Path, kind: Kind, num_bytes: int) -> Iterator[Path]:
    """A new folder beside `target`, on the same disk, as only there a rename is one step.

    It is gone afterwards.
    """
    with refusals(target, num_bytes):
        make(target.parent)
        folder = free_beside(target)
        try:
            folder.mkdir()
            yield folder
        finally:
            kind.delete(folder)


@contextlib.contextmanager
def refusals(target: Path, num_bytes: int = 0) -> Iterator[None]:
    """Turn errors of the disk into MachineError while `target` is written,
    of about so many bytes.
    """
    try:
        yield
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            existing = next(folder for folder in target.absolute().parents if folder.exists())
            free = shutil.disk_usage(existing).free
            fix = "free some space and run the same command again: it goes on where it stopped"
            needed = ""
            if num_bytes:
                needed = f"{num_bytes:,} bytes are needed, "
            raise MachineError(f"the disk is full: {needed}{free:,} are free", fix, target) from err
        fix = "choose a folder you may write to, and look at the disk's health"
        raise MachineError(f"cannot write `{target}`: {err.strerror or err}", fix) from err


def publish(folder: Path, target: Path, kind: Kind) -> None:
    """Give the finished `folder` its name. If anything fails, what had that name before has it
    again.

    A folder of the kind that was there is deleted afterwards.
    Errors: OSError; UsageError for what vdiff did not make.
    """
    # A folder that holds something cannot be replaced by one rename, so the old one is set aside
    # first.
    old = _set_aside(target, kind)
    try:
        os_files.rename(folder, target)
        flush_one(target.parent)
    except BaseException as err:
        # Also for Ctrl-C. If the new folder has its name already, that is undone too: a rename that
        # was not flushed may be lost.
        if not folder.exists():
            os_files.rename(target, folder)
        if old is not None:
            _put_back(old, target)
        # Somebody put something there since the old one was set aside.
        if isinstance(err, OSError) and err.errno in _TAKEN:
            raise strange(target, target, _AGAIN) from err
        raise
    # Only now, when the new folder is safe on the disk.
    if old is not None:
        try:
            kind.delete(_given_up(old))
        except OSError:
            kind.delete(old)


_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
"""What a rename says when something is in the place."""


def _set_aside(target: Path, kind: Kind) -> Path | None:
    """Where a folder of this kind lies now, None if there was none.

    Errors: UsageError for anything else.
    """
    if not os.path.lexists(target):
        return None
    kind.refuse_stranger(target, _AGAIN)
    old = free_beside(target, OLD)
    os_files.rename(target, old)
    try:
        # Asked again, under a name that nobody else uses: between the first look and the rename,
        # somebody may have put another folder there.
        kind.refuse_stranger(old, _AGAIN, target)
    except BaseException:
        _put_back(old, target)
        raise
    return old


def _given_up(old: Path, target: Path | None = None) -> Path:
    """Rename a folder that was set aside and is to be deleted; returns its new place.

    Under its old name, `clean` would put it back after a kill, when half of it is deleted.
    target: where it is put back if that fails.   Errors: OSError.
    """
    match = LEFTOVER.fullmatch(old.name)
    assert match is not None
    beside = free_beside(old.with_name(match["name"]))
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

    made: the folders that were not there are added to it.
    Errors: OSError; FileExistsError where something else is in the place.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        try:
            place.mkdir()
        except FileExistsError:
            if is_taken(place):
                raise
            # Another process has just made the same folder.
            continue
        if made is not None:
            made.append(place)
        # Else a file that was flushed in the new folder could be lost with the folder.
        flush_one(place.parent)
    if is_taken(folder):
        raise FileExistsError(errno.EEXIST, "something else than a folder is there", str(folder))


def is_taken(place: Path) -> bool:
    """Whether no folder can be made here: there is a file, or a link that leads nowhere."""
    try:
        return not stat.S_ISDIR(place.stat().st_mode)
    except FileNotFoundError:
        return place.is_symlink()


def _flush(folder: Path) -> None:
    """Bring all files in the folder, and the names in all folders, onto the disk."""
    # Reversed: a folder comes after what lies in it.
    for path in sorted(folder.rglob("*"), reverse=True):
        flush_one(path)
    flush_one(folder)


def flush_one(path: Path) -> None:
    """Bring a file, or the names in a folder, onto the disk."""
    os_files.flush_path(path)
