"""What a run tells while it works, and to whom."""

from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Protocol, Self


class StageRow(NamedTuple):
    """One stage as the table of the chain shows it.

    start_steps, num_steps: sampler steps of the teacher and of the student, equal for the base
    training.
    state: `waiting`, `running`, `done` or `skipped`.   loss, seconds: None until there is a number.
    """

    name: str
    start_steps: int
    num_steps: int
    updates: int
    state: str
    loss: float | None = None
    seconds: float | None = None


class Progress(Protocol):
    """Whoever wants to know how a run is doing; used as a context manager, `close` comes last."""

    def show_stages(self, stages: Sequence[StageRow]) -> None:
        """All stages of the run, in order."""

    def begin(self, stage: str, updates: int, first_update: int) -> None:
        """A stage starts, or goes on at `first_update` of its `updates`."""

    def update(
        self,
        update: int,
        loss: float,
        grad_norm: float,
        learning_rate: float,
        images_per_second: float,
    ) -> None:
        """`update` updates of the stage are done; `loss` and `grad_norm` may
        be NaN in a skipped one.
        """

    def saved(self, what: str) -> None:
        """Something is safe on the disk."""

    def note(self, text: str) -> None:
        """A line of talk."""

    def end(self, stage: str, loss: float, seconds: float) -> None:
        """A stage is complete."""

    def close(self) -> None:
        """Nothing follows; may be called twice."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
