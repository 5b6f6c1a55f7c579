"""What a store was made from, kept in a file beside it. It tells, mostly in a moment, whether
pictures have changed.

Stores of older vdiffs have no such file; they are compared by the names and sizes of their pictures
alone.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Self

from vdiff.data.conversion import Settings, have_marks
from vdiff.data.metadata import Metadata
from vdiff.data.sources import Source
from vdiff.disk.ours import beginning
from vdiff.disk.whole_folder import write_text
from vdiff.errors import VdiffError

ORIGIN = "source.json"
BY_NAMES = "names and sizes"
"""What tells whether pictures have changed, for stores of older vdiffs. In words, for users."""


@dataclass(frozen=True)
class Origin:
    """The pictures that a store was made from.

    names, labels, stamp: SHA-256 over their names, over their classes, and of `Source.stamp`.
    marks: `Picture.mark` of each, one after the other.
    """

    names: str
    labels: str
    stamp: str
    marks: str

    @classmethod
    def of(cls, source: Source, marks: str) -> Self:
        """The origin of a store that is made from `source`, whose pictures have these marks."""
        return cls(_names(source), source.labels_fingerprint, source.stamp, marks)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """What `write` left in the folder of a store;
        None if there is nothing, or if it is damaged.
        """
        # Damaged, it is no loss: the pictures are compared by names and sizes.
        with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            document = json.loads((folder / ORIGIN).read_bytes())
            seal = document.pop("seal")
            if seal == _seal(document):
                return cls(**document)
        return None

    def write(self, folder: Path) -> None:
        """Put it into the folder of a store, whole or not at all.

        MachineError if the disk refuses.
        """
        document = asdict(self)
        write_text(
            folder / ORIGIN, json.dumps({"seal": _seal(document), **document}) + "\n", _is_ours
        )


class Comparison(NamedTuple):
    """How a source stands to a store.

    verdict: `same`; `changed`: the same names and settings, but other pictures; `other`: other
    names or settings.
    decided_by: what was compared, in words.
    """

    verdict: Literal["same", "changed", "other"]
    decided_by: str


def compare(
    folder: Path,
    metadata: Metadata,
    source: Source,
    settings: Settings,
    num_threads: int,
    tell: Callable[[str], None],
    is_dry: bool = False,
) -> Comparison:
    """Whether the store in `folder` is what `source` and `settings` give.

    If only the times of the pictures differ, the pictures are read again, by `workers` threads.
    `tell` is told so, and the new times are kept beside the store, unless `is_dry`.
    """
    stored_settings = {name: getattr(metadata, name) for name in asdict(settings)}
    # JSON has lists only.
    stored_settings["sizes"] = tuple(metadata.sizes)
    if stored_settings != asdict(settings):
        return Comparison("other", "settings")
    is_listed_so = metadata.source in (source.fingerprint, source.earlier_fingerprint)
    origin = Origin.read(folder)
    if origin is None and is_listed_so:
        return Comparison("same", BY_NAMES)
    if origin is None:
        return Comparison("other", BY_NAMES)
    if (origin.names, origin.labels) != (_names(source), source.labels_fingerprint):
        return Comparison("other", "names and classes")
    if not is_listed_so:
        return Comparison("changed", "sizes")
    if origin.stamp == source.stamp:
        return Comparison("same", source.decided_by)
    if source.marks is not None:
        return Comparison("changed", source.decided_by)
    tell(
        f"`{source.path}` was touched since the store was made: "
        "its pictures are read again, to compare them"
    )
    if not have_marks(source.pictures_from(0), origin.marks, num_threads):
        return Comparison("changed", "content")
    if not is_dry:
        # A store may lie where nothing can be written: then the pictures are read again the next
        # time.
        with suppress(VdiffError):
            Origin.of(source, origin.marks).write(folder)
    return Comparison("same", "content, which was read again")


def _is_ours(path: Path) -> bool:
    return beginning(path, 100).startswith(b'{"seal": "')


def _names(source: Source) -> str:
    names = "\0".join(source.files.names)
    return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()


def _seal(document: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()
