"""Whose trouble an error is, the picture's or the machine's; what is the machine's is tried again for a while."""

import errno
import os
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from vdiff.errors import PausedError

WAITS = (0.1, 0.4, 1.5)
"""Seconds before another try: a file server that comes back, and other threads that close their files, need no more."""

# Whatever the machine's state, this name does not lead to a file that could be read.
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
_REFUSALS = (
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EAGAIN,
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
)
_LASTING = frozenset({errno.EACCES, errno.EPERM})
_FIXES = {
    errno.EACCES: "give yourself the right to read it, or move it away",
    errno.EPERM: "give yourself the right to read it, or move it away",
    errno.EMFILE: "allow more open files, as in `ulimit -n 4096`, or use fewer `--workers`",
    errno.ENFILE: "too many files are open on this machine: close some programs",
    errno.ENOMEM: "close other programs, or use fewer `--workers`",
}
_FIX = "look at the disk or at the connection to it; a file that can never be read must be replaced or moved away"

Result = TypeVar("Result")


def is_of_machine(err: BaseException) -> bool:
    """Whether a picture may be whole although this happened when it was read."""
    if isinstance(err, OSError):
        return err.errno is not None and err.errno not in _OF_THE_FILE
    return isinstance(err, MemoryError)


def is_refusal(text: str) -> bool:
    """Whether a library that has only words for it says that the machine refuses for now. A full disk is not meant."""
    return any(os.strerror(number) in text for number in _REFUSALS)


def patiently(work: Callable[[], Result], name: str, notes: list[str]) -> Result:
    """What `work` gives, if need be at a later try, which becomes a note.

    name: of the file, for the message.   PausedError if the machine goes on refusing; other errors come at once.
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
        time.sleep(wait)  # out of the handler, which would keep what the work held in memory
    raise AssertionError("the last try returns or raises")


def paused(name: str, err: BaseException) -> PausedError:
    """The error to stop with.   name: of what could not be read."""
    number = err.errno if isinstance(err, OSError) else errno.ENOMEM
    fix = _FIXES.get(number or 0, _FIX)
    return PausedError(
        f"`{name}` cannot be read: {_reason(err)}",
        f"{fix}; the same command then goes on from here",
    )


def has_memory(num_bytes: int) -> bool:
    """Whether so much memory is to be had at this moment. It is not touched."""
    try:
        np.empty(num_bytes, np.uint8)
    except MemoryError:
        return False
    return True


def _reason(err: BaseException) -> str:
    if isinstance(err, OSError):
        return (err.strerror or os.strerror(err.errno or 0)).lower()
    return "memory ran out"
