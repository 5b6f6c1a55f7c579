"""The manifest of a finished folder: a JSON file that lists its files,
with the SHA-256 of each one and of itself.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vdiff.errors import ModelFileError


def sealed(content: Mapping[str, Any]) -> str:
    """The text of a manifest: `content` as JSON, and at its end the SHA-256
    of every byte before it.
    """
    facts = _without_seal(content)
    text = json.dumps({_SEALED: True, **facts}, indent=1, ensure_ascii=False, allow_nan=False)
    # The seal is written by hand, as the last key: it is the hash of exactly the bytes before it.
    text = text.removesuffix("\n}")
    return f'{text},\n "{_SEAL}": "{hashlib.sha256(text.encode()).hexdigest()}"\n}}\n'


def read(folder: Path, name: str) -> dict[str, Any]:
    """The content of the manifest `name`.   Errors: ModelFileError when it is missing or is not
    what `write` left.

    It may come from a stranger. So its size, depth and numbers are bounded, its files lie in the
    folder, and no text in it holds control characters. Marks of vdiff 0.1.0 and before have no
    seal; they are read without one.
    """
    path = folder / name
    if not path.is_file():
        raise ModelFileError(
            f"`{folder}` has no {name}: it is not a finished folder of vdiff", _FIX, path
        )
    data = _bytes(path)
    content = _parsed(data, path)
    if not _is_sealed_right(data, content):
        raise ModelFileError(
            f"`{path}` is damaged: its content changed (SHA-256 differs)", _FIX, path
        )
    if not _is_list_of_files(content.get("files")):
        problem = "it does not list its files, with a size and a SHA-256 for each"
        raise ModelFileError(f"`{path}` is damaged: {problem}", _FIX, path)
    return _without_seal(content)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file that may come from a stranger.   Errors: ModelFileError."""
    return _parsed(_bytes(path), path)


def damage(folder: Path, content: Mapping[str, Any], hashed: bool = True) -> list[str]:
    """What is wrong with the folder's files, one line each;
    empty when every byte is as it was written.

    content: what `read` gave.   hashed: read every byte; otherwise only look whether the files have
    the right sizes.
    """
    lines = (_damage_of(folder, name, entry, hashed) for name, entry in content["files"].items())
    return [line for line in lines if line]


def manifest(folder: Path) -> dict[str, Any]:
    """{relative path: {size, sha256}} of every file in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {
            "size": path.stat().st_size,
            "sha256": sha256_of(path),
        }
        for path in files
    }


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_FIX = "take another folder, or make this one again"


_SEALED = "sealed"
_SEAL = "sha256"
"""The first and the last key of a manifest. The first one announces the last one. So no single
damaged byte can make a manifest with a seal look like an old one without.
"""
_SEAL_AT_END = re.compile(rb',\n "sha256": "([0-9a-f]{64})"\n}\n')

# Limits for the manifests of strangers: a parser needs many times the size of its text in memory,
# and nesting ends in a RecursionError.
_MOST_BYTES = 4 * 2**20
_MOST_LEVELS = 20
# Texts of a manifest are shown in terminals, where control characters are commands. Lone surrogates
# cannot be printed.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
_SHA256 = re.compile("[0-9a-f]{64}")


def _without_seal(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in (_SEALED, _SEAL)}


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            # One byte more than is allowed tells that it is too long; the rest is never read.
            data = file.read(_MOST_BYTES + 1)
    except OSError as err:
        raise ModelFileError(f"`{path}` cannot be read: {err.strerror or err}", _FIX, path) from err
    if len(data) > _MOST_BYTES:
        raise ModelFileError(
            f"`{path}` is damaged: it is longer than {_MOST_BYTES:,} bytes", _FIX, path
        )
    return data


def _parsed(data: bytes, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(
            data.decode(), parse_int=_whole, parse_float=_finite, parse_constant=_finite
        )
        _check(content, _MOST_LEVELS)
    except (ValueError, RecursionError) as err:
        raise ModelFileError(f"`{path}` is damaged: {err}", _FIX, path) from err
    if not isinstance(content, dict):
        raise ModelFileError(f"`{path}` is damaged: it is not a JSON object", _FIX, path)
    return content


def _is_sealed_right(data: bytes, content: Mapping[str, Any]) -> bool:
    """Whether the SHA-256 at the end is that of all before it, or was never there."""
    start = data.rfind(b",\n")
    seal = _SEAL_AT_END.fullmatch(data, max(start, 0))
    if seal is None:
        return not {_SEALED, _SEAL} & content.keys()
    return hashlib.sha256(data[:start]).hexdigest() == seal[1].decode()


def _whole(digits: str) -> int:
    # Turning digits into an int takes quadratic time, so a hostile number could keep us busy for
    # hours.
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
    inner_values: list[Any] = []
    match value:
        case str():
            if _CONTROL.search(value):
                raise ValueError("it holds control characters")
        case list():
            inner_values = value
        case dict():
            inner_values = [*value, *value.values()]
    for inner in inner_values:
        _check(inner, levels - 1)


def _is_list_of_files(files: object) -> bool:
    if not isinstance(files, dict):
        return False
    return all(_is_entry(name, entry) for name, entry in files.items())


def _is_entry(name: str, entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    # A name like `../../.ssh/id` would have a file outside of the folder read, replaced or deleted.
    is_inside = not {"", ".", ".."} & set(name.split("/"))
    if not is_inside or not name.isprintable() or len(name) > 255:
        return False
    size = entry.get("size")
    # `type`, not `isinstance`: True is an int.
    is_size = type(size) is int and size >= 0
    return is_size and _SHA256.fullmatch(str(entry.get("sha256"))) is not None


def _damage_of(folder: Path, name: str, entry: Mapping[str, Any], hashed: bool) -> str:
    path = folder / name
    # A folder on the way may be a link too: only the real path tells.
    real_path = Path(os.path.realpath(path))
    if path.is_symlink() or not real_path.is_relative_to(os.path.realpath(folder)):
        return f"{name}: leads out of the folder"
    try:
        if not path.is_file():
            return f"{name}: missing"
        if path.stat().st_size != entry["size"]:
            return f"{name}: {path.stat().st_size:,} bytes instead of {entry['size']:,}"
        if hashed and sha256_of(path) != entry["sha256"]:
            return f"{name}: its content changed (SHA-256 differs)"
    except OSError as err:
        return f"{name}: cannot be read ({err.strerror or err})"
    return ""
