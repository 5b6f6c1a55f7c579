"""Where commands leave what they make: before any work they refuse a place that holds
what vdiff did not make.
"""

import os
from pathlib import Path

from vdiff.disk.ours import IsOurs, is_our_file, is_picture, refuse_strange_file, strange
from vdiff.disk.whole_folder import is_leftover, is_taken
from vdiff.errors import UsageError

FIX = "move it away, or name another place: --out PATH"


def check_file(path: Path, is_ours: IsOurs, force: bool, fix: str = FIX) -> None:
    """UsageError for a file that may not be written.

    is_ours: whether vdiff made the file that is there; any other is never replaced.
    force: whether ours is.
    """
    check_parents(path)
    if not os.path.lexists(path):
        return
    # a link to a folder is a link: it is refused below, as whatever is not ours
    if path.is_dir() and not path.is_symlink():
        raise UsageError(f"`{path}` is a folder already", "name a file", path)
    refuse_strange_file(path, is_ours, fix)
    if not force:
        raise UsageError(
            f"`{path}` is there already",
            "`--force` replaces it; or name another place: --out PATH",
            path,
        )


def check_folder_of_pictures(path: Path, force: bool) -> None:
    """As `check_file`, for a folder of pictures: what is in it must be pictures that vdiff made."""
    check_parents(path)
    if not os.path.lexists(path):
        return
    if is_taken(path):
        raise UsageError(f"`{path}` is a file already", "name a folder", path)
    files = sorted(path.iterdir())
    stranger = next((file for file in files if not is_our_file(file, _is_ours)), None)
    if stranger is not None:
        raise strange(path, stranger, FIX)
    if files and not force:
        fix = "`--force` replaces it; or name another place: --out PATH"
        raise UsageError(f"`{path}` is there already", fix, path)


def check_parents(path: Path) -> None:
    """UsageError where the folder that a file or folder is to lie in cannot be one."""
    # the nearest one that is there: those below it will be made. lexists: a dead link is in the way
    parents = path.absolute().parents
    taken = next((parent for parent in parents if os.path.lexists(parent)), None)
    if taken is not None and is_taken(taken):
        raise UsageError(
            f"`{taken}` is not a folder, so nothing can be left in it", "name another place", path
        )


def _is_ours(path: Path) -> bool:
    return is_leftover(path) or is_picture(path)
