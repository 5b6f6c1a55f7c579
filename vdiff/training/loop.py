"""The loop: batch, update, chores; until the last update, or until somebody asks it to stop."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from vdiff.data.codec import Codec
from vdiff.data.loader import Batch
from vdiff.machine.machine import Machine
from vdiff.phases import phase
from vdiff.randomness import Randomness
from vdiff.training.learner import Learner, RngOf
from vdiff.training.telling import AS_THEY_ARE, Telling


class Moment(NamedTuple):
    """Where a training stands after an update; in all processes at once.

    update: updates done.   measured: what `Learner.step` returned, on the device.
    is_complete: that was the last update.   is_stopped: somebody asked to stop.
    """

    update: int
    measured: Tensor
    is_complete: bool = False
    is_stopped: bool = False

    @property
    def is_last(self) -> bool:
        """Whether the loop ends here."""
        return self.is_complete or self.is_stopped

    def is_each(self, count: int | None) -> bool:
        """Whether a multiple of `count` updates is done; never for None."""
        return count is not None and self.update % count == 0


class Chore(NamedTuple):
    """What is done after an update besides learning, and when. Neither may change the weights.

    is_due: must say the same in all processes where `do` waits for the others.
    """

    is_due: Callable[[Moment], bool]
    do: Callable[[Moment], None]


def always(now: Moment) -> bool:
    """Due after every update."""
    return True


def fit(
    learner: Learner,
    batches: Iterator[Batch],
    machine: Machine,
    *,
    codec: Codec,
    seed: int,
    stage: int,
    should_stop: Callable[[], bool],
    chores: Sequence[Chore],
    telling: Telling = AS_THEY_ARE,
) -> bool:
    """Train until `learner.settings.updates` are done. True when they are;
    False when it was stopped before.

    batches: this process's shares, the first one for the learner's next update.
    codec: makes of their pictures what the network sees.
    should_stop: asked after every update; one process that says so stops all, several one update
    later.
    chores: after every update those that are due, in this order.
    telling: what the network is told of the pictures.
    """
    settings = learner.settings
    any_late = machine.any_late()
    first = learner.update
    if first >= settings.updates:
        return True
    for batch in _timed(batches):
        x = codec.encode(machine.take(batch.images))
        labels = batch.labels
        if labels is not None:
            labels = machine.take(labels)
        places = machine.take_exact(batch.places)
        apart = Randomness.for_update(
            seed, stage, batch.update, places, settings.batch_size, purpose="telling"
        )
        condition = telling(labels, apart).to(x.device)
        rng_of = RngOf(seed, stage, batch.update, places, settings.batch_size)
        if learner.update == first:
            learner.choose_micro_batch(x, condition, rng_of)
            learner.build_ddp_buckets(x, condition, rng_of)
        measured = learner.step(x, condition, rng_of)
        is_complete = learner.update == settings.updates
        is_stopped = any_late(should_stop())
        now = Moment(learner.update, measured, is_complete, is_stopped)
        for chore in chores:
            if chore.is_due(now):
                chore.do(now)
        if now.is_last:
            break
    return learner.update == settings.updates


def _timed(batches: Iterator[Batch]) -> Iterator[Batch]:
    while True:
        with phase("data"):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch
