"""Files of a source that list the labels of its pictures:
NVlabs' `dataset.json`, and WebDataset's .cls files.
"""

import io
from collections.abc import Callable
from contextlib import suppress

from vdiff.data.sources import dataset_json
from vdiff.data.sources.classes import Lists, sample_of
from vdiff.data.sources.names import folder_of

_CLS = ".cls"
# It holds one number.
_MAX_CLS_BYTES = 32


def is_list(name: str) -> bool:
    """Whether a file of this name holds labels."""
    return name.endswith(_CLS) or name[name.rfind("/") + 1 :] == dataset_json.NAME


def add_list(lists: Lists, name: str, num_bytes: int, opened: Callable[[], io.RawIOBase]) -> None:
    """Keep what is in such a file.

    num_bytes: its size.   opened: gives its content; a ValueError means no label.
    """
    if name.endswith(_CLS):
        lists.cls[sample_of(name)] = _number(opened, num_bytes)
    # Of several, the one that lies nearest to the root speaks of all pictures.
    elif lists.dataset is None or folder_of(name).count("/") < lists.dataset.folder.count("/"):
        data: bytes | None = None
        if num_bytes <= dataset_json.MAX_BYTES:
            data = _content(opened, num_bytes)
        lists.dataset = dataset_json.Found(folder_of(name), data)


def _number(opened: Callable[[], io.RawIOBase], num_bytes: int) -> int:
    """The number in a .cls file; -1 if it holds anything else."""
    if num_bytes > _MAX_CLS_BYTES:
        return -1
    text = _content(opened, num_bytes)
    if not text.strip().isdigit():
        return -1
    return int(text)


def _content(opened: Callable[[], io.RawIOBase], num_bytes: int) -> bytes:
    """At most `num_bytes` bytes. Of a damaged file, those before the damage."""
    data = bytearray()
    # A decompressor may give fewer bytes at a time than it is asked for.
    with suppress(ValueError), opened() as file:
        while len(data) < num_bytes and (piece := file.read(num_bytes - len(data))):
            data += piece
    return bytes(data)
