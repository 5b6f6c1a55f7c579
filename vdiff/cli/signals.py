"""Signals: the first one asks a run to save and leave, the second one ends it at once."""

import os
import signal
import threading
from types import FrameType

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

LAUNCHER = "VDIFF_LAUNCHER"
"""The environment variable in which `--gpus` tells its workers its process id."""

LEAVE_SECONDS = 20.0
"""A process that its launcher has left saves and leaves; one that cannot, as it waits for others, ends after this."""

_PARENT = os.getppid()  # read before torch is imported: the launcher may end meanwhile


class StopRequest:
    """Call it to learn the number of the signal that came, 0 for none.

    follows_parent: the end of the process that started this one counts as a SIGTERM.
    """

    def __init__(self, follows_parent: bool = False) -> None:
        self._number = 0
        self._parent = int(os.environ.get(LAUNCHER, _PARENT)) if follows_parent else None
        self._before = {number: signal.signal(number, self._receive) for number in ASKING}
        self._is_over = threading.Event()
        if follows_parent:
            threading.Thread(target=self._end_an_orphan, daemon=True).start()

    def __call__(self) -> int:
        if self._parent not in (None, os.getppid()):
            self._number = self._number or signal.SIGTERM
        return self._number

    def close(self) -> None:
        """Nobody asks any longer: signals do again what they did before."""
        self._is_over.set()
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def _end_an_orphan(self) -> None:
        while os.getppid() == self._parent:
            if self._is_over.wait(1.0):
                return
        if not self._is_over.wait(LEAVE_SECONDS):
            os._exit(128 + signal.SIGTERM)  # what is on the disk is whole at any moment

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._number:
            os._exit(128 + number)  # what is on the disk is whole at any moment
        self._number = number
