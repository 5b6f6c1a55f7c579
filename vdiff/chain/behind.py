"""Whether the first process, whose run folder counts,
has less of the run than another one has on its own disk.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from vdiff.disk import manifest
from vdiff.errors import ModelFileError, UsageError
from vdiff.machine.meeting import Meeting
from vdiff.model_folder.card import is_model_folder, read_card
from vdiff.runs.folder import STATE, RunFolder


class _Standing(NamedTuple):
    """How far a stage is in one run folder.

    is_complete: whether it is a model.   update: its updates, or those of its newest save; -1 for
    nothing at all.
    content: SHA-256 of the model's weights, or of the list of the save's files.
    """

    is_complete: bool
    update: int
    content: str

    def is_no_copy_of(self, first: "_Standing") -> bool:
        """Whether it is further than the first process's, or as far with another content;
        older copies do no harm.
        """
        own = (self.is_complete, self.update)
        other = (first.is_complete, first.update)
        return own > other or (own == other and self.content != first.content)

    def __str__(self) -> str:
        if self.update < 0:
            return "nothing"
        told = f"a save at update {self.update}"
        if self.is_complete:
            told = "complete"
        return f"{told} ({self.content[:8]})"


def refuse_if_behind(processes: Meeting, run: RunFolder, stages: Sequence[str]) -> None:
    """UsageError, in all processes, where another one has more of these stages,
    or something else, than the first one.

    A process without a run folder is told everything, and one with an older copy too. But who
    starts the hosts in another order than before would begin anew, and not notice.
    """
    if processes.world_size == 1:
        return
    found = processes.everybody(lambda: [_standing(run, name) for name in stages])
    standings = [[_Standing(*each) for each in one] for one in found]
    for rank, one in enumerate(standings):
        for name, first, standing in zip(stages, standings[0], one, strict=True):
            if standing.is_no_copy_of(first):
                raise UsageError(
                    f"{processes.named(rank)} has another `{run.path}` than the first "
                    "process, or more of it",
                    "start that host as the first one, copy its run folder to the first host, "
                    "or remove it there",
                    f"{name}: {first} in {processes.named(0)}, "
                    f"{standing} in {processes.named(rank)}",
                )


def _standing(run: RunFolder, name: str) -> tuple[Any, ...]:
    try:
        # what is being made again is as far as its saves are
        if is_model_folder(run.model(name)) and not run.is_anew(name):
            card = read_card(run.model(name))
            return True, card.updates, card.hash
        points = run.points(name)
        if points:
            return False, int(points[0].name), manifest.sha256_of(points[0] / STATE)
    except (ModelFileError, OSError, ValueError):
        pass  # the first process tells what is damaged, when it reads it
    return False, -1, ""
