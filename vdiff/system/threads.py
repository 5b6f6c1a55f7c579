"""Threads that can begin: for one that lacks the memory to say so Python waits for ever
(python/cpython#140746).
"""

import mmap
import threading

_BYTES = 2**26
"""Address space for its stack, 8 MB on most systems, and for what it takes before it
says that it has begun.
"""


def start(thread: threading.Thread) -> None:
    """Start a thread.   Errors: MemoryError where it might not begin;
    RuntimeError where the system allows no more.
    """
    check_room()
    thread.start()


def check_room() -> None:
    """See whether a thread would have the memory to begin.   Errors: MemoryError."""
    try:
        mmap.mmap(-1, _BYTES).close()
    except OSError as err:
        raise MemoryError("can't start new thread") from err
