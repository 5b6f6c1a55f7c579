"""What all stages of a run share, and how a run is left when somebody asks."""

import signal
from collections.abc import Callable
from dataclasses import dataclass

from vdiff.errors import Stopped
from vdiff.machine.machine import Machine
from vdiff.recipe.recipe import Recipe
from vdiff.runs.folder import RunFolder
from vdiff.training.progress import Progress


@dataclass(frozen=True)
class Surroundings:
    """What all stages of a run share.

    text: the recipe as it is copied into the run and its model folders.
    stop: asked after every update; the number of the signal that came, 0 for none.
    profile: measures some updates.
    options: what names this recipe and this run in a command; see `command`.
    """

    recipe: Recipe
    text: str
    run: RunFolder
    machine: Machine
    progress: Progress
    stop: Callable[[], int]
    profile: bool = False
    options: str = ""

    def command(self, words: str) -> str:
        """A command of vdiff for this run, as it is typed.   words: the command and its options."""
        return f"vdiff {words} {self.options}".rstrip()

    def stopped(self, what: str) -> Stopped:
        """The error with which all processes leave.   what: is safe or not begun, in words."""
        number = self.stop() or signal.SIGTERM  # 0 where another process was told
        return Stopped(number, what)

    def leave_if_asked(self, what: str) -> None:
        """Where nothing is under way that could be lost; every process must ask.

        Errors: Stopped, in all of them.
        """
        if self.machine.any(bool(self.stop())):
            raise self.stopped(what)
