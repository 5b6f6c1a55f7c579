"""Arrays kept from one command to the next:
an .npz whose headers are held against its size before they count.

Not safetensors: it has no checksums, takes no text, and what earlier versions kept for hours of
drawing is of this kind.
"""

import io
import math
import os
import re
import stat
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vdiff.disk.os_files import open_no_link
from vdiff.disk.ours import beginning

Arrays = dict[str, np.ndarray[Any, Any]]

MOST_BYTES = 2**31
_MOST_BYTES_OF_NAMES = 2**16
_END = struct.Struct("<4s4H2LH")
"""The end of a zip: its mark, four counts, the size of the list of names, where that begins,
the length of a remark.
"""


def packed(arrays: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    """The bytes of an .npz, not compressed."""
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def is_ours(path: Path) -> bool:
    """Whether a file, which may be damaged, holds `packed` bytes:
    an array comes first, not compressed.
    """
    if path.stat().st_size == 0:  # emptied: whoever made it, nothing is lost
        return True
    return _FIRST.match(beginning(path, 100)) is not None


_FIRST = re.compile(rb"PK\x03\x04.{4}\0\0.{20}[a-z_]+\.npy", re.DOTALL)


def read(path: Path) -> Arrays | None:
    """The arrays in a file of `packed` bytes; None where it is not there, or is anything else.

    It may be damaged or come from a stranger: no pickle is read, no link is followed, no more
    memory is taken than the file has bytes, and the CRC of every array is checked.
    """
    try:
        data = _bytes(path)
        _check_names(data)
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            return {
                part.filename.removesuffix(".npy"): _array(file, part) for part in file.infolist()
            }
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, struct.error):
        return None


def _bytes(path: Path) -> bytes:
    with open(open_no_link(path), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            raise ValueError("no file that was kept")
        return file.read(status.st_size)


def _check_names(data: bytes) -> None:
    """ValueError for a list of names that is long: zipfile makes an object of each one."""
    *_, size, _, remark = _END.unpack(data[-_END.size :])
    # one of 64 bits would overrule it
    has_second_end = data[-_END.size - 20 : -_END.size].startswith(b"PK\6\7")
    if size > _MOST_BYTES_OF_NAMES or remark or has_second_end:
        raise ValueError("a list of names that nobody writes")


def _array(file: zipfile.ZipFile, part: zipfile.ZipInfo) -> np.ndarray[Any, Any]:
    if part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size:
        raise ValueError("it would be unpacked")
    data = io.BytesIO(file.read(part))
    version = np.lib.format.read_magic(data)
    if version != (1, 0):
        raise ValueError("another kind of header")
    shape, _, dtype = np.lib.format.read_array_header_1_0(data)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != part.file_size - data.tell():
        raise ValueError("a header that does not fit what follows")
    data.seek(0)
    array: np.ndarray[Any, Any] = np.load(data)  # pickles are off, unless one asks
    return array
