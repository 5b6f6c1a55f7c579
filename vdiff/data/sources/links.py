"""Links inside an archive: which of its files they lead to. Nothing outside of the archive is ever looked at."""

import bisect
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from vdiff.data.sources.left_out import CIRCLE, NOWHERE, OUTSIDE, Reason
from vdiff.data.sources.names import is_hidden, parts_of

MAX_ALIASES = 1_000_000
_MAX_HOPS = 40
MAX_TARGET = 4096


class Link(NamedTuple):
    """A member of an archive that names another one.

    target: as it is written.   is_hard: whether that begins at the root of the archive, not where the link lies.
    """

    name: str
    target: str
    is_hard: bool


class Alias(NamedTuple):
    """Another name of the file `number`."""

    name: str
    number: int


class Followed(NamedTuple):
    """Where links have led: to files, or nowhere for the reason given."""

    aliases: list[Alias]
    lost: list[tuple[str, Reason]]


def follow(files: Iterable[tuple[str, int]], links: Iterable[Link]) -> Followed:
    """The further names that `links` give to `files`, which are names and numbers.

    A link to a folder gives a name to all files in it. ValueError if there are millions of those.
    """
    known = {_plain(name): number for name, number in files}
    of_name = {_plain(link.name): link for link in links}
    found = Followed([], [])
    to_folders: list[tuple[str, str]] = []
    for name, link in of_name.items():
        place = _destination(name, link, of_name)
        if isinstance(place, Reason):
            found.lost.append((name, place))
        elif place in known:
            found.aliases.append(Alias(name, known[place]))
        else:
            to_folders.append((name, place))
    _follow_to_folders(to_folders, known, found)
    found.aliases[:] = [alias for alias in found.aliases if alias.name not in known]
    return found


def _plain(name: str) -> str:
    return "/".join(parts_of(name))


def _destination(name: str, link: Link, of_name: dict[str, Link]) -> str | Reason:
    """The place in the archive that a link leads to, whatever is there, by way of other links."""
    if len(link.target) > MAX_TARGET:
        return NOWHERE
    here = [] if link.is_hard else name.split("/")[:-1]
    waiting = parts_of(link.target)[::-1]
    if not link.is_hard and link.target.startswith("/"):
        return OUTSIDE
    hops = 0
    while waiting:
        part = waiting.pop()
        if part == "..":
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
    to_folders: list[tuple[str, str]], known: dict[str, int], found: Followed
) -> None:
    if not to_folders:
        return
    everything = sorted([*known.items(), *found.aliases])
    for name, place in to_folders:
        if not place or name.startswith(f"{place}/"):
            found.lost.append((name, CIRCLE))
            continue
        inside = list(_below(place, everything))
        if not inside:
            found.lost.append((name, NOWHERE))
        if len(found.aliases) + len(inside) > MAX_ALIASES:
            raise ValueError(f"its links lead to more than {MAX_ALIASES:,} files")
        aliases = (Alias(name + inner[len(place) :], number) for inner, number in inside)
        found.aliases.extend(alias for alias in aliases if not is_hidden(alias.name[len(name) :]))


def _below(folder: str, everything: list[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    first = bisect.bisect_left(everything, (f"{folder}/",))
    for index in range(first, len(everything)):
        if not everything[index][0].startswith(f"{folder}/"):
            return
        yield everything[index]
