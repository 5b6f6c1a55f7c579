"""What a source of pictures is: the contract that a folder, a zip and a tar file fulfil. Read this
to add a kind.

A kind of source says which paths it can read (`recognises`), lists what is there (`listing`) and
hands out bytes (`pictures`). The order, the classes and the fingerprints are made here, the same
way for every kind. `vdiff prepare` decides which files are skipped, tried again or left out, and
where it goes on.

A new kind is one file with a class, and a line in the table `SOURCES` of `data/__init__.py` or an
entry point `vdiff.sources` of another package.
"""

import hashlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar, overload

from vdiff.data.sources.classes import Classes, LabelsFrom, Lists, classes_of
from vdiff.data.sources.kinds import is_known_picture
from vdiff.data.sources.left_out import STRAY, TWICE, LeftOut
from vdiff.data.sources.names import is_hidden
from vdiff.data.sources.picture import File, Picture
from vdiff.errors import DataError
from vdiff.system.printable import printable


class Files(Sequence[File]):
    """Picture files in columns: a million need about 130 MB.

    places: a number, not negative, by which the kind of source finds the bytes.
    is_linked: 1 for a file to which a link in the source led.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.num_bytes: array[int] = array("Q")
        self.places: array[int] = array("Q")
        self.is_linked: bytearray = bytearray()

    def add(self, name: str, num_bytes: int, place: int, is_linked: bool = False) -> None:
        """Append a file."""
        self.names.append(name)
        self.num_bytes.append(num_bytes)
        self.places.append(place)
        self.is_linked.append(is_linked)

    def keep(self, order: Sequence[int]) -> None:
        """Keep the files at these indices, in this order, and drop all others."""
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
    """What a kind of source found: its pictures in their order, what is no picture,
    and lists of labels.

    notes: what a user should know beside that, one sentence each.
    """

    files: Files = field(default_factory=Files)
    left_out: LeftOut = field(default_factory=LeftOut)
    lists: Lists = field(default_factory=Lists)
    notes: list[str] = field(default_factory=list)


class Source(ABC):
    """All pictures of one place, always in the same order.

    path: what `vdiff prepare` was given.   labels_from: `auto`, `folders`, `none` or a labels file,
    see `classes_of`.
    """

    decided_by: ClassVar[str] = "the size and the times of the file"
    """What `stamp` looks at, in words."""

    keeps_order: ClassVar[bool] = False
    """Whether the pictures stay in the order of `listing`, because the source can only be read from
    its beginning. Otherwise they are sorted by name, and of several with one name only the last is
    taken.
    """

    def __init__(self, path: Path, labels_from: LabelsFrom = "auto") -> None:
        self.path = path
        self.labels_from: LabelsFrom = labels_from

    @classmethod
    @abstractmethod
    def recognises(cls, path: Path, beginning: bytes) -> bool:
        """Whether what is at `path` is of this kind. `beginning`: its first 512 bytes, none of a
        folder.

        All kinds may be asked, so the module must be quick to import: large packages are imported
        in `listing`.
        Errors: OSError, if `path` cannot be read.
        """

    @abstractmethod
    def listing(self) -> Listing:
        """Everything that is there. It is asked for once, and must say the same every time.

        Names are paths in the source, with slashes; their folders may be classes. If other things
        than pictures may lie in it, `archive.Sorting` tells them apart. `archive.readable` turns
        errors of damaged files into DataError.
        Errors: DataError if the source cannot be read or is damaged.
        """

    @abstractmethod
    def pictures(self, start: int) -> Iterator[Picture]:
        """The pictures from place `start` of `files` on, all of them, in that order.

        A few hundred are asked for before the first is read, so none should hold its bytes. A
        `Picture` is given a function that opens its file from any thread. If the bytes can be read
        only now, a `ReadPicture` holds them.
        """

    @cached_property
    def stamp(self) -> str:
        """SHA-256 that changes when a picture changes, computed without reading one.

        By default `path` is one file.
        """
        return stamp_of(self.path)

    @property
    def marks(self) -> str | None:
        """The marks of all pictures, one after the other, if they are known without
        reading them; else None.
        """
        return None

    def pictures_from(self, start: int) -> Iterator[Picture]:
        """What `pictures` hands out.   Errors: DataError if it is not what `files` says."""
        names = self.files.names
        index = start
        for picture in self.pictures(start):
            # The class of a picture is found by its place in `files`: another picture would get it.
            if index == len(names) or picture.file.name != names[index]:
                wanted = "nothing more"
                if index < len(names):
                    wanted = f"`{names[index]}`"
                problem = f"`{self.path}` gave `{picture.file.name}` where its list has {wanted}"
                maker = f"`{type(self).__name__}` of `{type(self).__module__.partition('.')[0]}`"
                fix = f"type the command again; if that does not help, {maker} is at fault"
                raise DataError(printable(problem), fix, self.path)
            yield picture
            index += 1

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
        """What version 0.1 of vdiff had as fingerprint:
        it went by suffixes alone and followed no links to folders.
        """
        return listed(self._earlier_files())

    @cached_property
    def labels_fingerprint(self) -> str:
        """SHA-256 over the classes and the class of each file."""
        labels = array("q", self.classes.labels)
        return hashlib.sha256(
            "\0".join([*self.classes.names, ""]).encode() + labels.tobytes()
        ).hexdigest()

    @cached_property
    def _chosen(self) -> tuple[Listing, Classes]:
        """The listing in its order, and the class of each of its files."""
        listing = self.listing()
        if not self.keeps_order:
            _put_in_order(listing)
        classes = classes_of(listing.files.names, listing.lists, self.labels_from)
        if not classes.names or min(classes.labels) >= 0:
            return listing, classes
        # A network with classes cannot learn from a picture without one.
        for index, label in enumerate(classes.labels):
            if label < 0:
                listing.left_out.add(listing.files.names[index], STRAY)
        with_class = [index for index, label in enumerate(classes.labels) if label >= 0]
        listing.files.keep(with_class)
        return listing, classes.only(with_class)

    def _earlier_files(self) -> Iterator[tuple[str, int]]:
        files = self.files
        for index, (name, num_bytes) in enumerate(files):
            if is_known_picture(name) and not is_hidden(name) and not files.is_linked[index]:
                yield name, num_bytes


def _put_in_order(listing: Listing) -> None:
    """By name; of several files with one name the last one, as when archives are unpacked."""
    files = listing.files
    # `sorted` is stable: files with one name stay in the order in which they came.
    order = sorted(range(len(files)), key=files.names.__getitem__)
    if len(set(files.names)) == len(order):
        files.keep(order)
        return
    kept: list[int] = []
    for index in order:
        if kept and files.names[kept[-1]] == files.names[index]:
            listing.left_out.add(files.names[index], TWICE)
            kept.pop()
        kept.append(index)
    files.keep(kept)


def twice(count: int) -> str:
    """The note for pictures to which more than one way leads."""
    return f"{count:,} pictures are taken more than once, as links lead to them"


def listed(files: Iterable[tuple[str, int]]) -> str:
    """SHA-256 over names and sizes."""
    digest = hashlib.sha256()
    # No name holds the byte 0, so it separates them.
    for name, num_bytes in files:
        digest.update(f"{name}\0{num_bytes}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def stamp_of(path: Path) -> str:
    """SHA-256 over the size and the times of a file."""
    # Both times: a program can set that of the content back, but not the other one.
    status = path.stat()
    return hashlib.sha256(
        repr((status.st_size, status.st_mtime_ns, status.st_ctime_ns)).encode()
    ).hexdigest()
