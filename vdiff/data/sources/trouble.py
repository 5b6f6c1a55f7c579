"""Errors of the system while a source is read: the source's fault or the machine's."""

import errno
from pathlib import Path

from vdiff.data.patience import is_of_machine, paused
from vdiff.errors import DataError, VdiffError


def unreadable(path: Path, err: OSError | MemoryError) -> VdiffError:
    """The error for a source that cannot be read."""
    place = getattr(err, "filename", None) or path
    if is_of_machine(err):
        return paused(str(place), err)
    reason = getattr(err, "strerror", None) or str(err)
    return DataError(
        f"`{place}` cannot be read: {reason}", "check the file, or copy it again", path
    )


def is_forbidden(err: OSError) -> bool:
    """Whether this user has no permission to read it."""
    return err.errno in (errno.EACCES, errno.EPERM)
