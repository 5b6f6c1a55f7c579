"""A store under construction: claimed by one process, built beside its final place,
published by rename.
"""

import glob
import os
import re
from contextlib import suppress
from pathlib import Path

from vdiff.data.opened import forget
from vdiff.data.seal import FILE, is_store
from vdiff.data.store import ImageStore
from vdiff.disk import lock, os_files, whole_folder
from vdiff.disk.ours import Kind, is_picture
from vdiff.disk.whole_folder import flush_one, refusals
from vdiff.errors import DataError

SKIPPED, NOTES, LEFT_OUT, PREVIEW = "skipped.tsv", "notes.tsv", "left_out.tsv", "preview.png"

OTHER_PLACE = "move it away, or choose another place: --out PATH"


def publish(folder: Path, place: Path) -> None:
    """Rename the finished `folder` to `place`; the store that was there goes afterwards.

    Everything is on the disk before the rename: a loss of power at any moment leaves the old or the
    new store.
    Errors: MachineError; UsageError for anything at `place` that vdiff did not make. It stays, and
    `folder` too.
    """
    with refusals(place):
        for path in (*folder.iterdir(), folder):
            flush_one(path)
        if os_files.OPEN_FILES_STAY_IN_PLACE:  # whoever reads from one opens it again
            for store in (folder, place):
                if is_store(store):
                    forget(store)
        whole_folder.publish(folder, place, STORE)
    tidy(place)


def has_rests(place: Path) -> bool:
    """Whether there is anything for `tidy`."""
    return (
        lock.is_signed(place)
        or _before(place).exists()
        or any(place.parent.glob(f".{glob.escape(place.name)}.*"))
    )


def tidy(place: Path) -> None:
    """Delete what publishing a store at `place` may have left:
    its lock, and the store that it replaced.

    If there is none at `place`, the one that was set aside has its name again. To be called with
    the lock held.
    """
    with refusals(place):
        if lock.is_signed(place):
            (place / lock.FILE).unlink(missing_ok=True)
        whole_folder.clean(place.parent, STORE, place.name)
        if place.exists() and STORE.stranger(_before(place)) is None:
            discard(_before(place))


def _before(place: Path) -> Path:
    """Where versions before 0.2 set the old store aside: a hidden name."""
    return place.with_name(f".{place.name}.replaced")


def discard(folder: Path) -> None:
    """Delete a store, finished or not, if it is there. What belongs to none stays."""
    STORE.delete(folder)


def clear(folder: Path) -> None:
    """Delete the files of a store in a claimed folder, all but its lock."""
    with refusals(folder):
        for path in folder.iterdir():
            if path.name != lock.FILE and STORE.paths.fullmatch(path.name):
                path.unlink()


def _is_proven(folder: Path) -> bool:
    """Whether a folder with nothing but files of these names is a store that vdiff made,
    or began to make.
    """
    if (
        lock.is_signed(folder)
        or is_picture(folder / PREVIEW)
        or [path.name for path in folder.iterdir()] == [lock.FILE]
    ):
        return True
    if not is_store(folder):
        return False
    with suppress(DataError):
        if ImageStore(folder).metadata is not None:
            return True
    return _mentions_vdiff(folder / FILE)  # in a store that is damaged


def _mentions_vdiff(file: Path) -> bool:
    """Whether the record of metadata, which is written last,
    or that of work under way is somewhere in a file.
    """
    wanted, step = re.compile(rb'"made_by": "vdiff |vdiff-job'), 2**22
    with suppress(OSError), file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        for start in range(size - size % step, -1, -step):
            opened.seek(start)
            if wanted.search(opened.read(step + 20)):
                return True
    return False


STORE = Kind(
    "",
    re.compile(
        r"data\.mdb|lock\.mdb|\.lock|(skipped|notes|left_out)\.tsv|preview\.png|"
        r"(store|source)\.json"
        r"|\.preview\.png\.\d+\.tmp"
        r"|\.(preview\.png|(skipped|notes|left_out)\.tsv|(store|source)\.json)\.partial-\d+(-\d+)*"
    ),
    _is_proven,
)
"""How vdiff knows a store that it made, or began to make;
LMDBs of others have files of the same names.
"""
