"""Which kind of source a path is.

Asked are, one after the other: a kind of another package that has the suffix of the path for a name (`npz` for
`faces.npz`), vdiff's own kinds, and all others of other packages. So nobody's code is imported for a folder or an
archive, unless its suffix calls for that.
"""

from collections.abc import Iterator
from pathlib import Path

from vdiff.data import SOURCES
from vdiff.data.sources.classes import Labels
from vdiff.data.sources.kinds import SUFFIXES, no_picture
from vdiff.data.sources.left_out import ARCHIVE
from vdiff.data.sources.names import suffix_of
from vdiff.data.sources.source import Source
from vdiff.data.sources.tar_file import is_compressed
from vdiff.data.sources.trouble import unreadable
from vdiff.errors import DataError, MachineError

_BEGINNING = 512


def open_source(path: Path, labels_from: Labels = "auto") -> Source:
    """The pictures at `path`, by the first kind that recognises it and finds some.

    Errors: DataError if nothing recognises it, or if there are none. MachineError for a kind of another package that
    should read it and cannot be used.
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
    error = _no_source(path, beginning) if empty is None else _no_pictures(empty)
    if unusable:
        raise DataError(
            "".join([error.problem, *(f"\n  {text}" for text in unusable)]), error.fix, path
        )
    raise error


def _kinds(path: Path, unusable: list[str]) -> Iterator[type[Source]]:
    """The kinds in the order in which they are asked; why some cannot be is added to `unusable`."""
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
            unusable.append(f"{err.problem}: {err.where}" if err.where else err.problem)


def _is_of(kind: type[Source], path: Path, beginning: bytes) -> bool:
    try:
        return kind.recognises(path, beginning)
    except OSError as err:
        raise unreadable(path, err) from err


def _beginning_of(path: Path) -> bytes:
    """Nothing of a folder.   Errors: DataError."""
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
    there = "".join(f"\n  {group}" for group in source.left_out.groups())
    problem = f"there are no pictures in `{source.path}`" + (f", only{there}" if there else "")
    suffixes = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
    return DataError(problem, f"there should be files of these kinds: {suffixes}", source.path)


def _no_source(path: Path, beginning: bytes) -> DataError:
    what = no_picture(path.name, beginning) if beginning else None
    give = f"give one of these with pictures in it: {', '.join(SOURCES)}"
    if not beginning:
        return DataError(f"`{path}` is empty", give, path)
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
