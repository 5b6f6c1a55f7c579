"""Processes and signals as each system has them.

Windows has INT (Ctrl-C), TERM (only within a process) and BREAK (Ctrl-Break) alone. No signal can
be held back there, and none reaches another process but as its end at once.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

if sys.platform == "win32":
    ALWAYS_HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGBREAK)
else:
    ALWAYS_HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Heard also where they were ignored at the start:
shells start what ends in `&` without ears for INT.
"""


def is_alive(pid: int) -> bool:
    """Whether there is a process with this number."""
    try:
        if sys.platform == "win32":  # `os.kill(pid, 0)` is Ctrl-C there
            import psutil

            return bool(psutil.pid_exists(pid))
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def held_back(numbers: Sequence[int]) -> Iterator[None]:
    """Within it, these signals wait; a process that is started inherits that,
    until it calls `let_come`.

    What is done at the end of a child stays as it was.
    """
    if sys.platform == "win32":
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)


def let_come(numbers: Sequence[int]) -> None:
    """The end of `held_back` in a process that has inherited it."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def end_in(seconds: int) -> None:
    """End this process then, whatever it is doing;
    on Windows, unless it never lets another thread run.
    """
    if sys.platform == "win32":
        timer = threading.Timer(seconds, os._exit, [1])
        timer.daemon = True
        timer.start()
        return
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)


def when_forked(in_child: Callable[[], None]) -> None:
    """Have every forked process call this first; Windows forks none."""
    if sys.platform != "win32":
        os.register_at_fork(after_in_child=in_child)


class Bell:
    """Where Python writes the number of each signal, at once and whatever the main thread does;
    see `set_wakeup_fd`.

    number: of the descriptor that is written to.
    """

    def __init__(self) -> None:
        if sys.platform == "win32":  # only sockets can be waited for
            self._sockets = socket.socketpair()
            for end in self._sockets:
                end.setblocking(False)
            self._ends = [end.fileno() for end in self._sockets]
        else:
            self._ends = list(os.pipe())
            for descriptor in self._ends:
                os.set_blocking(descriptor, False)
            self._poll = select.poll()  # `select.select` knows only the first 1,024 open files
            self._poll.register(self._ends[0], select.POLLIN)
        self.number = self._ends[1]

    def ring(self) -> None:
        """Wake up whoever waits in `take`."""
        if sys.platform == "win32":
            self._sockets[1].send(bytes(1))
        else:
            os.write(self._ends[1], bytes(1))

    def take(self, seconds: float | None) -> bytes:
        """The numbers that came, within so many seconds or until there is one."""
        if sys.platform == "win32":
            ready, _, _ = select.select([self._sockets[0]], [], [], seconds)
            return self._sockets[0].recv(4096) if ready else b""
        if not self._poll.poll(None if seconds is None else 1000 * seconds):
            return b""
        return os.read(self._ends[0], 4096)

    def close(self) -> None:
        """Nobody may write or wait any longer."""
        if sys.platform == "win32":
            for end in self._sockets:
                end.close()
        else:
            for descriptor in self._ends:
                os.close(descriptor)
