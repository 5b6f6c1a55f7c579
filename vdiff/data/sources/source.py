"""What a source of pictures is: the contract that a folder, a zip and a tar file fulfil.

A kind of source lists what is there (`_list`) and hands out bytes (`pictures`). Which of it is taken, in which order it
stands, its classes and its fingerprints are decided here, the same for every kind.
"""

import copy
import hashlib
import io
import zlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple, overload

from vdiff import images
from vdiff.data.patience import is_of_machine
from vdiff.data.sources.classes import Classes, Labels, Lists, classes_of
from vdiff.data.sources.kinds import is_known_picture
from vdiff.data.sources.left_out import STRAY, LeftOut
from vdiff.data.sources.names import is_hidden

MAX_FILE_BYTES = 256 * 2**20
UNREAD = "--------"
"""The mark of a file of which not one byte could be read."""

_PIECE = 2**16
"""Bytes that are read at a time; the first ones tell whether a file is a picture."""


class File(NamedTuple):
    """A picture file: its path inside the source, with slashes, and its size in bytes."""

    name: str
    num_bytes: int


class Files(Sequence[File]):
    """Picture files in columns: a million need about 130 MB.

    places: what the kind of source finds the bytes by.   is_linked: 1 where a link in the source led to it.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.num_bytes = array("Q")
        self.places = array("Q")
        self.is_linked = bytearray()

    def add(self, name: str, num_bytes: int, place: int, is_linked: bool = False) -> None:
        """Append one."""
        self.names.append(name)
        self.num_bytes.append(num_bytes)
        self.places.append(place)
        self.is_linked.append(is_linked)

    def keep(self, order: Sequence[int]) -> None:
        """Only those at these places stay, in this order."""
        self.names = [self.names[index] for index in order]
        self.num_bytes = array("Q", (self.num_bytes[index] for index in order))
        self.places = array("Q", (self.places[index] for index in order))
        self.is_linked = bytearray(self.is_linked[index] for index in order)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> File: ...
    @overload
    def __getitem__(self, index: slice) -> list[File]: ...
    def __getitem__(self, index: int | slice) -> File | list[File]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return File(self.names[index], self.num_bytes[index])


@dataclass
class Listing:
    """What a kind of source found: its pictures in their order, what is no picture, and lists of labels.

    notes: what a user should know beside that, one sentence each.
    """

    files: Files = field(default_factory=Files)
    left_out: LeftOut = field(default_factory=LeftOut)
    lists: Lists = field(default_factory=Lists)
    notes: list[str] = field(default_factory=list)


class Picture:
    """A file of a source and how to get its bytes: once, from any thread. `opened` may raise anything.

    mark: eight letters that tell whether the content is the same another time: the CRC-32 of what was read of it.
    """

    def __init__(self, file: File, opened: Callable[[], io.RawIOBase], mark: str = UNREAD) -> None:
        self.file = file
        self.mark = mark
        self._opened = opened
        self._is_marked = mark != UNREAD

    def read(self) -> bytes:
        """The bytes of the file; ValueError with the reason if they cannot be had.

        OSError and MemoryError where that is not the file's fault.
        """
        if self.file.num_bytes > MAX_FILE_BYTES:
            raise ValueError(f"the file is larger than {MAX_FILE_BYTES:,} bytes")
        try:
            return self._all_bytes()
        except ValueError:
            raise
        except Exception as err:  # decompressors alone know five kinds
            if is_of_machine(err):
                raise
            raise ValueError(f"the file cannot be read: {str(err) or type(err).__name__}") from err

    def _all_bytes(self) -> bytes:
        """All bytes; ValueError as soon as the beginning tells that they would be refused."""
        data, crc = io.BytesIO(), 0  # which gives its bytes away without a copy
        is_checked = False
        with self._opened() as file:
            while piece := file.read(_PIECE):
                data.write(piece)
                crc = zlib.crc32(piece, crc)
                if not self._is_marked:
                    self.mark = f"{crc:08x}"
                if not is_checked and data.tell() >= _PIECE:
                    images.check_beginning(data.getvalue())
                    is_checked = True
                if data.tell() > MAX_FILE_BYTES:
                    raise ValueError("the file has grown")
        if not is_checked:
            images.check_beginning(data.getvalue())
        return data.getvalue()


class ReadPicture(Picture):
    """A picture whose bytes are read at once, because the source cannot come back to them."""

    def __init__(self, file: File, opened: io.RawIOBase) -> None:
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
        """The bytes, which are then let go of; ValueError with the reason if they could not be had."""
        if self._error:
            raise self._error
        held, self._bytes = self._bytes, b""
        return held


class Source(ABC):
    """All pictures of one place, always in the same order.

    labels_from: `auto`, `folders` or `none`, see `classes_of`.
    """

    decided_by: ClassVar[str]
    """What `stamp` looks at, in words."""

    def __init__(self, path: Path, labels_from: Labels = "auto") -> None:
        self.path = path
        self.labels_from: Labels = labels_from

    @classmethod
    @abstractmethod
    def recognises(cls, path: Path, beginning: bytes) -> bool:
        """Whether what is at `path`, and begins so if it is a file, is of this kind. May raise OSError."""

    @abstractmethod
    def _list(self) -> Listing:
        """Everything that is there. DataError if the source cannot be read or is damaged."""

    @abstractmethod
    def pictures(self, start: int) -> Iterator[Picture]:
        """The pictures from place `start` of `files` on."""

    @property
    @abstractmethod
    def stamp(self) -> str:
        """SHA-256 over what tells, without reading a picture, that nothing has changed."""

    @property
    def marks(self) -> str | None:
        """The marks of all pictures, one after the other, where they are known without reading them."""
        return None

    @property
    def files(self) -> Files:
        """The picture files, in the order in which they are stored."""
        return self._chosen[0].files

    @property
    def left_out(self) -> LeftOut:
        """Everything else that is there."""
        return self._chosen[0].left_out

    @property
    def notes(self) -> list[str]:
        """What a user should know about the source beside that."""
        return self._chosen[0].notes

    @property
    def classes(self) -> Classes:
        """The class of each of `files`."""
        return self._chosen[1]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the names and sizes of all picture files."""
        return listed((file.name, file.num_bytes) for file in self.files)

    @cached_property
    def earlier_fingerprint(self) -> str:
        """What version 0.1 of vdiff had as fingerprint: it went by suffixes alone and followed no links to folders."""
        return listed(self._earlier_files())

    @cached_property
    def labels_fingerprint(self) -> str:
        """SHA-256 over the classes and the class of each file."""
        labels = array("q", self.classes.labels)
        return hashlib.sha256("\0".join([*self.classes.names, ""]).encode() + labels.tobytes()).hexdigest()

    @cached_property
    def _chosen(self) -> tuple[Listing, Classes]:
        found = self._list()
        classes = classes_of(found.files.names, found.lists, self.labels_from)
        strays = [index for index, label in enumerate(classes.labels) if label < 0] if classes.names else []
        if strays:
            for index in strays:
                found.left_out.add(found.files.names[index], STRAY)
            order = [index for index, label in enumerate(classes.labels) if label >= 0]
            found.files.keep(order)
            classes = classes.only(order)
        return found, classes

    def _earlier_files(self) -> Iterator[tuple[str, int]]:
        files = self.files
        for index, (name, num_bytes) in enumerate(files):
            if is_known_picture(name) and not is_hidden(name) and not files.is_linked[index]:
                yield name, num_bytes


def twice(count: int) -> str:
    """The note for pictures to which more than one way leads."""
    return f"{count:,} pictures are taken more than once, as links lead to them"


def listed(files: Iterable[tuple[str, int]]) -> str:
    """SHA-256 over names and sizes."""
    digest = hashlib.sha256()
    for name, num_bytes in files:
        digest.update(f"{name}\0{num_bytes}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def stamp_of(path: Path) -> str:
    """SHA-256 over the size and the times of a file."""
    status = path.stat()
    return hashlib.sha256(repr((status.st_size, status.st_mtime_ns, status.st_ctime_ns)).encode()).hexdigest()
