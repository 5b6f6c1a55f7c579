"""The pictures of a tar file, compressed or not, in its own order:
it can only be read from the beginning.
"""

import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from lzma import LZMAError
from pathlib import Path
from typing import ClassVar

from vdiff.data.sources.archive import Sorting, damaged, readable
from vdiff.data.sources.left_out import SPARSE, SPECIAL
from vdiff.data.sources.links import Link
from vdiff.data.sources.picture import Picture, ReadPicture
from vdiff.data.sources.source import Files, Listing, Source
from vdiff.data.sources.tar_headers import BLOCK, Member, Members, Stream
from vdiff.data.sources.unpacking import KINDS, Decompressor, Unpacked


class TarSource(Source):
    """All pictures of a tar file, in its order. Links are followed, but never out of it."""

    decided_by: ClassVar[str] = "the size and the times of the archive"
    keeps_order: ClassVar[bool] = True

    @classmethod
    def recognises(cls, path: Path, beginning: bytes) -> bool:
        if _is_header(beginning):
            return True
        make = _decompressor_for(beginning)
        if make is None:
            return False
        with path.open("rb") as file:
            try:
                return _is_header(Stream(Unpacked(file.read, make)).read(BLOCK))
            except (EOFError, LZMAError, zlib.error):
                # A damaged file: listing it will tell what is wrong.
                return True
            except OSError as err:
                # Without a number, it is how bzip2 says that its bytes are damaged.
                return err.errno is None

    def pictures(self, start: int) -> Iterator[Picture]:
        files = self.files
        index = start
        with readable(self.path), _opened(self.path) as (stream, members):
            for place, member in enumerate(members):
                if index == len(files):
                    return
                if files.places[index] != place:
                    continue
                if member.num_bytes != files.num_bytes[index]:
                    raise damaged(self.path, "it changed while it was read")
                same_data = _with_same_data(files, index)
                pictures = _read_now(files, same_data, _Data(stream, member.num_bytes))
                index += len(same_data)
                yield from pictures

    def listing(self) -> Listing:
        with readable(self.path), _opened(self.path) as (stream, members):
            sorting = Sorting(self.path.stat().st_size)
            for place, member in enumerate(members):
                _sort(sorting, member, place, partial(_Data, stream, member.num_bytes))
            listing = sorting.done()
        listing.notes += members.notes
        files = listing.files
        # Linked names stand next to the data that they name, as the archive is read only once.
        if any(files.is_linked):
            rows = zip(files.places, files.is_linked, files.names, range(len(files)), strict=True)
            files.keep([index for *_, index in sorted(rows)])
        return listing


def is_compressed(beginning: bytes) -> bool:
    """Whether a file that begins so is compressed in a way that vdiff reads."""
    return _decompressor_for(beginning) is not None


class _Data(io.RawIOBase):
    """The bytes of the member to which a stream has come."""

    def __init__(self, stream: Stream, num_bytes: int) -> None:
        self._stream = stream
        self._left = num_bytes

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if size < 0 or size > self._left:
            size = self._left
        data = self._stream.read(size)
        if len(data) < size:
            raise EOFError("it is cut off")
        self._left -= size
        return data


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Stream, Members]]:
    """The members of the archive, and the stream that they are read from."""
    with ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        beginning = file.read(BLOCK)
        file.seek(0)
        # A header first: the name of a member may begin as compressed files do.
        make: Callable[[], Decompressor] | None = None
        if not _is_header(beginning):
            make = _decompressor_for(beginning)
        if make is None:
            stream = Stream(file, path.stat().st_size)
        else:
            stream = Stream(Unpacked(file.read, make))
        yield stream, Members(stream)


def _sort(sorting: Sorting, member: Member, place: int, opened: Callable[[], io.RawIOBase]) -> None:
    if member.kind == "file":
        sorting.add_file(member.name, member.num_bytes, place, opened)
    elif member.kind in ("link", "hard link"):
        sorting.add_link(Link(member.name, member.target, member.kind == "hard link"))
    elif member.kind == "sparse":
        sorting.listing.left_out.add(member.name, SPARSE)
    elif member.kind != "folder":
        sorting.listing.left_out.add(member.name, SPECIAL)


def _with_same_data(files: Files, first: int) -> range:
    """The files from `first` on that have the same data:
    the file itself, and other names that links give it.
    """
    end = first + 1
    while end < len(files) and files.places[end] == files.places[first]:
        end += 1
    return range(first, end)


def _read_now(files: Files, same_data: range, data: _Data) -> list[ReadPicture]:
    picture = ReadPicture(files[same_data[0]], data)
    return [picture.alias(files[index]) for index in same_data]


def _is_header(block: bytes) -> bool:
    """Whether a tar file may begin so; one without members has only zeros."""
    if len(block) == BLOCK and not block.strip(b"\0"):
        return True
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _decompressor_for(beginning: bytes) -> Callable[[], Decompressor] | None:
    return next((make for start, make in KINDS.items() if beginning.startswith(start)), None)
