"""What vdiff made, and how it is told from what others made:
nothing else is ever replaced or deleted.
"""

import contextlib
import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vdiff.disk import manifest
from vdiff.disk.os_files import open_no_link
from vdiff.errors import ModelFileError, UsageError

IsOurs = Callable[[Path], bool]
"""Whether vdiff made what lies at a path. It is asked only of files that exist and of
folders that hold something.
"""

ELSEWHERE = "move it away, or choose another place"


@dataclass(frozen=True)
class Kind:
    """A kind of folder that vdiff makes, and how one of them is known.

    manifest: name of the file in it that lists the others, empty for none.
    paths: matches the paths of its files, also of those that no manifest lists; paths of folders in
    it end in `/`.
    is_proven: whether vdiff made a folder that has no manifest, or lost it, as the content of its
    files shows.
    """

    manifest: str
    paths: re.Pattern[str]
    is_proven: IsOurs = lambda folder: True

    def stranger(self, folder: Path) -> Path | None:
        """The first thing here that vdiff did not make, which may be `folder` itself;
        None if there is none.
        """
        if folder.is_symlink() or not folder.is_dir():
            return folder
        listed = self._listed(folder)
        if listed is None and any(folder.iterdir()) and not self.is_proven(folder):
            return folder
        return next(self._unknown(folder, listed), None)

    def refuse_stranger(self, folder: Path, fix: str = ELSEWHERE, name: Path | None = None) -> None:
        """UsageError for what may not be replaced or deleted, if anything is there.

        name: what it is called.
        """
        if not os.path.lexists(folder):
            return
        stranger = self.stranger(folder)
        if stranger is not None:
            place = name or folder
            raise strange(place, place / stranger.relative_to(folder), fix)

    def is_leftover(self, folder: Path) -> bool:
        """Whether what is here can be what a process that was killed left of such a folder."""
        is_folder = folder.is_dir() and not folder.is_symlink()
        return is_folder and next(self._unknown(folder, self._listed(folder)), None) is None

    def delete(self, folder: Path) -> None:
        """Delete what belongs to such a folder, as far as the disk allows.

        Anything else stays, and its folders.
        """
        if folder.is_symlink() or not folder.is_dir():
            return
        unknown = set(self._unknown(folder, self._listed(folder)))
        # Reversed: what lies in a folder goes before the folder.
        for path in sorted(folder.rglob("*"), reverse=True):
            if path not in unknown and path != folder / self.manifest:
                _delete_one(path)
        # The manifest goes last. If a kill stops this half-way, the manifest still tells that the
        # other files are ours.
        _delete_one(folder / self.manifest)
        _delete_one(folder)

    def _listed(self, folder: Path) -> set[str] | None:
        """The paths of all files that the manifest lists, itself too, and of their folders;
        None without one.
        """
        try:
            names = {*manifest.read(folder, self.manifest)["files"], self.manifest}
        except ModelFileError:
            return None
        folders = {
            f"{parent}/" for name in names for parent in PurePosixPath(name).parents if parent.name
        }
        return names | folders

    def _unknown(self, folder: Path, listed: set[str] | None) -> Iterator[Path]:
        """What lies in the folder and is none of its parts."""
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            # Of the link itself, not of what it leads to: a link is never ours, whatever its name.
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                name += "/"
            is_known = name in (listed or ()) or self.paths.fullmatch(name) is not None
            if not is_known or not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                yield path


def refuse_strange_file(path: Path, is_ours: IsOurs, fix: str = ELSEWHERE) -> None:
    """UsageError for anything at `path` that is not a file which vdiff made."""
    if os.path.lexists(path) and not is_our_file(path, is_ours):
        raise strange(path, path, fix)


def is_our_file(path: Path, is_ours: IsOurs) -> bool:
    """Whether a file is there, and vdiff made it."""
    return not path.is_symlink() and path.is_file() and is_ours(path)


def strange(place: Path, found: Path, fix: str = ELSEWHERE) -> UsageError:
    """The error for `found`, which lies at or inside `place` and which vdiff did not make."""
    if place != found:
        problem = f"`{found}` is there, and vdiff did not make it: `{place}` will not be replaced"
    elif found.is_symlink():
        problem = f"`{place}` is there already, as a link: it will not be replaced"
    elif found.is_dir():
        problem = (
            f"`{place}` is a folder already, and vdiff did not make it: it will not be replaced"
        )
    else:
        problem = f"`{place}` is there already, and vdiff did not make it: it will not be replaced"
    return UsageError(problem, fix, found)


def anything(path: Path) -> bool:
    """For a file that may be anybody's."""
    return True


def nothing(path: Path) -> bool:
    """For a file that is never made again."""
    return False


def beginning(path: Path, count: int) -> bytes:
    """The first bytes of a file; none of one that cannot be read. No link is followed."""
    try:
        with open(open_no_link(path), "rb") as file:
            # The open file is asked: the path may name another one by now. Reading a pipe or a
            # device could wait.
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return b""
            return file.read(count)
    except OSError:
        return b""


def is_picture(path: Path) -> bool:
    """Whether vdiff wrote this PNG or GIF: it says so in its text."""
    # vdiff writes its text before the pixels, so the first 64 KiB hold it.
    data = beginning(path, 2**16)
    if data.startswith(b"GIF8"):
        # A comment extension of GIF: 21 FE, one byte for the length, the text.
        return re.search(rb"\x21\xfe.vdiff ", data, re.DOTALL) is not None
    return any(
        key.startswith("vdiff.") or (key, text[:6]) == ("Software", "vdiff ")
        for key, text in _texts(data)
    )


def is_archive(path: Path) -> bool:
    """Whether `vdiff sample` wrote this .zip or .npz of pictures."""
    try:
        with zipfile.ZipFile(path) as archive:
            is_told = b"vdiff.model: " in archive.comment
            return is_told or {"images.npy", "seeds.npy", "about.npy"} <= set(archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False


def free_name(path: Path) -> Path:
    """`path`, or the first of `name-1.txt`, `name-2.txt`, ... at which nothing is."""
    stem, dot, ending = path.name.partition(".")
    place = path
    number = 0
    while os.path.lexists(place):
        number += 1
        place = path.with_name(f"{stem}-{number}{dot}{ending}")
    return place


def _texts(data: bytes) -> Iterator[tuple[str, str]]:
    """What a PNG says in its text before the picture begins, by key."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return
    # A chunk of PNG: 4 bytes size, 4 bytes kind, the content, 4 bytes checksum.
    place = 8
    while place + 8 <= len(data) and data[place + 4 : place + 8] != b"IDAT":
        size = int.from_bytes(data[place : place + 4])
        kind = data[place + 4 : place + 8]
        if kind in (b"tEXt", b"iTXt"):
            key, _, text = data[place + 8 : place + 8 + size].partition(b"\0")
            yield key.decode("latin-1"), text.decode("latin-1")
        place += size + 12


def _delete_one(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
