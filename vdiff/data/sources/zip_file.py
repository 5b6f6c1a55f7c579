"""The pictures of a zip archive, sorted by name."""

import hashlib
import io
from array import array
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from vdiff.data.sources.archive import Belief, Sorting, readable
from vdiff.data.sources.left_out import NOWHERE, SPECIAL, UNREADABLE
from vdiff.data.sources.links import MAX_TARGET, Link
from vdiff.data.sources.picture import Picture
from vdiff.data.sources.source import Listing, Source
from vdiff.data.sources.zip_directory import Entry, entries, find_end
from vdiff.data.sources.zip_member import Archive, Member, opened

_LEAST_BYTES = 128
"""What a file needs in a zip archive at least: two headers, with its name in both."""


class ZipSource(Source):
    """All pictures of a zip archive, sorted by name. Links are followed, but never out of it."""

    decided_by: ClassVar[str] = "the checksums in the archive"

    _columns: "_Columns"
    _has_backslashes = False

    @classmethod
    def recognises(cls, path: Path, beginning: bytes) -> bool:
        # A folder, or an empty file.
        if not beginning:
            return False
        if beginning.startswith((b"PK\3\4", b"PK\5\6")):
            return True
        # A program that unpacks itself, or something else before the archive.
        with path.open("rb") as file:
            try:
                return find_end(file, path.stat().st_size) is not None
            except ValueError:
                # Such as the last one of several parts: listing it will tell what is wrong.
                return path.suffix.lower() == ".zip"

    @cached_property
    def stamp(self) -> str:
        return hashlib.sha256(f"{self.fingerprint}{self.marks}".encode()).hexdigest()

    @cached_property
    def marks(self) -> str:
        places = self.files.places
        return "".join(f"{self._columns.crcs[place]:08x}" for place in places)

    def pictures(self, start: int) -> Iterator[Picture]:
        files = self.files
        crcs = self._columns.crcs
        with readable(self.path):
            archive = Archive(self.path)
        for index in range(start, len(files)):
            place = files.places[index]
            yield Picture(files[index], partial(self._opened, archive, place), f"{crcs[place]:08x}")

    def listing(self) -> Listing:
        with readable(self.path), self.path.open("rb") as file:
            archive = Archive(self.path)
            size = self.path.stat().st_size
            end = find_end(file, size)
            if end is None:
                raise EOFError("its end, with the list of its files, is missing: it is cut off")
            self._columns = _Columns(Belief(size, _LEAST_BYTES))
            names = [self._columns.add(entry) for entry in entries(file, end)]
            self._columns.close(end.start)
            self._has_backslashes = _are_of_windows(names)
            sorting = Sorting(size)
            if self._has_backslashes:
                names = [name.replace("\\", "/") for name in names]
            for place, name in enumerate(names):
                self._sort(sorting, name, place, partial(self._opened, archive, place))
            return sorting.done()

    def _sort(
        self, sorting: Sorting, name: str, place: int, content: Callable[[], io.RawIOBase]
    ) -> None:
        num_bytes = self._columns.num_bytes[place]
        if name.endswith("/"):
            # A folder. With content, it is something else that users should hear of.
            if num_bytes:
                sorting.listing.left_out.add(name, SPECIAL)
        elif not self._columns.is_link[place]:
            sorting.add_file(name, num_bytes, place, content)
        elif num_bytes > MAX_TARGET:
            sorting.listing.left_out.add(name, NOWHERE)
        else:
            # The target of a link is its content.
            try:
                target = content().read(MAX_TARGET)
            except ValueError:
                sorting.listing.left_out.add(name, UNREADABLE)
            else:
                sorting.add_link(
                    Link(name, (target or b"").decode(errors="surrogateescape"), is_hard=False)
                )

    def _opened(self, archive: Archive, place: int) -> io.RawIOBase:
        return opened(archive, self._columns.member(place))

    def _earlier_files(self) -> Iterator[tuple[str, int]]:
        files = super()._earlier_files()
        if not self._has_backslashes:
            return files
        # Older versions kept the backslashes, which sort in another way.
        return iter(sorted((name.replace("/", "\\"), num_bytes) for name, num_bytes in files))


class _Columns:
    """What the list says of each file, in columns: a million need about 40 MB."""

    def __init__(self, belief: Belief) -> None:
        self.num_bytes = array("Q")
        self.crcs = array("L")
        self.is_link = bytearray()
        self._belief = belief
        self._offsets = array("Q")
        self._packed_bytes = array("Q")
        self._methods = array("L")
        self._limits = np.zeros(0, np.uint64)

    def add(self, entry: Entry) -> str:
        """Keep an entry and return its name."""
        self._belief.take(entry.name)
        self.num_bytes.append(entry.num_bytes)
        self.crcs.append(entry.crc)
        self.is_link.append(entry.is_link)
        self._offsets.append(entry.offset)
        self._packed_bytes.append(entry.packed_bytes)
        self._methods.append(entry.method | entry.is_encrypted << 16)
        return entry.name

    def close(self, end: int) -> None:
        """To be called after the last entry.   end: where the list of the archive begins."""
        # Where each file, and then the list, begins: no file may reach beyond the next one.
        # Archives in which many files share their bytes unpack to more than any disk holds.
        self._limits = np.unique(np.append(np.array(self._offsets, np.uint64), np.uint64(end)))

    def member(self, place: int) -> Member:
        """How to read one."""
        offset = self._offsets[place]
        method = self._methods[place]
        # 0 where nothing follows: such a file cannot be read.
        limit = 0
        following = int(np.searchsorted(self._limits, np.uint64(offset), "right"))
        if following < len(self._limits):
            limit = int(self._limits[following])
        return Member(
            offset=offset,
            packed_bytes=self._packed_bytes[place],
            num_bytes=self.num_bytes[place],
            method=method & 0xFFFF,
            is_encrypted=bool(method >> 16),
            crc=self.crcs[place],
            limit=limit,
        )


def _are_of_windows(names: list[str]) -> bool:
    """Whether backslashes separate the folders in the names,
    as old programs of Windows write them.
    """
    return not any("/" in name for name in names) and any("\\" in name for name in names)
