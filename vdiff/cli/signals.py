"""Signals: the first one asks a run to save and leave, the second one ends it at once."""

import atexit
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

from vdiff.errors import Stopped

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

LAUNCHER = "VDIFF_LAUNCHER"
"""The environment variable in which `--gpus` tells its workers its process id."""

GRACE_SECONDS = 25.0
"""How long a process without its launcher may take to save and leave."""

_PARENT = os.getppid()
"""Who started this process. Asked when it begins: torch takes seconds to import, and the launcher may die meanwhile."""


def be_deaf_at_exit() -> None:
    """Have a Ctrl-C that comes while Python takes itself down, when all is done, leave no traceback."""
    atexit.unregister(_ignore_interrupts)
    atexit.register(_ignore_interrupts)  # who registers last is called first


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def leaving_at_once(undone: str) -> Iterator[None]:
    """Within it, a signal raises Stopped wherever this process is: for work whose finished parts lie on the disk.

    undone: what is not done then, in words.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        for each in ASKING:
            signal.signal(each, lambda second, frame: os._exit(128 + second))
        raise Stopped(number, undone)

    before = {number: signal.signal(number, leave) for number in ASKING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


class StopRequest:
    """Call it to learn the number of the signal that came, 0 for none.

    follows_parent: the end of the process that started this one counts as a SIGTERM; one that does not leave then,
    because it waits for others that are gone too, is ended.
    """

    def __init__(self, follows_parent: bool = False) -> None:
        self._number = 0
        self._parent = int(os.environ.get(LAUNCHER, _PARENT)) if follows_parent else None
        self._is_orphan = follows_parent and _torchrun_is_gone()
        self._closed = threading.Event()
        self._before = {number: signal.signal(number, self._receive) for number in ASKING}
        if follows_parent:
            threading.Thread(target=self._follow, name="launcher watch", daemon=True).start()

    def __call__(self) -> int:
        if self._is_orphan or self._parent not in (None, os.getppid()):
            self._number = self._number or signal.SIGTERM
        return self._number

    def close(self) -> None:
        """Nobody asks any longer: signals do again what they did before."""
        self._closed.set()
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def _follow(self) -> None:
        while not self._is_orphan and os.getppid() == self._parent:
            if self._closed.wait(_POLL_SECONDS):
                return
        if not self._closed.wait(GRACE_SECONDS):
            os._exit(128 + self())  # what is on the disk is whole at any moment

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._number:
            os._exit(128 + number)  # what is on the disk is whole at any moment
        self._number = number


def _torchrun_is_gone() -> bool:
    """Whether the torchrun of this machine has ended, maybe before this process could ask who started it.

    torchrun listens where its workers meet, from before they start until its end; on several machines, only one of them
    does.
    """
    told = os.environ
    if told.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or told.get("GROUP_WORLD_SIZE") != "1":
        return False
    try:
        socket.create_connection((told["MASTER_ADDR"], int(told["MASTER_PORT"])), timeout=5.0).close()
    except ConnectionRefusedError:
        return True
    except (KeyError, ValueError, OSError):
        return False
    return False


_POLL_SECONDS = 0.5
