"""A picture of a source: its name, and how to get its bytes, once and from any thread."""

import copy
import io
import zlib
from collections.abc import Callable
from typing import NamedTuple

from vdiff.data.patience import is_of_machine
from vdiff.images import images

MAX_FILE_BYTES = 256 * 2**20
Opened = io.RawIOBase | io.BufferedIOBase
"""A file to read bytes from."""
UNREAD = "--------"
"""The mark of a file of which not one byte could be read."""

_PIECE = 2**16
"""Bytes that are read at a time; the first ones tell whether a file is a picture."""


class File(NamedTuple):
    """A picture file: its path inside the source, with slashes, and its size in bytes."""

    name: str
    num_bytes: int


class Picture:
    """A file of a source, and how to get its bytes: once, from any thread.

    opened: opens the file; it may raise anything.   mark: CRC-32 of what was read of the file,
    eight hexadecimal digits. The next `prepare` compares it, to tell whether the content has
    changed.
    """

    def __init__(self, file: File, opened: Callable[[], Opened], mark: str = UNREAD) -> None:
        self.file: File = file
        self.mark: str = mark
        self._opened = opened
        self._is_marked = mark != UNREAD

    def read(self) -> bytes:
        """The bytes of the file; ValueError with the reason if they cannot be had.

        OSError and MemoryError where that is not the file's fault.
        """
        # A file of gigabytes is no picture, and it would be read into memory.
        if self.file.num_bytes > MAX_FILE_BYTES:
            raise ValueError(f"the file is larger than {MAX_FILE_BYTES:,} bytes")
        try:
            return self._all_bytes()
        except ValueError:
            raise
        except Exception as err:
            # Decompressors alone raise five kinds of errors.
            if is_of_machine(err):
                raise
            raise ValueError(f"the file cannot be read: {str(err) or type(err).__name__}") from err

    def _all_bytes(self) -> bytes:
        """All bytes; ValueError as soon as the beginning shows that the
        picture would be refused.
        """
        # BytesIO, not bytearray: it gives its bytes away without a copy.
        data = io.BytesIO()
        crc = 0
        is_checked = False
        with self._opened() as file:
            while piece := file.read(_PIECE):
                data.write(piece)
                crc = zlib.crc32(piece, crc)
                if not self._is_marked:
                    self.mark = f"{crc:08x}"
                # In an archive of 2 MB, a file can unpack to gigabytes: the first 64 KiB tell
                # whether it is a picture.
                if not is_checked and data.tell() >= _PIECE:
                    images.check_beginning(data.getvalue())
                    is_checked = True
                # The size that was listed may be a lie.
                if data.tell() > MAX_FILE_BYTES:
                    raise ValueError("the file has grown")
        if not is_checked:
            images.check_beginning(data.getvalue())
        return data.getvalue()


class ReadPicture(Picture):
    """A picture whose bytes are read when it is made, because the source cannot go back to them."""

    def __init__(self, file: File, opened: Opened) -> None:
        super().__init__(file, lambda: opened)
        self._bytes = b""
        self._error: ValueError | None = None
        try:
            self._bytes = super().read()
        except ValueError as err:
            self._error = err

    def alias(self, file: File) -> "ReadPicture":
        """The same picture under another name."""
        other = copy.copy(self)
        other.file = file
        return other

    def read(self) -> bytes:
        """The bytes, once; ValueError with the reason if they could not be had."""
        if self._error:
            raise self._error
        # Let go of here: converted pictures would keep the bytes of their files in memory.
        data = self._bytes
        self._bytes = b""
        return data
