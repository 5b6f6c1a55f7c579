"""Links inside an archive, and the files in it that they lead to.

Nothing outside of the archive is ever looked at.
"""

import bisect
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from vdiff.data.sources.left_out import CIRCLE, NOWHERE, OUTSIDE, Reason
from vdiff.data.sources.names import is_hidden, parts_of

# A link to a folder gives a name to each file in it: a few links can give billions.
MAX_ALIASES = 1_000_000
# As Linux has it; links may also lead in a circle.
_MAX_HOPS = 40
# As Linux has it, in characters.
MAX_TARGET = 4096


class Link(NamedTuple):
    """A member of an archive that names another one.

    target: as it is written in the archive.   is_hard: whether the target is a path from the root
    of the archive; that of a symbolic link is a path from the folder of the link.
    """

    name: str
    target: str
    is_hard: bool


class Alias(NamedTuple):
    """Another name of the file with this number."""

    name: str
    number: int


class Followed(NamedTuple):
    """Where links lead.

    aliases: further names of files.   lost: links that lead to no file, with the reason.
    """

    aliases: list[Alias]
    lost: list[tuple[str, Reason]]


def follow(files: Iterable[tuple[str, int]], links: Iterable[Link]) -> Followed:
    """The further names that `links` give to `files`, which are names and numbers.

    A link to a folder gives a name to all files in it. ValueError if there are millions of those.
    """
    known = {_plain(name): number for name, number in files}
    of_name = {_plain(link.name): link for link in links}
    followed = Followed([], [])
    # Links to folders come last: the links to files in those folders must be known then.
    to_folders: list[tuple[str, str]] = []
    for name, link in of_name.items():
        place = _destination(name, link, of_name)
        if isinstance(place, Reason):
            followed.lost.append((name, place))
        elif place in known:
            followed.aliases.append(Alias(name, known[place]))
        else:
            to_folders.append((name, place))
    _follow_to_folders(to_folders, known, followed)
    followed.aliases[:] = [alias for alias in followed.aliases if alias.name not in known]
    return followed


def _plain(name: str) -> str:
    return "/".join(parts_of(name))


def _destination(name: str, link: Link, of_name: dict[str, Link]) -> str | Reason:
    """The place in the archive that a link leads to, through other links;
    whether anything is there is not asked.
    """
    if len(link.target) > MAX_TARGET:
        return NOWHERE
    # Folder by folder, as the system would go: each folder on the way may be a link itself.
    here: list[str] = []
    if not link.is_hard:
        here = name.split("/")[:-1]
    waiting = parts_of(link.target)[::-1]
    if not link.is_hard and link.target.startswith("/"):
        return OUTSIDE
    hops = 0
    while waiting:
        part = waiting.pop()
        if part == "..":
            # Above the root of the archive: the file would lie on this disk.
            if not here:
                return OUTSIDE
            here.pop()
            continue
        here.append(part)
        inner = of_name.get("/".join(here))
        if inner is None:
            continue
        hops += 1
        if hops > _MAX_HOPS or len(inner.target) > MAX_TARGET:
            return NOWHERE
        if inner.target.startswith("/") and not inner.is_hard:
            return OUTSIDE
        here.pop()
        if inner.is_hard:
            here.clear()
        waiting += parts_of(inner.target)[::-1]
    return "/".join(here)


def _follow_to_folders(
    to_folders: list[tuple[str, str]], known: dict[str, int], followed: Followed
) -> None:
    """Add to `followed` what links to folders give.

    to_folders: the name of each link and where it leads.
    """
    if not to_folders:
        return
    # Sorted, so that the files of a folder stand together and are found without going through all
    # names.
    everything = sorted([*known.items(), *followed.aliases])
    for name, place in to_folders:
        # The link lies in the folder that it leads to.
        if not place or name.startswith(f"{place}/"):
            followed.lost.append((name, CIRCLE))
            continue
        inside = list(_below(place, everything))
        if not inside:
            followed.lost.append((name, NOWHERE))
        # Before they are made: afterwards, they would be in memory.
        if len(followed.aliases) + len(inside) > MAX_ALIASES:
            raise ValueError(f"its links lead to more than {MAX_ALIASES:,} files")
        aliases = (Alias(name + inner[len(place) :], number) for inner, number in inside)
        followed.aliases.extend(
            alias for alias in aliases if not is_hidden(alias.name[len(name) :])
        )


def _below(folder: str, everything: list[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """The names that begin with this folder, from a sorted list."""
    first = bisect.bisect_left(everything, (f"{folder}/",))
    for index in range(first, len(everything)):
        if not everything[index][0].startswith(f"{folder}/"):
            return
        yield everything[index]
