"""Compressed bytes as a file that is read from its beginning, in little memory whatever lies in it.

There is one class for gzip, bzip2, xz and the methods of zip files. Python's own `lzma.LZMAFile`
takes gigabytes for a dictionary if a header says so, and `tarfile` does not look at the checksum at
the end.
"""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Protocol

MAX_DICTIONARY_BYTES = 2**28
"""Memory that xz and lzma may use; `xz -9` needs 65 MB."""

_PIECE = 2**16


class Decompressor(Protocol):
    """One stream of compressed bytes, as `bz2.BZ2Decompressor` has it."""

    @property
    def eof(self) -> bool:
        """Whether it has come to its end."""

    @property
    def needs_input(self) -> bool:
        """Whether it gives nothing more without further bytes."""

    @property
    def unused_data(self) -> bytes:
        """The bytes that follow its end."""

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """The next bytes, at most `max_length`, that unpacking `data` gives."""


class Inflate:
    """zlib's decompressor in the form of those of bzip2 and xz.

    wbits: 31 for gzip, -15 for what zip files hold.
    """

    def __init__(self, wbits: int) -> None:
        self._inner = zlib.decompressobj(wbits)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        unpacked = self._inner.decompress(self._inner.unconsumed_tail + data, max(max_length, 0))
        # With as many bytes as were asked for, more may wait inside.
        self.needs_input = not self._inner.unconsumed_tail and len(unpacked) != max_length
        return unpacked


def gzip() -> Decompressor:
    """Of one gzip stream; its checksum is verified."""
    return Inflate(31)


def xz() -> Decompressor:
    """Of one xz or lzma stream."""
    return lzma.LZMADecompressor(memlimit=MAX_DICTIONARY_BYTES)


def lzma_of_zip(properties: bytes) -> Decompressor:
    """Of a member of a zip file that is compressed with LZMA.

    properties: the five bytes that stand before it.
    """
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=MAX_DICTIONARY_BYTES)
    # Zip files have no header of lzma's own format, so one is made here: the properties, and an
    # unknown size.
    decompressor.decompress(properties + b"\xff" * 8)
    return decompressor


KINDS: dict[bytes, Callable[[], Decompressor]] = {
    b"\x1f\x8b": gzip,
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": xz,
    b"\x5d\0\0\x80": xz,
}
"""By the first bytes."""


class Unpacked(io.RawIOBase):
    """The unpacked bytes of a compressed file; EOFError if the compressed file is cut off.

    read_packed: gives so many bytes of the compressed file, fewer only at its end.
    make: makes a decompressor; called for each of the streams that follow one another.
    is_one: whether there is only one stream.
    """

    def __init__(
        self,
        read_packed: Callable[[int], bytes],
        make: Callable[[], Decompressor],
        is_one: bool = False,
    ) -> None:
        self._read_packed = read_packed
        self._make = make
        self._is_one = is_one
        self._stream = make()
        self._is_at_end = False

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes, at most `size` and at most 64 KiB; none at the end."""
        # Never all at once: a megabyte of zeros packs into a kilobyte.
        if size < 0 or size > _PIECE:
            size = _PIECE
        while not self._is_at_end:
            packed = b""
            if self._stream.needs_input:
                packed = self._read_packed(_PIECE)
                if not packed:
                    raise EOFError("it is cut off")
            unpacked = self._stream.decompress(packed, size)
            if self._stream.eof:
                self._next_stream()
            if unpacked:
                return unpacked
        return b""

    def _next_stream(self) -> None:
        """Go on with the stream that follows, if one does.

        Anything else there is padding and is not looked at.
        """
        # Programs that pack in parallel write many streams, one after the other.
        rest = self._stream.unused_data
        # The bytes that tell may not have been read yet.
        if not self._is_one and len(rest) < 16:
            rest += self._read_packed(_PIECE)
        kind = next((kind for kind in KINDS if rest.startswith(kind)), None)
        if self._is_one or kind is None or KINDS[kind] is not self._make:
            self._is_at_end = True
            return
        self._stream = self._make()
        self._read_packed = _with(rest, self._read_packed)


def _with(held: bytes, read: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """A function like `read` that first gives `held`."""
    waiting = [held]

    def read_more(size: int) -> bytes:
        if waiting:
            return waiting.pop()
        return read(size)

    return read_more
