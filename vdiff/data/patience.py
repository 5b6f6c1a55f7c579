"""Whether an error is the picture's fault or the machine's.

What the machine refuses is tried again for a while.
"""

import errno
import os
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from vdiff.errors import PausedError

WAITS = (0.1, 0.4, 1.5)
"""Seconds before another try. A file server that comes back needs no more,
nor do threads that close their files.
"""

# With these, the name leads to no file that could be read, whatever state the machine is in.
_OF_THE_FILE = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENXIO,
        errno.EINVAL,
    }
)
# Limits of the system, and disks and network disks that do not answer.
_REFUSALS = (
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EAGAIN,
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
)
# Waiting changes nothing here: somebody must give permission.
_LASTING = frozenset({errno.EACCES, errno.EPERM})
_FIXES = {
    errno.EACCES: "give yourself the right to read it, or move it away",
    errno.EPERM: "give yourself the right to read it, or move it away",
    errno.EMFILE: "allow more open files, as in `ulimit -n 4096`, or use fewer `--workers`",
    errno.ENFILE: "too many files are open on this machine: close some programs",
    errno.ENOMEM: "close other programs, or use fewer `--workers`",
}
_FIX = (
    "look at the disk or at the connection to it; "
    "a file that can never be read must be replaced or moved away"
)

Result = TypeVar("Result")


def is_of_machine(err: BaseException) -> bool:
    """Whether the machine is at fault: the picture that was being read may be whole."""
    if isinstance(err, OSError):
        # Without a number, it comes from a library: bzip2 says so that its bytes are damaged.
        return err.errno is not None and err.errno not in _OF_THE_FILE
    return isinstance(err, MemoryError)


def is_refusal(text: str) -> bool:
    """Whether the message of a library, which has no errno,
    says that the machine refuses for now; no full disk.
    """
    return any(os.strerror(number) in text for number in _REFUSALS)


def patiently(work: Callable[[], Result], name: str, notes: list[str]) -> Result:
    """The result of `work`, which is tried up to four times while the machine refuses. A later try
    adds a note.

    name: of the file, for the message.   PausedError if the machine goes on refusing; other errors
    come at once.
    """
    refusal = ""
    for wait in (*WAITS, None):
        try:
            result = work()
        except (OSError, MemoryError) as err:
            if not is_of_machine(err):
                raise
            refusal = _reason(err)
            if wait is None or getattr(err, "errno", None) in _LASTING:
                raise paused(name, err) from err
        else:
            if refusal:
                notes.append(f"needed another try: {refusal}")
            return result
        # Not in the handler: its traceback keeps in memory what the work held.
        time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def paused(name: str, err: BaseException) -> PausedError:
    """The error for what the machine goes on refusing.   name: of what could not be read."""
    number: int | None = errno.ENOMEM
    if isinstance(err, OSError):
        number = err.errno
    fix = _FIXES.get(number or 0, _FIX)
    return PausedError(
        f"`{name}` cannot be read: {_reason(err)}",
        f"{fix}; the same command then goes on from here",
    )


def has_memory(num_bytes: int) -> bool:
    """Whether so much memory can be had at this moment."""
    # Asked for, but never written to: that takes no memory and no time.
    try:
        np.empty(num_bytes, np.uint8)
    except MemoryError:
        return False
    return True


def _reason(err: BaseException) -> str:
    if isinstance(err, OSError):
        return (err.strerror or os.strerror(err.errno or 0)).lower()
    return "memory ran out"
