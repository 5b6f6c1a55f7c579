"""Folders that appear complete or not at all: written beside, hashed, flushed to the disk, renamed."""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vdiff.errors import MachineError, ModelFileError

_BESIDE = ".partial-"
_OLD = "old-"


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
    """The content of the file `mark`.   Errors: ModelFileError when it is missing or is not what `write` left.

    It may come from a stranger: its size, depth and numbers are bounded, its files lie in the folder, and no text in it
    holds control characters.
    """
    if not (folder / mark).is_file():
        raise ModelFileError(f"`{folder}` has no {mark}: it is not a finished folder of vdiff", _FIX, folder / mark)
    content = read_json(folder / mark)
    files = content.get("files")
    if not isinstance(files, dict) or not all(_is_entry(name, entry) for name, entry in files.items()):
        problem = "it does not list its files, with a size and a SHA-256 for each"
        raise ModelFileError(f"`{folder / mark}` is damaged: {problem}", _FIX, folder / mark)
    return content


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file that may come from a stranger.   Errors: ModelFileError."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError(f"it is longer than {_MOST_BYTES:,} bytes")
        content = json.loads(data.decode(), parse_int=_whole, parse_float=_finite, parse_constant=_finite)
        _check(content, _MOST_LEVELS)
    except (ValueError, RecursionError) as err:
        raise ModelFileError(f"`{path}` is damaged: {err}", _FIX, path) from err
    if not isinstance(content, dict):
        raise ModelFileError(f"`{path}` is damaged: it is not a JSON object", _FIX, path)
    return content


def damage(folder: Path, content: Mapping[str, Any], hashed: bool = True) -> list[str]:
    """What is wrong with the folder's files, one line each; empty when every byte is as it was written.

    content: what `read` gave.   hashed: read every byte; otherwise only look whether the files have the right sizes.
    """
    found = (_damage_of(folder, name, entry, hashed) for name, entry in content["files"].items())
    return [line for line in found if line]


def clean(parent: Path) -> None:
    """Remove what writers that were killed left beside their targets in `parent`, and put back what they set aside."""
    for leftover in parent.glob(f".*{_BESIDE}*"):
        name, _, kind = leftover.name.removeprefix(".").partition(_BESIDE)
        if kind.startswith(_OLD) and not (parent / name).exists():
            leftover.rename(parent / name)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


_FIX = "take another folder, or make this one again"


_MOST_BYTES = 4 * 2**20
_MOST_LEVELS = 20
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
_SHA256 = re.compile("[0-9a-f]{64}")


def _whole(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError(f"it holds a number of {len(digits):,} digits")
    return int(digits)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError("it holds a number that is not finite")
    return value


def _check(value: Any, levels: int) -> None:
    """ValueError for what could harm a reader or a terminal."""
    if not levels:
        raise ValueError(f"it is nested over {_MOST_LEVELS} levels deep")
    if isinstance(value, str) and _CONTROL.search(value):
        raise ValueError("it holds control characters")
    if isinstance(value, list | dict):
        for inner in value if isinstance(value, list) else [*value, *value.values()]:
            _check(inner, levels - 1)


def _is_entry(name: str, entry: Any) -> bool:
    is_inside = name.isprintable() and len(name) <= 255 and not {"", ".", ".."} & set(name.split("/"))
    size, sha256 = (entry.get("size"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
    return is_inside and type(size) is int and size >= 0 and bool(_SHA256.fullmatch(str(sha256)))


def _damage_of(folder: Path, name: str, entry: Mapping[str, Any], hashed: bool) -> str:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()) or path.is_symlink():
        return f"{name}: leads out of the folder"
    if not path.is_file():
        return f"{name}: missing"
    if path.stat().st_size != entry["size"]:
        return f"{name}: {path.stat().st_size:,} bytes instead of {entry['size']:,}"
    is_same = not hashed or sha256_of(path) == entry["sha256"]
    return "" if is_same else f"{name}: its content changed (SHA-256 differs)"


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
    old = target.parent / f".{target.name}{_BESIDE}{_OLD}{os.getpid()}"
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
