"""The pictures of a folder and of all folders below it, sorted by path."""

import hashlib
import io
import os
from array import array
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from vdiff.data.patience import is_of_machine
from vdiff.data.seal import FILE
from vdiff.data.sources.kinds import (
    BEGINNING,
    is_known_picture,
    is_of_the_system,
    no_picture,
    without_a_look,
)
from vdiff.data.sources.left_out import (
    CIRCLE,
    EMPTY,
    HIDDEN,
    NOWHERE,
    SPECIAL,
    STORE,
    UNREADABLE,
    Reason,
)
from vdiff.data.sources.lists import add_list, is_list
from vdiff.data.sources.names import is_hidden
from vdiff.data.sources.picture import Picture
from vdiff.data.sources.source import Listing, Source, twice
from vdiff.data.sources.trouble import is_forbidden, unreadable
from vdiff.disk import os_files
from vdiff.errors import DataError

MAX_LINKED_FOLDERS = 100_000
"""How many folders are looked into that links lead to. Thirty folders with two links each to the
next one already give a billion paths.
"""

Identity = tuple[int, int]


class FolderSource(Source):
    """All pictures below a folder.

    Links are followed; hidden folders and image stores are left out.
    """

    decided_by: ClassVar[str] = "names, sizes and times"

    @classmethod
    def recognises(cls, path: Path, beginning: bytes) -> bool:
        return path.is_dir()

    @cached_property
    def stamp(self) -> str:
        files = self.files
        # Two times for each file, in the order of the files.
        times = array(
            "q", (self._times[2 * place + which] for place in files.places for which in (0, 1))
        )
        return hashlib.sha256(self.fingerprint.encode() + times.tobytes()).hexdigest()

    def pictures(self, start: int) -> Iterator[Picture]:
        files = self.files
        for index in range(start, len(files)):
            yield Picture(files[index], partial(io.FileIO, f"{self.path}/{files.names[index]}"))

    def listing(self) -> Listing:
        walk = _Walk(f"{self.path}/")
        try:
            walk.through()
        except OSError as err:
            raise unreadable(self.path, err) from err
        self._times = walk.times
        num_twice = walk.num_twice()
        if num_twice:
            walk.listing.notes.append(twice(num_twice))
        return walk.listing


class _Walk:
    """A walk through all folders below `root`, which ends in a slash.

    times: of each file found when its content and when anything of it was changed, in nanoseconds.
    """

    def __init__(self, root: str) -> None:
        self.listing = Listing()
        self.times = array("q")
        self._root = root
        self._num_linked = 0
        self._has_links = False
        self._identities = array("Q")

    def through(self) -> None:
        """Sort everything into the listing, whose pictures are in no order.

        OSError if a folder cannot be read.
        """
        # Each folder with those that it lies in, as the walk came, and whether a link was on the
        # way.
        waiting: list[tuple[str, frozenset[Identity], bool]] = [("", frozenset(), False)]
        while waiting:
            folder, above, is_linked = waiting.pop()
            status = os.stat(self._root + folder)
            here = (status.st_dev, status.st_ino)
            # A link that leads to a folder above it would be followed for ever.
            if here in above:
                self.listing.left_out.add(folder, CIRCLE)
                continue
            for inner, is_link in self._look_into(folder, is_linked):
                self._num_linked += is_link or is_linked
                if self._num_linked > MAX_LINKED_FOLDERS:
                    problem = (
                        f"links in `{self._root}` lead to more than {MAX_LINKED_FOLDERS:,} folders"
                    )
                    raise DataError(
                        problem, "remove those that lead to folders with links in them", self._root
                    )
                waiting.append((inner, above | {here}, is_linked or is_link))

    def num_twice(self) -> int:
        """How many pictures are taken twice or more because links lead to them."""
        # Without links there is nothing to tell: hard links do not count.
        if not self._has_links:
            return 0
        return len(self._identities) - len(np.unique(np.array(self._identities)))

    def _look_into(self, folder: str, is_linked: bool) -> list[tuple[str, bool]]:
        """Sort the files in a folder.

        Returns the folders in it, and for each whether it is a link.
        """
        # All at once: a folder left open during the walk would be one open file for each level.
        with os.scandir(self._root + folder) as scan:
            entries = list(scan)
        # An LMDB inside the folder, perhaps one that vdiff made there: no pictures lie in it.
        if folder and any(entry.name == FILE and entry.is_file() for entry in entries):
            self.listing.left_out.add(folder, STORE)
            return []
        inner: list[tuple[str, bool]] = []
        for entry in entries:
            name = folder + entry.name
            self._has_links |= entry.is_symlink()
            kind = self._kind(entry)
            if is_hidden(entry.name) or is_of_the_system(entry.name):
                self.listing.left_out.add(name, HIDDEN)
            elif kind == "folder":
                inner.append((f"{name}/", entry.is_symlink()))
            elif kind == "file":
                self._file(entry, name, is_linked)
            elif entry.is_symlink():
                self.listing.left_out.add(name, NOWHERE)
            else:
                self.listing.left_out.add(name, SPECIAL)
        return inner

    def _kind(self, entry: "os.DirEntry[str]") -> str:
        """`folder`, `file` or `other`, of what a link leads to."""
        try:
            if entry.is_dir():
                return "folder"
            if entry.is_file():
                return "file"
            return "other"
        except OSError as err:
            # A link in a circle, or one that leads where this user may not look, is no reason to
            # stop.
            if is_of_machine(err) and not is_forbidden(err):
                raise
            return "other"

    def _file(self, entry: "os.DirEntry[str]", name: str, is_linked: bool) -> None:
        if not is_known_picture(name):
            reason = without_a_look(name)
            if is_list(entry.name):
                add_list(
                    self.listing.lists,
                    name,
                    entry.stat().st_size,
                    partial(io.FileIO, self._root + name),
                )
                return
            if reason is None and not entry.stat().st_size:
                reason = EMPTY
            if reason is None:
                reason = self._looked_at(name)
            if reason is not None:
                self.listing.left_out.add(name, reason)
                return
        status = os_files.status(entry)
        self.listing.files.add(name, status.st_size, len(self.listing.files), is_linked)
        # Device and inode in one number. The device counts: two disks may have the same inodes.
        self._identities.append((status.st_dev << 44 ^ status.st_ino) % 2**64)
        self.times.append(status.st_mtime_ns)
        self.times.append(status.st_ctime_ns)

    def _looked_at(self, name: str) -> Reason | None:
        """Why the content of a file is no picture; None if it is one."""
        try:
            with io.FileIO(self._root + name) as file:
                return no_picture(name, file.read(BEGINNING))
        except OSError as err:
            # One file that this user may not read is left out; a disk that does not answer stops
            # the walk.
            if is_of_machine(err) and not is_forbidden(err):
                raise
            return UNREADABLE
