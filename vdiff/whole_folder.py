"""Folders that appear complete or not at all: written beside, hashed, flushed to the disk, renamed."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vdiff.errors import MachineError, ModelFileError

_BESIDE = ".partial-"


def write(target: Path, mark: str, facts: Mapping[str, Any], fill: Callable[[Path], None]) -> dict[str, Any]:
    """Make the folder `target` with what `fill` puts into it and the file `mark`, which comes last.

    mark: name of the JSON file that holds `facts` and `files`: {relative path: {size, sha256}}. Returns its content.
    A folder that was there before is replaced.   Errors: MachineError when the disk refuses; nothing is left then.
    """
    with _beside(target) as folder:
        fill(folder)
        content = {**facts, "files": _manifest(folder)}
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / mark).write_text(text + "\n", encoding="utf-8")
        _flush(folder)
        old = _set_aside(target)
        folder.rename(target)
        _flush_one(target.parent)
        if old is not None:
            shutil.rmtree(old)
    return content


def read(folder: Path, mark: str) -> dict[str, Any]:
    """The content of the file `mark`.   Errors: ModelFileError when it is missing or is not what `write` left."""
    path = folder / mark
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise ModelFileError(f"`{folder}` has no {mark}: it is not a finished folder of vdiff", _FIX, path) from err
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as err:
        raise ModelFileError(f"`{path}` is damaged: {err}", _FIX, path) from err
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        raise ModelFileError(f"`{path}` is damaged: it does not list its files", _FIX, path)
    return content


def damage(folder: Path, content: Mapping[str, Any]) -> list[str]:
    """What is wrong with the folder's files, one line each; empty when every byte is as it was written."""
    return [found for name, entry in content["files"].items() if (found := _damage_of(folder, name, entry))]


def clean(parent: Path) -> None:
    """Remove what writers that were killed left beside their targets in `parent`."""
    for leftover in parent.glob(f".*{_BESIDE}*"):
        shutil.rmtree(leftover, ignore_errors=True)


_FIX = "take another folder, or make this one again"


def _damage_of(folder: Path, name: str, entry: Any) -> str:
    path = folder / name
    try:
        size, sha256 = int(entry["size"]), str(entry["sha256"])
    except (KeyError, TypeError, ValueError):
        return f"{name}: no size and hash are recorded for it"
    if not path.resolve().is_relative_to(folder.resolve()) or path.is_symlink():
        return f"{name}: leads out of the folder"
    if not path.is_file():
        return f"{name}: missing"
    if path.stat().st_size != size:
        return f"{name}: {path.stat().st_size} bytes instead of {size}"
    return "" if sha256_of(path) == sha256 else f"{name}: its content changed (SHA-256 differs)"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    folder = target.parent / f".{target.name}{_BESIDE}{os.getpid()}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        yield folder
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(target.parent).free
            fix = "free some space and run the same command again: it goes on where it stopped"
            raise MachineError(f"the disk is full ({free:,} bytes are free)", fix, target) from err
        raise MachineError(f"cannot write `{target}`: {err.strerror}", "choose a folder you may write to") from err
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _set_aside(target: Path) -> Path | None:
    if not target.exists():
        return None
    old = target.parent / f".{target.name}{_BESIDE}old-{os.getpid()}"
    shutil.rmtree(old, ignore_errors=True)
    target.rename(old)
    return old


def _manifest(folder: Path) -> dict[str, Any]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256_of(path)} for path in files
    }


def _flush(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        _flush_one(path)
    _flush_one(folder)


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
