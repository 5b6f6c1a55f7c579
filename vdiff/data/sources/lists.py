"""Files of a source that list the labels of its pictures: NVlabs' `dataset.json`, and WebDataset's .cls files."""

import io
from collections.abc import Callable
from contextlib import suppress

from vdiff.data.sources import dataset_json
from vdiff.data.sources.classes import Lists, sample_of
from vdiff.data.sources.names import folder_of

_CLS = ".cls"
_MAX_CLS_BYTES = 32


def is_list(name: str) -> bool:
    """Whether a file of this name holds labels."""
    return name.endswith(_CLS) or name[name.rfind("/") + 1 :] == dataset_json.NAME


def add_list(lists: Lists, name: str, num_bytes: int, opened: Callable[[], io.RawIOBase]) -> None:
    """Keep what is in such a file.   num_bytes: its size.   opened: gives its content; a ValueError means no label."""
    if name.endswith(_CLS):
        text = _content(opened, num_bytes) if num_bytes <= _MAX_CLS_BYTES else b""
        lists.cls[sample_of(name)] = int(text) if text.strip().isdigit() else -1
    elif lists.dataset is None or folder_of(name).count("/") < lists.dataset.folder.count("/"):
        data = _content(opened, num_bytes) if num_bytes <= dataset_json.MAX_BYTES else None
        lists.dataset = dataset_json.Found(folder_of(name), data)


def _content(opened: Callable[[], io.RawIOBase], num_bytes: int) -> bytes:
    data = bytearray()
    with suppress(ValueError), opened() as file:
        while len(data) < num_bytes and (piece := file.read(num_bytes - len(data))):
            data += piece
    return bytes(data)
