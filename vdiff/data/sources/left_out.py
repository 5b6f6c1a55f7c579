"""The files of a source that are not taken for pictures:
counted by reason, so that nothing is left out in silence.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from vdiff.data.sources.names import suffix_of

MAX_NAMES = 100_000
"""How many names are kept; the others are only counted."""
_MAX_LETTERS = 2**24
"""How many letters of names are kept: in an archive, one name may have 4,096."""

_SUFFIX = re.compile(r"\.[a-z0-9]{1,10}")


class Reason(NamedTuple):
    """Why a file is left out.

    is_loss: whether it may be a picture, so that users must be told first.
    """

    text: str
    is_loss: bool


FORMAT = Reason("formats that vdiff does not read; convert them to JPEG or PNG", True)
ARCHIVE = Reason("archives; give one of them as SOURCE, or unpack it", True)
VIDEO = Reason("videos; take single pictures out of them", True)
UNFINISHED = Reason("downloads that were not finished", True)
UNKNOWN = Reason("no pictures, as their first bytes tell", False)
EMPTY = Reason("empty", False)
UNREADABLE = Reason("could not be opened or read", True)
NOWHERE = Reason("links to nothing", True)
CIRCLE = Reason("links to a folder that holds them", True)
OUTSIDE = Reason("links that lead out of the archive", True)
TWICE = Reason("names that come again in the archive; the last one of each is taken", True)
SPARSE = Reason("stored as sparse files; pack them without --sparse", True)
STRAY = Reason("outside of the class folders", True)
TEXT = Reason("text or data", False)
HIDDEN = Reason("hidden, or of the system", False)
STORE = Reason("image stores", False)
SPECIAL = Reason("no ordinary files", False)


@dataclass(frozen=True)
class Group:
    """The files that were left out for one reason.

    suffixes: how many have which suffix, in small letters; `other` counts those with none or an odd
    one.
    """

    reason: str
    is_loss: bool
    count: int
    suffixes: dict[str, int]

    def __str__(self) -> str:
        """For instance `30 .heic, 5 .jxl: formats that ...`."""
        named = [(count, suffix) for suffix, count in self.suffixes.items() if suffix != "other"]
        commonest = sorted(named, key=lambda item: -item[0])[:8]
        shown = [f"{count:,} {suffix}" for count, suffix in commonest]
        rest = self.count - sum(count for count, _ in commonest)
        if rest and shown:
            shown.append(f"{rest:,} others")
        elif rest:
            shown.append(f"{rest:,}")
        return f"{', '.join(shown)}: {self.reason}"


@dataclass
class LeftOut:
    """The files that are not taken, by reason. The names of the first hundred thousand are kept."""

    names: list[tuple[str, Reason]] = field(default_factory=list)
    _counts: dict[Reason, Counter[str]] = field(default_factory=dict)
    _num_letters: int = 0

    def add(self, name: str, reason: Reason) -> None:
        """Count one more."""
        suffix = suffix_of(name)
        # A stranger's archive may have a million odd suffixes, and they are shown in a terminal.
        if not _SUFFIX.fullmatch(suffix):
            suffix = "other"
        self._counts.setdefault(reason, Counter())[suffix] += 1
        self._num_letters += len(name)
        if len(self.names) < MAX_NAMES and self._num_letters < _MAX_LETTERS:
            self.names.append((name, reason))

    def __len__(self) -> int:
        return sum(counts.total() for counts in self._counts.values())

    def count(self, suffix: str) -> int:
        """How many have this suffix."""
        return sum(counts[suffix] for counts in self._counts.values())

    def groups(self) -> list[Group]:
        """One for each reason: first those that may be losses, the largest first."""
        groups = [
            Group(*reason, counts.total(), dict(counts)) for reason, counts in self._counts.items()
        ]
        return sorted(groups, key=lambda group: (not group.is_loss, -group.count, group.reason))
