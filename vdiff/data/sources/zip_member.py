"""The content of one file of a zip archive, unpacked and compared with its
checksum while it is read.
"""

import bz2
import io
import lzma
import os
import struct
import zlib
from functools import partial
from pathlib import Path
from typing import NamedTuple

from vdiff.data.sources.unpacking import Inflate, Unpacked, lzma_of_zip
from vdiff.disk import os_files

# Numbers of the methods, in section 4.4.5 of PKWARE's APPNOTE.TXT.
_STORED = 0
_DEFLATED = 8
_BZIP2 = 12
_LZMA = 14
_OTHERS = {9: "Deflate64", 20: "zstd", 93: "zstd", 95: "xz", 98: "PPMd", 99: "encryption"}
_HEADER = struct.Struct("<4s22x2H")
_LZMA_HEADER = struct.Struct("<2xH5s")


class Member(NamedTuple):
    """What the list of the archive says of a file.   limit: where the next file begins."""

    offset: int
    packed_bytes: int
    num_bytes: int
    method: int
    is_encrypted: bool
    crc: int
    limit: int


class Archive:
    """A file that can be read at any place from any thread; closed when nobody holds it any more.

    May raise OSError.
    """

    def __init__(self, path: Path) -> None:
        # First None: `__del__` is called even if opening fails.
        self._descriptor: int | None = None
        self._descriptor = os_files.open_following(path)

    def read_at(self, place: int, size: int) -> bytes:
        """The bytes there, fewer only at the end of the file."""
        assert self._descriptor is not None
        return os_files.read_at(self._descriptor, size, place)

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


def opened(archive: Archive, member: Member) -> io.RawIOBase:
    """The content, from any thread.

    Errors: ValueError with the reason, here or when it is read.
    """
    if member.is_encrypted:
        raise ValueError("it is encrypted; unpack the archive and give its folder")
    if member.method not in (_STORED, _DEFLATED, _BZIP2, _LZMA):
        name = _OTHERS.get(member.method, f"method {member.method}")
        raise ValueError(
            f"it is packed with {name}, which vdiff does not read; "
            "unpack the archive and give its folder"
        )
    header = archive.read_at(member.offset, _HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(b"PK\3\4"):
        raise ValueError("its place in the archive is damaged")
    _, name_bytes, extra_bytes = _HEADER.unpack(header)
    start = member.offset + _HEADER.size + name_bytes + extra_bytes
    # A bomb: a few bytes that are the content of millions of files.
    if start + member.packed_bytes > member.limit:
        raise ValueError("it overlaps with the next file of the archive")
    packed = _Packed(archive, start, member.packed_bytes)
    return _Content(_unpacked(packed, member.method), member)


class _Packed(io.RawIOBase):
    """The bytes of a member as they lie in the archive."""

    def __init__(self, archive: Archive, start: int, num_bytes: int) -> None:
        self._archive = archive
        self._place = start
        self._left = num_bytes

    def read(self, size: int = -1, /) -> bytes:
        if size < 0 or size > self._left:
            size = self._left
        data = self._archive.read_at(self._place, size)
        self._place += len(data)
        self._left -= len(data)
        return data


class _Content(io.RawIOBase):
    """The bytes of a member; ValueError where they are not what was packed."""

    def __init__(self, inner: io.RawIOBase, member: Member) -> None:
        self._inner = inner
        self._member = member
        self._count = 0
        self._crc = 0

    def read(self, size: int = -1, /) -> bytes:
        try:
            data = self._inner.read(size) or b""
        except (zlib.error, lzma.LZMAError, EOFError) as err:
            raise ValueError(f"its packed bytes are damaged: {err}") from err
        except OSError as err:
            # Without a number, it is how bzip2 says that its bytes are damaged.
            if err.errno is None:
                raise ValueError(f"its packed bytes are damaged: {err}") from err
            raise
        self._count += len(data)
        self._crc = zlib.crc32(data, self._crc)
        # At once, not at the end: it may unpack to gigabytes.
        if self._count > self._member.num_bytes:
            raise ValueError("it is longer than the archive says")
        if not data and size and self._count < self._member.num_bytes:
            raise ValueError("it is shorter than the archive says")
        if not data and size and self._crc != self._member.crc:
            raise ValueError("it is not what was packed (its checksum differs)")
        return data


def _unpacked(packed: _Packed, method: int) -> io.RawIOBase:
    if method == _STORED:
        return packed
    if method == _DEFLATED:
        return Unpacked(packed.read, _inflate, is_one=True)
    if method == _BZIP2:
        return Unpacked(packed.read, bz2.BZ2Decompressor, is_one=True)
    # LZMA: the version of the packer, the length of the properties, which is 5, and the properties.
    header = packed.read(_LZMA_HEADER.size)
    if len(header) < _LZMA_HEADER.size or _LZMA_HEADER.unpack(header)[0] != 5:
        raise ValueError("its packed bytes are damaged")
    return Unpacked(packed.read, partial(lzma_of_zip, header[4:]), is_one=True)


def _inflate() -> Inflate:
    # Without a header and a checksum of zlib's: the zip file has its own.
    return Inflate(-15)
