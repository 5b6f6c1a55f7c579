"""The lock of a folder: one process at a time works in it;
it counts only while its file is the one in place.
"""

import contextlib
import errno
import os
import re
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from vdiff.disk import os_files
from vdiff.disk.whole_folder import is_taken, make, refusals
from vdiff.errors import InUseError, MachineError, UsageError

FILE = ".lock"
"""In the folder; on Windows, where it would keep the folder from being renamed, beside it:
see `_place`.
"""

PATIENCE = 1.0
"""So many seconds a process waits for the lock: `is_held` of another one holds it for a moment."""


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`, which is made if it is not there;
    it goes again if nothing was put into it.

    The system lets go of the lock when its process ends, however it dies.
    Errors: InUseError naming who holds it; UsageError where something else is in its place;
    MachineError.
    """
    lock = _Lock(folder)
    lock.take(time.monotonic() + PATIENCE)
    try:
        lock.sign()
        yield
    finally:
        lock.let_go()


def is_held(folder: Path) -> bool:
    """Whether a process holds the lock of `folder`. Nothing is written."""
    return bool(_holder(folder))


def refuse_if_held(folder: Path) -> None:
    """InUseError if another process holds the lock of `folder`: to be asked before long work.

    Nothing is written.
    """
    holder = _holder(folder)
    if holder:
        raise _in_use(holder, folder)


def is_signed(folder: Path) -> bool:
    """Whether a process of vdiff holds the lock of `folder` or held it last."""
    try:
        descriptor = os_files.open_no_link(_place(folder))
    except OSError:
        return False
    try:
        return bool(_signature(descriptor))
    except OSError:  # of a folder in its place
        return False
    finally:
        os.close(descriptor)


class _Lock:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = _place(folder)
        self._descriptor = -1
        self._is_new = False  # whether the file was made for this lock
        self._made: list[Path] = []  # the folders that were
        self._before: set[str] = set()  # what lay in the folder besides

    def take(self, deadline: float) -> None:
        """Errors: InUseError when another process still holds it then."""
        while not self._try_to_take():
            if time.monotonic() >= deadline:
                raise _in_use(_holder(self._folder) or "another process", self._folder)
            time.sleep(0.05)
        with refusals(self._folder):
            self._before = set(os.listdir(self._folder))

    def sign(self) -> None:
        """Write this process's name into the file, unless something else stands there."""
        if _signature(self._descriptor) is None:
            return
        with refusals(self._folder):
            signature = f"process {os.getpid()} on {socket.gethostname()}"
            os_files.replace_content(self._descriptor, signature.encode())

    def let_go(self) -> None:
        """What was made for the lock goes too if nothing came of it.

        Who waits for it sees that, and makes it again.
        """
        if os_files.OPEN_FILES_STAY_IN_PLACE:
            self._let_go_beside()
            return
        try:
            if (
                self._is_new
                and _is_at(self._path, self._descriptor)
                and set(os.listdir(self._folder)) == self._before
            ):
                self._path.unlink()
                with contextlib.suppress(OSError):  # of a folder in which somebody else has begun
                    for folder in reversed(self._made):
                        folder.rmdir()
        finally:
            os_files.unlock(self._descriptor)

    def _let_go_beside(self) -> None:
        """The same where the file lies beside the folder, and cannot be
        removed before it is closed.
        """
        os_files.unlock(self._descriptor)
        # of a file that another process has opened, which waits for it
        with contextlib.suppress(OSError):
            self._path.unlink()
        # of a folder in which something came of it, or that has another name
        with contextlib.suppress(OSError):
            for folder in reversed(self._made):
                folder.rmdir()

    def _try_to_take(self) -> bool:
        with refusals(self._folder):
            try:
                descriptor = self._opened()
            except FileNotFoundError:
                # the folder went this moment, with the process that had made it
                return False
        try:
            if os_files.lock(descriptor) and _is_at(self._path, descriptor):
                self._descriptor = descriptor
                return True
        except OSError as err:  # as some network disks are mounted
            self._descriptor = descriptor
            self._before = set(os.listdir(self._folder))
            self.let_go()
            problem = f"`{self._folder}` cannot be locked: {err.strerror}"
            raise MachineError(
                problem, "choose a folder on a disk whose file system has locks (`flock`)"
            ) from err
        os.close(descriptor)
        return False

    def _opened(self) -> int:
        if is_taken(self._folder):
            raise UsageError(
                f"`{self._folder}` is not a folder", "choose another place", self._folder
            )
        make(self._folder, self._made)
        try:
            descriptor = os_files.open_no_link(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            self._is_new = True
        except FileExistsError:
            descriptor = self._opened_again()
        return descriptor

    def _opened_again(self) -> int:
        """The file that is there.

        Errors: UsageError for a link, a folder or anything else that is no lock.
        """
        fix = "move it away, or choose another place"
        try:
            descriptor = os_files.open_no_link(self._path, os.O_RDWR)
        except OSError as err:
            if err.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO) or self._path.is_dir():
                raise UsageError(
                    f"`{self._path}` is not a file that vdiff made", fix, self._path
                ) from err
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise UsageError(f"`{self._path}` is not a file that vdiff made", fix, self._path)
        return descriptor


_SIGNATURE = re.compile(r"process \d+ on [^\s\x00-\x1f\x7f]{1,255}")


def _place(folder: Path) -> Path:
    """Where the lock of a folder is."""
    if os_files.OPEN_FILES_STAY_IN_PLACE:
        whole = folder.absolute()
        return whole.with_name(f".{whole.name}{FILE}")
    return folder / FILE


def _holder(folder: Path) -> str:
    """Who holds the lock of a folder, empty for nobody."""
    try:
        descriptor = os_files.open_no_link(_place(folder))
    except OSError:
        return ""
    try:
        if not os_files.lock(descriptor, shared=True):
            return _signature(descriptor) or "another process"
    except OSError:  # a file system without locks
        return ""
    finally:
        os_files.unlock(descriptor)
    return ""


def _signature(descriptor: int) -> str | None:
    """What `sign` wrote, also nothing; None for anything else, which is not vdiff's."""
    text = os_files.read_at(descriptor, 512, 0).decode("utf-8", "replace")
    if text == "" or _SIGNATURE.fullmatch(text):
        return text
    return None


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the file that is open is the one at `path`, and not one that was there before."""
    if os_files.OPEN_FILES_STAY_IN_PLACE:
        return True
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _in_use(holder: str, folder: Path) -> InUseError:
    return InUseError(f"{holder} works in `{folder}`", "wait until it ends, or stop it", folder)
