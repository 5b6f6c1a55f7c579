"""Signals: the first one asks a run to save and leave, the second one ends it at once."""

import os
import signal
from types import FrameType

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Call it to learn the number of the signal that came, 0 for none."""

    def __init__(self) -> None:
        self._number = 0
        for number in ASKING:
            signal.signal(number, self._receive)

    def __call__(self) -> int:
        return self._number

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._number:
            os._exit(128 + number)  # what is on the disk is whole at any moment
        self._number = number
