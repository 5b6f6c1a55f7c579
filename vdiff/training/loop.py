"""The loop: batch, update, report, save; until the last update, or until somebody asks it to stop."""

from collections.abc import Callable, Iterator

from vdiff.data.codec import Codec
from vdiff.data.loader import Batch
from vdiff.diffusion.condition import Condition
from vdiff.phases import phase
from vdiff.training.learner import Learner, RngOf
from vdiff.training.log import Report
from vdiff.training.machine import Machine


def fit(
    learner: Learner,
    batches: Iterator[Batch],
    machine: Machine,
    report: Report,
    *,
    codec: Codec,
    seed: int,
    stage: int,
    save: Callable[[], None],
    preview: Callable[[], None],
    should_stop: Callable[[], bool],
    measure: Callable[[bool], None] = lambda is_complete: None,
    on_update: Callable[[], None] = lambda: None,
) -> bool:
    """Train until `learner.settings.updates`; True when that is reached, False when it was stopped before.

    batches: this process's shares, the first one for the learner's next update.
    codec: makes of their pictures what the network sees.
    save: called every so often and before leaving, so that nothing is lost.   preview: draws what was learned so far.
    measure: called after every update, before it is saved: what it writes is written once, however often one stops.
    should_stop: asked after every update; one process that says so stops all, several one update later.
    on_update: called after every update.
    """
    settings, anybody = learner.settings, machine.vote()
    for batch in _timed(batches) if learner.update < settings.updates else ():
        x = codec.encode(machine.take(batch.images))
        condition = Condition(machine.take(batch.labels) if batch.labels is not None else None)
        rng_of = RngOf(seed, stage, batch.update, machine.take_exact(batch.places), settings.batch_size)
        if report.is_first_update:
            learner.settle(x, condition, rng_of)
            learner.rehearse(x, condition, rng_of)
        measured = learner.step(x, condition, rng_of)
        with phase("logging"):
            report.add(learner.update, measured, learner.rate(learner.update - 1))
        on_update()
        is_complete = learner.update == settings.updates
        measure(is_complete)
        is_stopped = anybody(should_stop())
        if is_complete or is_stopped or learner.update % settings.save_every == 0:
            save()
        if is_complete or is_stopped:
            return is_complete
        if settings.preview_every and learner.update % settings.preview_every == 0:
            preview()
    return True


def _timed(batches: Iterator[Batch]) -> Iterator[Batch]:
    while True:
        with phase("data"):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch
