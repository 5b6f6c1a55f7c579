"""Files as each system has them: opened, locked, read at a place, brought onto the disk,
given another name.

Windows has no `fcntl`, `O_NOFOLLOW`, `pread` or `fsync` of a folder. A file that is open there can
be neither removed nor renamed, and neither can the folders that it lies in.
"""

import contextlib
import errno
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

OPEN_FILES_STAY_IN_PLACE = sys.platform == "win32"
"""Whether a file that is open can be neither removed nor renamed."""

_PATIENCE = 2.0
"""Seconds for which a rename is tried again on Windows:
a scanner or an indexer opens every new file for a moment.
"""

_LOCKED_BYTE = 2**30
"""The byte that is locked on Windows. It lies beyond all content,
because a locked byte cannot be read by others.
"""

# What the system raises when another process holds the lock.
_IS_LOCKED: type[OSError] = BlockingIOError
if sys.platform == "win32":
    _IS_LOCKED = PermissionError

# Windows has no `pread`: between a seek and its read, no other thread may move the place in the
# file.
_one_seeks = threading.Lock()


def open_no_link(path: str | Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor as of `os.open`: no link is followed, no pipe is waited for,
    other programs do not inherit it.

    Errors: OSError, with ELOOP for a link.
    """
    if sys.platform == "win32":
        if os.path.islink(path):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        return os.open(path, flags | os.O_BINARY | os.O_NOINHERIT, 0o666)
    # O_NONBLOCK: opening a named pipe that nobody writes to would wait for ever.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)


def open_following(path: str | Path) -> int:
    """A descriptor for reading, as of `os.open`; other programs do not inherit it.

    Errors: OSError.
    """
    if sys.platform == "win32":
        return os.open(path, os.O_RDONLY | os.O_BINARY | os.O_NOINHERIT)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def read_at(descriptor: int, size: int, place: int) -> bytes:
    """The bytes at a place, fewer only at the end of the file; from any thread.

    Errors: OSError.
    """
    if sys.platform != "win32":
        return os.pread(descriptor, size, place)
    with _one_seeks:
        os.lseek(descriptor, place, os.SEEK_SET)
        return os.read(descriptor, size)


def replace_content(descriptor: int, data: bytes) -> None:
    """Make a file that is open for writing hold a few bytes, and nothing else.

    Errors: OSError.
    """
    os.ftruncate(descriptor, 0)
    if sys.platform != "win32":
        os.pwrite(descriptor, data, 0)
        return
    with _one_seeks:
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, data)


def lock(descriptor: int, shared: bool = False) -> bool:
    """Lock an open file, unless another one has locked it;
    `unlock`, or the end of the process, lets go.

    shared: several may hold it at once; Windows makes no difference.
    Errors: OSError where the file system has no locks.
    """
    try:
        if sys.platform == "win32":
            with _one_seeks:
                os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            operation = fcntl.LOCK_EX
            if shared:
                operation = fcntl.LOCK_SH
            fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except _IS_LOCKED:
        return False
    return True


def unlock(descriptor: int) -> None:
    """Let go of a lock that this descriptor holds, and close it.   Errors: OSError."""
    if sys.platform == "win32":
        # Closing unlocks too, but Windows may do that later, and the next process would find it
        # locked.
        with _one_seeks, contextlib.suppress(OSError):
            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
    os.close(descriptor)


def flush(descriptor: int) -> None:
    """Bring what was written to an open file, or the names in an open folder, onto the disk.

    Errors: OSError.
    """
    if sys.platform == "darwin":
        # On macOS, fsync leaves the data in the memory of the drive. Some network disks know only
        # fsync.
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def flush_path(path: Path) -> None:
    """Bring a file, or the names in a folder, onto the disk;
    Windows cannot be asked to do so for a folder.
    """
    if sys.platform == "win32":
        if path.is_dir():
            return
        # Windows flushes only what is open for writing.
        descriptor = os.open(path, os.O_RDWR | os.O_BINARY)
    else:
        descriptor = os.open(path, os.O_RDONLY)
    try:
        flush(descriptor)
    finally:
        os.close(descriptor)


def forget_cached(path: Path) -> None:
    """Drop what memory holds of a flushed file, so that the next read asks the disk.

    Only Linux can be asked to.
    """
    if sys.platform == "linux" and hasattr(os, "posix_fadvise"):
        with path.open("rb") as file, contextlib.suppress(OSError):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rename(old: Path, new: Path) -> None:
    """As `os.rename`, with patience on Windows.   Errors: OSError."""
    _patiently(lambda: os.rename(old, new))


def replace(old: Path, new: Path) -> None:
    """As `os.replace`, with patience on Windows.   Errors: OSError."""
    _patiently(lambda: os.replace(old, new))


def _patiently(act: Callable[[], None]) -> None:
    """Do it; on Windows, try again for a while when another program has the file open."""
    deadline = time.monotonic() + _PATIENCE
    while sys.platform == "win32" and time.monotonic() < deadline:
        try:
            act()
        except PermissionError:
            time.sleep(0.05)
        else:
            return
    # The last try: its error is the one that is raised.
    act()


def status(entry: "os.DirEntry[str]") -> os.stat_result:
    """As `entry.stat()`, always with the device and the inode, which tell one file from another."""
    if sys.platform == "win32":
        # There, a DirEntry has zeros for both.
        return os.stat(entry.path)
    return entry.stat()
