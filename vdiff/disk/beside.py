"""What lies beside a folder or file that is being written: names for it,
and what killed writers left there.
"""

import os
import re
import threading
from collections.abc import Collection
from pathlib import Path

from vdiff.disk import os_files
from vdiff.disk.ours import Kind
from vdiff.system.os_processes import is_alive

OLD = "old-"
"""Set aside: what had the name until now, and has it again if nothing takes its place."""

_BESIDE = ".partial-"

LEFTOVER = re.compile(r"\.(?P<name>.+)\.partial-(?P<old>old-)?\d+(-\d+)*", re.DOTALL)
"""The names that `free_beside` gives."""


def free_beside(target: Path, aside: str = "") -> Path:
    """A free name beside `target`, to write it or to set it aside.

    Each process and thread has its own names.
    """
    name = f".{target.name}{_BESIDE}{aside}{os.getpid()}-{threading.get_native_id()}"
    place = target.with_name(name)
    number = 0
    # An earlier process may have had the same number, and have been killed.
    while os.path.lexists(place):
        number += 1
        place = target.with_name(f"{name}-{number}")
    return place


def _is_alive(leftover: Path) -> bool:
    """Whether the process that a leftover is named after is at work."""
    return is_alive(int(leftover.name.rpartition(_BESIDE)[2].split("-")[0]))


def forget_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove half-written files that processes of this machine left in `folder`,
    if those processes have ended.

    name: of the file; None for any.
    """
    for leftover in folder.glob(f".*{_BESIDE}*"):
        match = LEFTOVER.fullmatch(leftover.name)
        if match is None or name not in (None, match["name"]):
            continue
        # Another process may be writing this very file now: two commands may share a folder without
        # a lock.
        if is_leftover(leftover) and not _is_alive(leftover):
            leftover.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether this is what a writer of a file left, or what it is writing:
    nobody else gives such a name.
    """
    match = LEFTOVER.fullmatch(path.name)
    if match is None or match["old"]:
        return False
    return path.is_file() and not path.is_symlink()


def clean(
    parent: Path,
    kind: Kind | None = None,
    name: str | None = None,
    files: Collection[str] | None = None,
) -> None:
    """Remove what writers that were killed left beside their targets in `parent`,
    and put back what they set aside.

    kind: of the folders that are made there. What has another name, or holds anything else, stays
    as it is.
    name: of the only target that is meant; None for all of them.
    files: names of the files that are written there. None means every file without `kind`, and no
    file with one.
    """
    for leftover in parent.glob(f".*{_BESIDE}*"):
        match = LEFTOVER.fullmatch(leftover.name)
        if match is None or name not in (None, match["name"]):
            continue
        is_of_a_file = kind is None
        if files is not None:
            is_of_a_file = match["name"] in files
        # A kill between setting the old folder aside and giving the new one its name leaves no
        # folder at all.
        if match["old"] and not os.path.lexists(parent / match["name"]):
            os_files.rename(leftover, parent / match["name"])
        elif kind is not None and kind.is_leftover(leftover):
            kind.delete(leftover)
        elif is_of_a_file and is_leftover(leftover):
            leftover.unlink(missing_ok=True)
