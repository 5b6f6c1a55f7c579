"""The kinds of sources, and which one a path is."""

from pathlib import Path

from vdiff.data.sources.classes import Labels
from vdiff.data.sources.folder import FolderSource
from vdiff.data.sources.kinds import SUFFIXES, no_picture
from vdiff.data.sources.left_out import ARCHIVE
from vdiff.data.sources.source import Source
from vdiff.data.sources.tar_file import TarSource, is_compressed
from vdiff.data.sources.trouble import unreadable
from vdiff.data.sources.zip_file import ZipSource
from vdiff.errors import DataError

SOURCES: list[type[Source]] = [FolderSource, TarSource, ZipSource]
"""The first one that recognises a path reads it."""

_BEGINNING = 512


def open_source(path: Path, labels_from: Labels = "auto") -> Source:
    """The pictures at `path`; DataError if that is not a folder, a zip or a tar file, or if there are none."""
    source = _kind_of(path)(path, labels_from)
    if not source.files:
        there = "".join(f"\n  {group}" for group in source.left_out.groups())
        problem = f"there are no pictures in `{path}`" + (f", only{there}" if there else "")
        kinds = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
        raise DataError(problem, f"there should be files of these kinds: {kinds}", path)
    return source


def _kind_of(path: Path) -> type[Source]:
    try:
        if not path.is_dir() and not path.is_file():
            raise DataError(f"there is no picture folder or archive `{path}`", "check the path of the source", path)
        beginning = b"" if path.is_dir() else _beginning_of(path)
        for kind in SOURCES:
            if kind.recognises(path, beginning):
                return kind
    except OSError as err:
        raise unreadable(path, err) from err
    raise _no_source(path, beginning)


def _beginning_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_BEGINNING)


def _no_source(path: Path, beginning: bytes) -> DataError:
    what = no_picture(path.name, beginning) if beginning else None
    if not beginning:
        return DataError(f"`{path}` is empty", "give a folder, a zip or a tar file of pictures", path)
    if what is None:
        return DataError(f"`{path}` is a single picture", "give the folder that it lies in", path)
    if is_compressed(beginning):
        return DataError(f"`{path}` is compressed, but it is no tar archive", "unpack it and give the folder", path)
    if what is ARCHIVE:
        problem = f"`{path}` is an archive of a kind that vdiff does not read"
        return DataError(problem, "unpack it and give the folder, or make a zip or tar file of it", path)
    return DataError(f"`{path}` is not an archive of pictures", "give a folder, a zip or a tar file", path)
