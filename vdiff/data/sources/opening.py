"""Find the kind of source that a path is.

The kinds are asked in this order: one of another package whose name is the suffix of the path
(`npz` for `faces.npz`), vdiff's own kinds, all others of other packages. So no other package is
imported for a folder or an archive, unless its suffix names one.
"""

from collections.abc import Iterator
from pathlib import Path

from vdiff.data import SOURCES
from vdiff.data.sources.classes import LabelsFrom
from vdiff.data.sources.kinds import SUFFIXES, no_picture
from vdiff.data.sources.left_out import ARCHIVE
from vdiff.data.sources.names import suffix_of
from vdiff.data.sources.source import Source
from vdiff.data.sources.tar_file import is_compressed
from vdiff.data.sources.trouble import unreadable
from vdiff.errors import DataError, MachineError

_BEGINNING = 512


def open_source(path: Path, labels_from: LabelsFrom = "auto") -> Source:
    """The pictures at `path`, by the first kind that recognises it and finds some.

    Errors: DataError if nothing recognises it, or if there are none. MachineError for a kind of
    another package that should read it and cannot be used.
    """
    beginning = _beginning_of(path)
    empty: Source | None = None
    unusable: list[str] = []
    for kind in _kinds(path, unusable):
        if _is_of(kind, path, beginning):
            source = kind(path, labels_from)
            if source.files:
                return source
            empty = empty or source
    if empty is None:
        error = _no_source(path, beginning)
    else:
        error = _no_pictures(empty)
    # A package that cannot be loaded is told of only here: it may be the one that reads this path.
    if unusable:
        problem = "".join([error.problem, *(f"\n  {text}" for text in unusable)])
        raise DataError(problem, error.fix, path)
    raise error


def _kinds(path: Path, unusable: list[str]) -> Iterator[type[Source]]:
    """The kinds in the order in which they are asked.

    For each that cannot be loaded, the reason goes to `unusable`.
    """
    others = SOURCES.outside()
    by_name = suffix_of(path.name)[1:]
    if by_name in others:
        yield SOURCES.find(by_name)
        others.remove(by_name)
    for name in SOURCES.builtin():
        yield SOURCES.find(name)
    for name in others:
        try:
            yield SOURCES.find(name)
        except MachineError as err:
            reason = err.problem
            if err.where:
                reason += f": {err.where}"
            unusable.append(reason)


def _is_of(kind: type[Source], path: Path, beginning: bytes) -> bool:
    try:
        return kind.recognises(path, beginning)
    except OSError as err:
        raise unreadable(path, err) from err


def _beginning_of(path: Path) -> bytes:
    """The first 512 bytes of a file; empty for a folder.   Errors: DataError."""
    try:
        if path.is_dir():
            return b""
        if not path.is_file():
            raise DataError(
                f"there is no picture folder or archive `{path}`",
                "check the path of the source",
                path,
            )
        with path.open("rb") as file:
            return file.read(_BEGINNING)
    except OSError as err:
        raise unreadable(path, err) from err


def _no_pictures(source: Source) -> DataError:
    problem = f"there are no pictures in `{source.path}`"
    groups = "".join(f"\n  {group}" for group in source.left_out.groups())
    if groups:
        problem += f", only{groups}"
    suffixes = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
    return DataError(problem, f"there should be files of these kinds: {suffixes}", source.path)


def _no_source(path: Path, beginning: bytes) -> DataError:
    give = f"give one of these with pictures in it: {', '.join(SOURCES)}"
    if not beginning:
        return DataError(f"`{path}` is empty", give, path)
    what = no_picture(path.name, beginning)
    if what is None:
        return DataError(f"`{path}` is a single picture", "give the folder that it lies in", path)
    if is_compressed(beginning):
        return DataError(
            f"`{path}` is compressed, but it is no tar archive",
            "unpack it and give the folder",
            path,
        )
    if what is ARCHIVE:
        problem = f"`{path}` is an archive of a kind that vdiff does not read"
        return DataError(problem, f"unpack it and give the folder; or {give}", path)
    return DataError(f"`{path}` is not an archive of pictures", give, path)
