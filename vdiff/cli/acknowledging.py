"""The word that a run has heard somebody who asks it to stop: at once, whatever it is doing."""

import contextlib
import os
import threading
from collections.abc import Callable

from vdiff.system import threads

_SECONDS = 0.2
"""So long the last word may take. A terminal that is halted takes none, and must not hold up who
wants to leave.
"""

_SHOW_CURSOR = b"\x1b[?25h"
"""What a terminal needs that a live display has left without a cursor."""


class Acknowledgement:
    """Speaks in a thread of its own: the main thread may be inside a library for minutes, and who
    listens for signals must not wait for a terminal.

    say: is called once, when the first signal is heard.
    """

    def __init__(self, say: Callable[[], None]) -> None:
        self._say = say
        self._is_heard = threading.Event()
        self._is_closed = False
        self._thread = threading.Thread(target=self._speak, name="acknowledgement", daemon=True)
        threads.start(self._thread)

    def heard(self) -> None:
        """Somebody asks to stop."""
        self._is_heard.set()

    def close(self) -> None:
        """Nothing follows."""
        self._is_closed = not self._is_heard.is_set()
        self._is_heard.set()
        self._thread.join(_SECONDS)

    def _speak(self) -> None:
        self._is_heard.wait()
        if not self._is_closed:
            self._say()


def acknowledging(work: str) -> Callable[[], None]:
    """What a `StopRequest` is to say; of several processes the first one says it.

    work: what is finished before the command leaves.
    """

    def say() -> None:
        from vdiff.cli import console, launch
        from vdiff.cli.signals import again_in_words

        if not launch.is_echo():
            console.say(f"stopping after {work}; {again_in_words()} to leave now", "yellow")

    return say


def restore_cursor() -> None:
    """Have the terminal show its cursor: for a process that ends without tidying up."""

    def write() -> None:
        with contextlib.suppress(OSError):
            if os.isatty(2):
                os.write(2, _SHOW_CURSOR)

    with contextlib.suppress(MemoryError, RuntimeError):
        thread = threading.Thread(target=write, name="cursor", daemon=True)
        threads.start(thread)
        thread.join(_SECONDS)
