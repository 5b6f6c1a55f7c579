"""Where pictures come from: a folder, a zip or a tar file; which ones there are, in which order and of which class.

Archives are read member by member in memory, never extracted: a name in them is a label, not a place on this disk.
"""

import hashlib
import io
import itertools
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import IO

from vdiff import images
from vdiff.data.patience import is_of_machine, paused
from vdiff.data.store import is_store
from vdiff.errors import DataError

SUFFIXES = frozenset(
    ".png .jpg .jpeg .jpe .jfif .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .pnm .jp2 .j2k .avif".split()  # noqa: SIM905
)
MAX_FILE_BYTES = 256 * 2**20
_BEGINNING, _PIECE = 2**16, 2**12
"""Bytes that are read to see whether a file is a picture; and at a time from a zip, where few become many."""


@dataclass(frozen=True)
class File:
    """A picture file: its path inside the source, with slashes, and its size in bytes."""

    name: str
    num_bytes: int


@dataclass(frozen=True)
class Picture:
    """A file of a source and how to get its bytes: once, from any thread. `get` may raise anything."""

    file: File
    get: Callable[[], bytes]

    def read(self) -> bytes:
        """The bytes of the file; ValueError with the reason if they cannot be had.

        OSError and MemoryError where that is not the file's fault.
        """
        if self.file.num_bytes > MAX_FILE_BYTES:
            raise ValueError(f"the file is larger than {MAX_FILE_BYTES:,} bytes")
        try:
            return self.get()
        except ValueError:
            raise
        except Exception as err:  # zipfile alone knows five kinds
            if is_of_machine(err):
                raise
            raise ValueError(f"the file cannot be read: {str(err) or type(err).__name__}") from err


class Source(ABC):
    """All pictures of one place, always in the same order."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def files(self) -> list[File]:
        """The picture files, in the order in which they are stored."""
        with _readable(self.path):
            return [file for file in self._list() if _is_picture(file.name)]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the names and sizes of all picture files."""
        listing = "".join(f"{file.name}\0{file.num_bytes}\0" for file in self.files)
        return hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()

    @cached_property
    def class_names(self) -> list[str]:
        """The folders just below the deepest one that holds everything, if all pictures lie in them; else none."""
        folders = {PurePosixPath(file.name).parent for file in self.files}
        above = {folder.parent for folder in folders}
        are_classes = len(folders) > 1 and len(above) == 1 and not folders & above
        return sorted(printable(folder.name) for folder in folders) if are_classes else []

    def labels(self) -> list[int]:
        """The class of each file, its place in `class_names`; -1 where there are no classes."""
        places = {name: place for place, name in enumerate(self.class_names)}
        return [places.get(printable(PurePosixPath(file.name).parent.name), -1) for file in self.files]

    @abstractmethod
    def pictures(self, start: int) -> Iterator[Picture]:
        """The pictures from place `start` of `files` on."""

    @abstractmethod
    def _list(self) -> Iterator[File]: ...


def open_source(path: Path) -> Source:
    """The pictures at `path`; DataError if that is not a folder, a zip or a tar file, or if there are none."""
    source = _kind_of(path)(path)
    if not source.files:
        kinds = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
        raise DataError(f"there are no pictures in `{path}`", f"there should be files of these kinds: {kinds}", path)
    return source


def _kind_of(path: Path) -> "type[FolderSource | ZipSource | TarSource]":
    if path.is_dir():
        return FolderSource
    if not path.is_file():
        raise DataError(f"there is no picture folder or archive `{path}`", "check the path of the source", path)
    with _readable(path):
        if zipfile.is_zipfile(path):
            return ZipSource
        if tarfile.is_tarfile(path):
            return TarSource
    raise DataError(f"`{path}` is not an archive of pictures", "give a folder, a zip or a tar file", path)


class FolderSource(Source):
    """All picture files below a folder, sorted by path. Image stores and hidden folders in it are left out."""

    def pictures(self, start: int) -> Iterator[Picture]:
        for file in self.files[start:]:
            yield Picture(file, partial(_bytes_of, partial(io.FileIO, self.path / file.name)))

    def _list(self) -> Iterator[File]:
        paths: list[Path] = []
        for folder, folders, names in os.walk(self.path, onerror=_raise):
            here = Path(folder)
            folders[:] = [name for name in folders if not name.startswith(".") and not is_store(here / name)]
            paths += [here / name for name in names]
        relative = sorted(path.relative_to(self.path).as_posix() for path in paths if path.is_file())
        for name in relative:
            yield File(name, (self.path / name).stat().st_size)


class ZipSource(Source):
    """All picture files of a zip archive, sorted by name."""

    def pictures(self, start: int) -> Iterator[Picture]:
        with _readable(self.path):
            archive = zipfile.ZipFile(self.path)  # open as long as a picture may still be read
        for file in self.files[start:]:
            yield Picture(file, partial(_bytes_of, partial(archive.open, file.name)))

    def _list(self) -> Iterator[File]:
        with zipfile.ZipFile(self.path) as archive:
            members = {member.filename: member.file_size for member in archive.infolist() if not member.is_dir()}
        for name in sorted(members):
            yield File(name, members[name])


class TarSource(Source):
    """All picture files of a tar archive, compressed or not, in the archive's order: there is no way to jump in it."""

    def pictures(self, start: int) -> Iterator[Picture]:
        with _readable(self.path), tarfile.open(self.path, "r|*") as archive:
            members = (member for member in archive if member.isreg() and _is_picture(member.name))
            for member in itertools.islice(members, start, None):
                yield Picture(File(member.name, member.size), _bytes_now(archive, member))

    def _list(self) -> Iterator[File]:
        with tarfile.open(self.path, "r|*") as archive:
            for member in archive:
                if member.isreg():
                    yield File(member.name, member.size)


def printable(name: str) -> str:
    """A file's name for a line of text: tabs, line breaks and bytes that are not UTF-8 are escaped."""
    name = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in name)


def _bytes_of(opened: Callable[[], IO[bytes] | io.FileIO]) -> bytes:
    """All bytes of a file; ValueError as soon as its beginning tells that they would be refused."""
    with opened() as file:
        beginning = file.read(_BEGINNING)
        images.check_beginning(beginning)
        data = io.BytesIO()  # which gives its bytes away without a copy
        data.write(beginning)
        shutil.copyfileobj(file, data, _PIECE if isinstance(file, zipfile.ZipExtFile) else _BEGINNING)
        if data.tell() > MAX_FILE_BYTES:
            raise ValueError("the file has grown")
        return data.getvalue()


def _bytes_now(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Callable[[], bytes]:
    """A function that gives the member's bytes away, which are read at once: the stream moves on."""
    if member.size > MAX_FILE_BYTES:
        return bytes  # refused by its size
    try:
        held = [_bytes_of(lambda: _member(archive, member))]
    except ValueError as err:
        return partial(_fail, err)
    return held.pop


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    return archive.extractfile(member) or io.BytesIO()


def _fail(err: ValueError) -> bytes:
    raise err


def _is_picture(name: str) -> bool:
    """By its suffix; not what hides (`.name`) or what macOS adds to archives."""
    path = PurePosixPath(name)
    is_hidden = any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not is_hidden


def _raise(err: OSError) -> None:
    raise err


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as err:
        if is_of_machine(err):
            raise paused(str(path), err) from err
        raise DataError(f"`{path}` cannot be read: {err}", "check the file, or copy it again", path) from err
