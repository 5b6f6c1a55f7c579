"""The list of files at the end of a zip archive, entry by entry.

`zipfile` reads the whole list into memory, with comments and extra fields, and keeps about a kilobyte for each entry;
it does not notice if there are fewer entries than the end says; and it gives up at one name that is not UTF-8.
"""

import io
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s4B4HL2L5H2L")
_MAX_COMMENT = 2**16
_IN_EXTRA = 0xFFFFFFFF
_FIRST = b"PK\3\4"
_UTF_8 = 0x800
_UNIX = (3, 19)
_TYPES, _LINK = 0o170000, 0o120000


class Entry(NamedTuple):
    """A file in the list.

    offset: of its own header, from the beginning of the archive.   packed_bytes, num_bytes: of its content.
    method: of compression.   crc: CRC-32 of its content.
    """

    name: str
    offset: int
    packed_bytes: int
    num_bytes: int
    method: int
    is_encrypted: bool
    crc: int
    is_link: bool


class End(NamedTuple):
    """Where the list is.   start: from the beginning of the file.   shift: what must be added to all offsets."""

    start: int
    num_bytes: int
    num_entries: int
    is_exact: bool
    shift: int


def find_end(file: io.BufferedReader, size: int) -> End | None:
    """What the record at the end of an archive of `size` bytes says; None if there is none."""
    tail_start = max(0, size - _MAX_COMMENT - _END.size)
    file.seek(tail_start)
    tail = file.read(size - tail_start)
    place = _place_of_end(tail)
    if place is None:
        return None
    _, disk, disk_of_list, _, num_entries, num_bytes, offset, _ = _END.unpack_from(tail, place)
    end, is_exact = tail_start + place, False
    found = _find_end_64(file, end)
    if found is not None:
        end, is_exact = found[0], True
        _, _, _, _, disk, disk_of_list, _, num_entries, num_bytes, offset = found[1]
    if disk or disk_of_list:
        raise ValueError("it is one part of an archive in several files; join them first")
    start = end - num_bytes
    if not 0 <= offset <= start:
        raise ValueError("its end points to places outside of it: it is damaged or cut off")
    file.seek(0)
    if start > offset and file.read(4) == _FIRST:
        raise ValueError("its end does not fit its beginning: it is damaged or cut off")
    return End(start, num_bytes, num_entries, is_exact, start - offset)


def entries(file: io.BufferedReader, end: End) -> Iterator[Entry]:
    """The files in the list, and the folders, whose names end in a slash; ValueError where it is damaged."""
    file.seek(end.start)
    num_entries, left = 0, end.num_bytes
    while left > 0:
        fields = file.read(_ENTRY.size)
        if len(fields) < _ENTRY.size or not fields.startswith(b"PK\1\2"):
            raise ValueError(f"entry {num_entries:,} of its list of files is damaged")
        numbers = _ENTRY.unpack(fields)
        name_bytes, extra_bytes, comment_bytes = numbers[12:15]
        name, extra = file.read(name_bytes), file.read(extra_bytes)
        file.seek(comment_bytes, io.SEEK_CUR)
        left -= _ENTRY.size + name_bytes + extra_bytes + comment_bytes
        num_entries += 1
        yield _entry(numbers, name, extra, end.shift)
    is_whole = (
        num_entries == end.num_entries
        if end.is_exact
        else (num_entries - end.num_entries) % 2**16 == 0
    )
    if left or not is_whole:
        raise ValueError(f"its list has {num_entries:,} files, its end says {end.num_entries:,}")


def _place_of_end(tail: bytes) -> int | None:
    """Where the last record lies that reaches to the end of the file; if there is none, the last one."""
    last = place = tail.rfind(b"PK\5\6", 0, max(0, len(tail) - _END.size + 4))
    while place >= 0:
        if place + _END.size + int.from_bytes(tail[place + 20 : place + 22], "little") == len(tail):
            return place
        place = tail.rfind(b"PK\5\6", 0, place)
    return last if last >= 0 else None


def _find_end_64(file: io.BufferedReader, end: int) -> tuple[int, tuple[Any, ...]] | None:
    """The place and the fields of the record for large archives, if one stands before the one at `end`."""
    if end < _LOCATOR_64.size:
        return None
    file.seek(end - _LOCATOR_64.size)
    signature, _, offset, _ = _LOCATOR_64.unpack(file.read(_LOCATOR_64.size))
    if signature != b"PK\6\7":
        return None
    for place in (end - _LOCATOR_64.size - _END_64.size, offset):
        if 0 <= place <= end - _END_64.size:
            file.seek(place)
            fields = file.read(_END_64.size)
            if fields.startswith(b"PK\6\6"):
                return place, _END_64.unpack(fields)
    raise ValueError("its end is damaged")


def _entry(numbers: tuple[Any, ...], raw_name: bytes, extra: bytes, shift: int) -> Entry:
    system, flags, method = numbers[2], numbers[5], numbers[6]
    crc, packed_bytes, num_bytes = numbers[9:12]
    attributes, offset = numbers[17:19]
    if _IN_EXTRA in (packed_bytes, num_bytes, offset):
        num_bytes, packed_bytes, offset = _from_extra(extra, num_bytes, packed_bytes, offset)
    encoding = "utf-8" if flags & _UTF_8 else "cp437"
    name = raw_name.split(b"\0")[0].decode(encoding, "surrogateescape")
    is_link = system in _UNIX and (attributes >> 16) & _TYPES == _LINK
    return Entry(
        name, offset + shift, packed_bytes, num_bytes, method, bool(flags & 1), crc, is_link
    )


def _from_extra(extra: bytes, *small: int) -> tuple[int, int, int]:
    """Size, packed size and offset, of which those are in the extra field that did not fit."""
    place, waiting = 0, b""
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, place)
        if kind == 1:
            waiting = extra[place + 4 : place + 4 + length]
        place += 4 + length
    found = []
    for number in small:
        if number == _IN_EXTRA:
            if len(waiting) < 8:
                raise ValueError("an entry of its list of files lacks its size or place")
            found.append(int.from_bytes(waiting[:8], "little"))
            waiting = waiting[8:]
        else:
            found.append(number)
    return found[0], found[1], found[2]
