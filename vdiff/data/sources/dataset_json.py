"""`dataset.json`, in which NVlabs' dataset_tool keeps labels: `{"labels": [["a.png", 6], ...]}`.

It is read entry by entry, in the one form that the tool writes. A hostile one would cost a parser
of JSON gigabytes.
"""

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

NAME = "dataset.json"
MAX_BYTES = 128 * 2**20
"""The labels of ImageNet need 45 MB."""

# A name has at most 4,096 letters and a label 9 digits, so one entry cannot hold the whole file.
_START = re.compile(rb'"labels"\s*:\s*(null|\[)?')
_ENTRY = re.compile(rb'\s*\[\s*("(?:[^"\\]|\\.){0,4096}")\s*,\s*(\d{1,9})\s*\]\s*(,|\])')
_END = re.compile(rb"\s*\]")


class Found(NamedTuple):
    """The file in a source.

    folder: where it lies.   data: what is in it; None if that is too much to read.
    """

    folder: str
    data: bytes | None


def has_labels(found: Found) -> bool:
    """Whether the file seems to hold labels.

    It has none if it says `null`, or if it is about something else.
    """
    if found.data is None:
        return True
    match = _START.search(found.data)
    return match is not None and match[1] != b"null"


def entries(found: Found) -> Iterator[tuple[str, int]]:
    """The names, as the source has them, and their labels;
    ValueError with the reason if they cannot be read.
    """
    if found.data is None:
        raise ValueError(f"it is larger than {MAX_BYTES:,} bytes")
    match = _START.search(found.data)
    if match is None or match[1] != b"[":
        raise ValueError("its labels are not a list")
    if _END.match(found.data, match.end()):
        return
    place = match.end()
    is_last = False
    while not is_last:
        entry = _ENTRY.match(found.data, place)
        if entry is None:
            raise ValueError(
                f"its labels are not pairs of a name and a number: {_shown(found.data[place:])}"
            )
        # On Windows, the tool writes backslashes.
        name = json.loads(entry[1], strict=False).replace("\\", "/")
        if found.folder:
            name = f"{found.folder}/{name}"
        yield name, int(entry[2])
        is_last = entry[3] == b"]"
        place = entry.end()


def _shown(data: bytes) -> str:
    return data[:40].decode(errors="backslashreplace").strip()
