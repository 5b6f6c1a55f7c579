"""The list of files at the end of a zip archive, read entry by entry.

`zipfile` is not used for it: it keeps the whole list in memory, about a kilobyte for each entry; it
does not notice if there are fewer entries than the end says; and it gives up at one name that is
not UTF-8.
"""

import io
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

# Sections 4.3.12 to 4.3.16 of PKWARE's APPNOTE.TXT, the specification of zip files.
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s4B4HL2L5H2L")
_MAX_COMMENT = 2**16
# A number that does not fit into 32 bits stands in the extra field.
_IN_EXTRA = 0xFFFFFFFF
_FIRST = b"PK\3\4"
# Bit 11 of the flags: the name is UTF-8. Otherwise it has the code page of the first IBM PC.
_UTF_8 = 0x800
# Systems on which archives keep the mode of a file: Unix and macOS.
_UNIX = (3, 19)
# The type of a file in its mode, as `stat.S_IFMT` and `stat.S_IFLNK` have it.
_TYPES = 0o170000
_LINK = 0o120000


class Entry(NamedTuple):
    """A file in the list.

    offset: of its own header, from the beginning of the archive.
    packed_bytes, num_bytes: of its content.
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
    """Where the list is.

    start: from the beginning of the file.   is_exact: whether `num_entries` is not counted modulo
    2**16.
    shift: what must be added to all offsets, because something else stands before the archive.
    """

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
    end = tail_start + place
    end_64 = _find_end_64(file, end)
    if end_64 is not None:
        end, fields = end_64
        _, _, _, _, disk, disk_of_list, _, num_entries, num_bytes, offset = fields
    if disk or disk_of_list:
        raise ValueError("it is one part of an archive in several files; join them first")
    # The list ends where the record of the end begins.
    start = end - num_bytes
    if not 0 <= offset <= start:
        raise ValueError("its end points to places outside of it: it is damaged or cut off")
    # Something may stand before an archive, as in programs that unpack themselves. But if the file
    # begins as an archive does, the offsets must be right: else a piece in the middle is missing.
    file.seek(0)
    if start > offset and file.read(4) == _FIRST:
        raise ValueError("its end does not fit its beginning: it is damaged or cut off")
    is_exact = end_64 is not None
    return End(start, num_bytes, num_entries, is_exact, start - offset)


def entries(file: io.BufferedReader, end: End) -> Iterator[Entry]:
    """The files in the list, and the folders, whose names end in a slash;
    ValueError where it is damaged.
    """
    file.seek(end.start)
    num_entries = 0
    left = end.num_bytes
    while left > 0:
        fields = file.read(_ENTRY.size)
        if len(fields) < _ENTRY.size or not fields.startswith(b"PK\1\2"):
            raise ValueError(f"entry {num_entries:,} of its list of files is damaged")
        numbers = _ENTRY.unpack(fields)
        name_bytes, extra_bytes, comment_bytes = numbers[12:15]
        name = file.read(name_bytes)
        extra = file.read(extra_bytes)
        file.seek(comment_bytes, io.SEEK_CUR)
        left -= _ENTRY.size + name_bytes + extra_bytes + comment_bytes
        num_entries += 1
        yield _entry(numbers, name, extra, end.shift)
    num_missing = end.num_entries - num_entries
    if not end.is_exact:
        # Old programs write more entries than the 16 bits for their number can tell.
        num_missing %= 2**16
    if left or num_missing:
        raise ValueError(f"its list has {num_entries:,} files, its end says {end.num_entries:,}")


def _place_of_end(tail: bytes) -> int | None:
    """The place of the last record that reaches to the end of the file;
    if none does, of the last one.
    """
    # The comment at the end may itself hold the signature of a record.
    last = tail.rfind(b"PK\5\6", 0, max(0, len(tail) - _END.size + 4))
    place = last
    while place >= 0:
        comment_bytes = int.from_bytes(tail[place + 20 : place + 22], "little")
        if place + _END.size + comment_bytes == len(tail):
            return place
        place = tail.rfind(b"PK\5\6", 0, place)
    if last < 0:
        return None
    return last


def _find_end_64(file: io.BufferedReader, end: int) -> tuple[int, tuple[Any, ...]] | None:
    """The place and the fields of the record for large archives,
    if one stands before the one at `end`.
    """
    if end < _LOCATOR_64.size:
        return None
    file.seek(end - _LOCATOR_64.size)
    signature, _, offset, _ = _LOCATOR_64.unpack(file.read(_LOCATOR_64.size))
    if signature != b"PK\6\7":
        return None
    # Just before the locator; else where it says, which is wrong if something stands before the
    # archive.
    for place in (end - _LOCATOR_64.size - _END_64.size, offset):
        if 0 <= place <= end - _END_64.size:
            file.seek(place)
            fields = file.read(_END_64.size)
            if fields.startswith(b"PK\6\6"):
                return place, _END_64.unpack(fields)
    raise ValueError("its end is damaged")


def _entry(numbers: tuple[Any, ...], raw_name: bytes, extra: bytes, shift: int) -> Entry:
    system = numbers[2]
    flags = numbers[5]
    crc, packed_bytes, num_bytes = numbers[9:12]
    attributes, offset = numbers[17:19]
    if _IN_EXTRA in (packed_bytes, num_bytes, offset):
        num_bytes, packed_bytes, offset = _from_extra(extra, num_bytes, packed_bytes, offset)
    encoding = "cp437"
    if flags & _UTF_8:
        encoding = "utf-8"
    # What follows a byte 0 in a name is not part of it, as other programs have it.
    name = raw_name.split(b"\0")[0].decode(encoding, "surrogateescape")
    return Entry(
        name=name,
        offset=offset + shift,
        packed_bytes=packed_bytes,
        num_bytes=num_bytes,
        method=numbers[6],
        is_encrypted=bool(flags & 1),
        crc=crc,
        is_link=system in _UNIX and (attributes >> 16) & _TYPES == _LINK,
    )


def _from_extra(extra: bytes, *small: int) -> tuple[int, int, int]:
    """Size, packed size and offset of an entry. Those that did not fit into 32 bits are in the
    extra field.

    small: the three as they stand in the entry.
    """
    # The extra field is a row of parts: 2 bytes kind, 2 bytes length, the content. Kind 1 is the
    # one of large archives.
    place = 0
    large_numbers = b""
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, place)
        if kind == 1:
            large_numbers = extra[place + 4 : place + 4 + length]
        place += 4 + length
    numbers: list[int] = []
    for number in small:
        if number != _IN_EXTRA:
            numbers.append(number)
            continue
        if len(large_numbers) < 8:
            raise ValueError("an entry of its list of files lacks its size or place")
        numbers.append(int.from_bytes(large_numbers[:8], "little"))
        large_numbers = large_numbers[8:]
    return numbers[0], numbers[1], numbers[2]
