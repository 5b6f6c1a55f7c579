"""What zip and tar files have in common: which of their members are pictures,
and what is said of damaged ones.
"""

import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vdiff.data.sources.kinds import (
    BEGINNING,
    is_known_picture,
    is_of_the_system,
    no_picture,
    without_a_look,
)
from vdiff.data.sources.left_out import EMPTY, HIDDEN, UNREADABLE, Reason
from vdiff.data.sources.links import Link, follow
from vdiff.data.sources.lists import add_list, is_list
from vdiff.data.sources.names import is_hidden
from vdiff.data.sources.source import Listing, twice
from vdiff.data.sources.trouble import unreadable
from vdiff.errors import DataError

_FEW = 2**20
_MAX_NAME = 4096


class Belief:
    """How many files an archive of `num_bytes` bytes is believed to have.

    A compressed archive of a few megabytes can list billions of files, whose names would fill the
    memory.
    least_bytes: what a file needs in an archive at least, with its headers.
    """

    def __init__(self, num_bytes: int, least_bytes: int) -> None:
        # A million files with names of 128 letters fit into memory: so many may be in any archive.
        self._files_left = max(_FEW, num_bytes // least_bytes)
        self._letters_left = max(128 * _FEW, num_bytes // 8)

    def take(self, name: str) -> None:
        """Count one more; ValueError if that is too much."""
        self._files_left -= 1
        self._letters_left -= len(name)
        if min(self._files_left, self._letters_left) < 0 or len(name) > _MAX_NAME:
            raise ValueError(
                "it has more files, or longer names, than can be in an archive of this size"
            )


class Sorting:
    """The members of an archive, one after the other, sorted into pictures,
    links and what is left out.

    num_bytes: of the archive on the disk.
    """

    def __init__(self, num_bytes: int) -> None:
        self.listing = Listing()
        self._belief = Belief(num_bytes, 32)
        self._links: list[Link] = []
        self._hidden: list[tuple[str, int, int]] = []

    def add_file(
        self, name: str, num_bytes: int, place: int, opened: Callable[[], io.RawIOBase]
    ) -> None:
        """Sort one file.   opened: gives its bytes;
        called at once or never, as a tar file cannot be gone back in.
        """
        is_out_of_sight = _is_out_of_sight(name)
        if is_known_picture(name) and not is_out_of_sight:
            self._belief.take(name)
            self.listing.files.add(name, num_bytes, place)
            return
        if is_list(name) and not is_out_of_sight:
            self._belief.take(name)
            add_list(self.listing.lists, name, num_bytes, opened)
            return
        reason = without_a_look(name)
        if reason is None and not num_bytes:
            reason = EMPTY
        if reason is None:
            reason = _looked_at(name, opened)
        if reason is None:
            self._belief.take(name)
        if is_out_of_sight:
            # A link with a name of its own may lead to a hidden picture.
            if reason is None:
                self._hidden.append((name, num_bytes, place))
            self.listing.left_out.add(name, HIDDEN)
        elif reason is not None:
            self.listing.left_out.add(name, reason)
        else:
            self.listing.files.add(name, num_bytes, place)

    def add_link(self, link: Link) -> None:
        """Keep a link, to follow it when everything is known."""
        reason = without_a_look(link.name)
        if _is_out_of_sight(link.name):
            reason = HIDDEN
        if reason:
            self.listing.left_out.add(link.name, reason)
        else:
            self._belief.take(link.name)
            self._links.append(link)

    def done(self) -> Listing:
        """Everything, with the names that links give.

        ValueError if there are more of those than MAX_ALIASES.
        """
        if not self._links:
            return self.listing
        files = self.listing.files
        # The numbers of hidden files come after those of the others.
        numbered = [(name, index) for index, name in enumerate(files.names)]
        numbered += [(name, len(files) + index) for index, (name, _, _) in enumerate(self._hidden)]
        followed = follow(numbered, self._links)
        num_visible = len(files)
        for alias in followed.aliases:
            if alias.number < num_visible:
                files.add(
                    alias.name,
                    files.num_bytes[alias.number],
                    files.places[alias.number],
                    is_linked=True,
                )
            else:
                _, num_bytes, place = self._hidden[alias.number - num_visible]
                files.add(alias.name, num_bytes, place, is_linked=True)
        num_twice = sum(alias.number < num_visible for alias in followed.aliases)
        if num_twice:
            self.listing.notes.append(twice(num_twice))
        for name, reason in followed.lost:
            self.listing.left_out.add(name, reason)
        return self.listing


def damaged(path: Path, what: str) -> DataError:
    """The error for an archive that cannot be read to its end."""
    return DataError(
        f"the archive `{path}` cannot be read: {what}", "copy it again, or make it again", path
    )


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn everything that readers of damaged archives raise into a DataError."""
    try:
        yield
    except (OSError, MemoryError) as err:
        # An OSError without a number is how bzip2 says that its bytes are damaged.
        if isinstance(err, OSError) and err.errno is None:
            raise damaged(path, str(err)) from err
        raise unreadable(path, err) from err
    except (ValueError, EOFError, lzma.LZMAError, zlib.error) as err:
        raise damaged(path, str(err)) from err


def _is_out_of_sight(name: str) -> bool:
    return is_hidden(name) or is_of_the_system(name[name.rfind("/") + 1 :])


def _looked_at(name: str, opened: Callable[[], io.RawIOBase]) -> Reason | None:
    """Why the content of a file is no picture; None if it is one."""
    try:
        with opened() as file:
            return no_picture(name, file.read(BEGINNING) or b"")
    except ValueError:
        return UNREADABLE
