"""One stage: a teacher and a store become a model folder; stopped anywhere, it goes on from its last save."""

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from vdiff import checkpoint, run_contents, savepoint, telling
from vdiff.checkpoint import Checkpoint, ModelCard, codec_for
from vdiff.data.dataset import Images
from vdiff.data.loader import Batch, batches
from vdiff.diffusion.condition import of_seeds
from vdiff.diffusion.denoiser import Denoiser
from vdiff.errors import DivergedError, Stopped
from vdiff.images import grid, write_png
from vdiff.networks.sharded import on_host
from vdiff.plan import Stage, keeps_state, plan
from vdiff.recipe import Recipe
from vdiff.run_folder import RunFolder
from vdiff.samplers.draw import draw
from vdiff.savepoint import SavePoint, Saver
from vdiff.stage_parts import (
    agree,
    check_targets,
    copied,
    freeze,
    fresh,
    num_classes,
    objective_of,
    open_images,
    shaping,
)
from vdiff.training.learner import Learner
from vdiff.training.log import Report, Track
from vdiff.training.loop import fit
from vdiff.training.machine import Machine
from vdiff.training.profile import Profile
from vdiff.training.report import Progress
from vdiff.training.trackers import Trackers
from vdiff.trend import Trend

PREVIEW_STEPS = 32
"""A preview of a model with more sampler steps uses this many."""


@dataclass(frozen=True)
class Surroundings:
    """What all stages of a run share.

    text: the recipe as it is copied into the run and its model folders.
    stop: asked after every update; the number of the signal that came, 0 for none.   profile: measures some updates.
    """

    recipe: Recipe
    text: str
    run: RunFolder
    machine: Machine
    progress: Progress
    stop: Callable[[], int]
    profile: bool = False


def make(surroundings: Surroundings, stage: Stage, teacher: Checkpoint | None) -> ModelCard:
    """Train one stage, from its last save or from the start, and leave its model folder.

    teacher: None for the base.   Errors: Stopped, with everything saved; DataError, DivergedError, MachineError.
    """
    recipe, machine = surroundings.recipe, surroundings.machine
    images = machine.processes.together(lambda: _opened(recipe, teacher))
    agree(machine.processes, shaping(recipe, stage, teacher, images, machine.precision), images)
    if teacher is not None:
        student = copied(teacher, images)
        check_targets(stage, teacher)
        teacher = freeze(teacher, machine)  # after the student was copied, and before anybody asks the teacher
    else:
        student = fresh(recipe, images)
    for tensor in student.network.state_dict().values():
        machine.processes.fill(tensor)
    objective = objective_of(stage, teacher.denoiser if teacher else None)
    learner = Learner(student, objective, stage.settings, machine, surroundings.progress.note)
    work = StageRun(surroundings, stage, teacher, images, learner)
    begun = time.monotonic()
    loss = work.train()
    card = work.publish()
    surroundings.progress.end(stage.name, loss, time.monotonic() - begun)
    return card


def _opened(recipe: Recipe, teacher: Checkpoint | None) -> Images:
    """The pictures, looked through as far as their fingerprint needs it."""
    images = open_images(recipe, num_classes(recipe, teacher))
    _ = images.fingerprint
    return images


class StageRun:
    """A stage at work."""

    def __init__(
        self, surroundings: Surroundings, stage: Stage, teacher: Checkpoint | None, images: Images, learner: Learner
    ) -> None:
        self._recipe, self._run, self._machine = surroundings.recipe, surroundings.run, surroundings.machine
        self._progress, self._text, self._stop = surroundings.progress, surroundings.text, surroundings.stop
        self._stage, self._teacher, self._images, self._learner = stage, teacher, images, learner
        self._codec = codec_for(teacher)
        self._num_classes = num_classes(self._recipe, teacher)
        self._times = stage.settings.objective.known_times(stage.num_steps)
        self._saves = self._run.saves(stage.name)
        self._offset = sum(before.settings.updates for before in plan(self._recipe)[: stage.index])
        self._drawn: Tensor | None = None
        cache = self._run.evaluation / "reference"
        self._trend = Trend(self._recipe, stage, teacher, images, self._machine, cache)
        measures = surroundings.profile and self._machine.is_first
        trace = self._run.path / "profile" / f"{stage.name}.json.gz"
        self._profile = Profile(trace, self._progress.note) if measures else None
        self._trajectory = shaping(self._recipe, stage, teacher, images, self._machine.precision)

    def train(self) -> float:
        """Train to the last update and return the last loss.   Errors: Stopped, DivergedError."""
        saved = self._restore()
        while True:
            try:
                return self._fit(saved)
            except DivergedError as err:
                saved = self._roll_back(err)

    def _restore(self) -> SavePoint | None:
        saved = telling.newest(self._machine.processes, self._saves, self._trajectory, self._progress.note)
        if saved is not None:
            self._learner.load(saved.state, saved.update)
            self._tell_length(saved)
        if saved is not None and saved.processes != self._machine.world_size:
            told = f"saved by {saved.processes} processes, now there are {self._machine.world_size}"
            self._progress.note(f"{told}: the batches stay the same, results agree to rounding")
        return saved

    def _tell_length(self, saved: SavePoint) -> None:
        """Where the recipe asks for another number of updates than before: whether that changes the learning rate."""
        settings = self._stage.settings
        if saved.length == settings.updates:
            return
        told = f"`{self._stage.name}` was to have {saved.length:,} updates, and is to have {settings.updates:,} now: "
        if settings.decay == "constant":
            told += "it goes on as if that had been asked for from the start"
        else:
            before = settings.model_copy(update={"updates": saved.length}).rate(saved.update - 1)
            told += f"the learning rate was {before:.3g} and goes on at {settings.rate(saved.update):.3g}"
        self._progress.note(told)

    def _roll_back(self, err: DivergedError) -> SavePoint | None:
        """Go back to the last save and on at half the learning rate, if the recipe says so and there is a save."""
        self._machine.wait()  # all come here together; none may look while the first one still saves
        section, done = "distill" if self._teacher else "train", self._learner.rollbacks
        newest = self._machine.processes.told(lambda: [point.name for point in self._run.points(self._stage.name)])
        if newest and int(newest[0]) >= self._stage.settings.updates:
            raise err  # trained to the end: going back there would change nothing
        if done >= self._stage.settings.rollbacks or not newest:
            fix = f"`--set {section}.rollbacks={done + 3}` goes on from there at half the learning rate"
            last = f"the last save, at update {int(newest[0])}, is finite" if newest else ""
            raise DivergedError(err.problem, f"{fix}; or {err.fix}" if newest else err.fix, last) from err
        saved = self._restore()
        self._learner.rollbacks = done + 1
        self._progress.note(f"{err.problem}: back to update {self._learner.update}, at half the learning rate")
        return saved

    def _fit(self, saved: SavePoint | None) -> float:
        self._progress.begin(self._stage.name, self._stage.settings.updates, self._learner.update)
        machine = self._machine
        saver = Saver(self._saves, self._trajectory, machine.world_size, machine.is_first, machine.any)
        first, recipe = self._learner.update, self._recipe
        told = machine.trackers(self._run.tracker, recipe.trackers, recipe.name, self._step() + 1, self._progress.note)
        with told as trackers, saver:
            report = self._report(saved, trackers.log)
            is_complete = fit(
                self._learner,
                self._batches(),
                self._machine,
                report,
                codec=self._codec,
                seed=self._recipe.seed,
                stage=self._stage.index,
                save=lambda: self._save(saver, report),
                preview=lambda: self._preview(trackers),
                should_stop=lambda: self._should_stop(saver),
                measure=lambda is_complete: self._measure(report, is_complete),
                on_update=self._profile.after_update if self._profile else lambda: None,
            )
            if is_complete:
                report.check_learned()
                self._drawn = self._draw(self._learner.result())
                if self._learner.update > first:  # else an earlier sitting has shown it
                    self._show(trackers, self._drawn)
        if self._profile:
            self._profile.close()
        self._tell_saved(saver)
        self._machine.wait()  # else one that leaves early would have its launcher end the one that still writes
        if not is_complete:
            number = self._stop() or signal.SIGTERM  # 0 where another process was told
            raise Stopped(number, f"`{self._stage.name}` is saved at update {self._learner.update}")
        return report.loss

    def publish(self) -> ModelCard:
        """Leave the model folder; the points to resume from have served. To be called after `train`."""
        folder, picture = self._run.model(self._stage.name), self._drawn
        assert picture is not None, f"`{self._stage.name}` is published before it is trained"
        result = self._learner.result()
        weights = on_host(result.network.state_dict(), keeps=self._machine.is_first, copy=False)

        def published() -> ModelCard:
            card = self._card(result)
            checkpoint.save(folder, card, result, lambda target: write_png(target / "samples.png", picture), weights)
            if keeps_state(self._recipe, self._stage):
                savepoint.keep_last(self._saves)
            else:
                savepoint.clear(self._saves)
            self._progress.saved(str(folder))
            return checkpoint.read_card(folder)

        card = telling.card(self._machine.processes, published)
        self._machine.release()
        return card

    def _batches(self) -> Iterator[Batch]:
        found = batches(
            self._images,
            seed=self._recipe.seed,
            stage=self._stage.index,
            batch_size=self._stage.settings.batch_size,
            start_update=self._learner.update,
            rank=self._machine.rank,
            world_size=self._machine.world_size,
            flip=self._recipe.data.flip,
            workers=self._images.num_workers,
        )
        return found if self._num_classes else (batch._replace(labels=None) for batch in found)

    def _report(self, saved: SavePoint | None, track: Track) -> Report:
        return Report(
            self._stage.name,
            self._stage.settings,
            self._machine,
            self._progress,
            self._run.log,
            track,
            self._learner.update,
            saved.pending if saved is not None else None,
            self._offset,
        )

    def _save(self, saver: Saver, report: Report) -> None:
        saver.save(self._learner.update, self._learner.state(), report.pending())
        self._machine.wait()  # the first process may still be busy with the save before

    def _should_stop(self, saver: Saver) -> bool:
        self._tell_saved(saver)
        return bool(self._stop())

    def _tell_saved(self, saver: Saver) -> None:
        update = saver.saved()
        if update is not None:
            self._progress.saved(f"{self._stage.name} at update {update}")

    def _preview(self, trackers: Trackers) -> None:
        try:
            picture = self._draw(self._learner.result())
        except DivergedError as err:  # in every process, as each has all pictures
            self._progress.note(f"no preview at update {self._learner.update:,}: {err.problem}")
            return
        if self._machine.is_first:
            self._run.previews.mkdir(exist_ok=True)
            write_png(run_contents.preview(self._run.previews, self._stage.name, self._learner.update), picture)
            self._show(trackers, picture)
        self._machine.wait()

    def _show(self, trackers: Trackers, picture: Tensor) -> None:
        trackers.picture(f"{self._stage.name}/samples", picture, self._step())

    def _step(self) -> int:
        """Where the trackers are: all updates of the stages before, and those of this one."""
        return self._offset + self._learner.update

    def _measure(self, report: Report, is_complete: bool) -> None:
        update = self._learner.update
        if self._trend.is_due(update, is_complete):
            try:
                values = self._trend.measure(self._learner.result(), self._pictures, PREVIEW_STEPS)
            except DivergedError as err:
                if is_complete:
                    raise
                self._progress.note(f"no trend at update {update:,}: {err.problem}")
            else:
                report.trend(update, values, self._trend.num_images)
                self._progress.note(self._trend.told(update, values))
            self._machine.wait()  # the first process measures alone

    def _draw(self, denoiser: Denoiser) -> Tensor:
        """A grid of pictures from fixed noise, uint8 [C, H, W], in every process; each draws its share.

        Errors: DivergedError, in every process, for pictures that hold NaN or Inf.
        """
        steps, times = min(self._stage.num_steps, PREVIEW_STEPS), self._times
        pictures = self._pictures(denoiser, steps, times, self._recipe.sample.num_images)
        return grid(self._codec.decode(pictures, self._stage.name), scale=max(1, 32 // self._images.shape[-1]))

    def _pictures(self, denoiser: Denoiser, num_steps: int, model_steps: int | None, count: int) -> Tensor:
        """Pictures from fixed noise, float [n, C, H, W], in every process; each draws its share."""
        section, seeds = self._recipe.sample, range(count)
        condition = of_seeds(seeds, self._num_classes)

        def share(places: slice) -> Tensor:
            return draw(
                denoiser,
                section.sampler.build(),
                seeds[places],
                self._codec.shape(self._images.shape),
                num_steps,
                model_steps=model_steps,
                condition=condition.of(places),
                batch_size=section.batch_size,
                device=self._machine.device,
                graphs=self._machine.graphs,
            )

        with self._machine.autocast():
            return self._machine.share_out(share, count)

    def _card(self, result: Denoiser) -> ModelCard:
        teacher, objective = self._teacher.card if self._teacher else None, self._stage.settings.objective
        return ModelCard(
            name=self._stage.name,
            stage=self._stage.index,
            num_steps=self._stage.num_steps,
            times=self._times,
            updates=self._stage.settings.updates,
            shape=self._images.shape,
            num_classes=self._num_classes,
            num_parameters=sum(weight.numel() for weight in result.network.parameters()),
            network=teacher.network if teacher else self._recipe.network.kind,
            diffusion=teacher.diffusion if teacher else self._recipe.diffusion.model_dump(mode="json"),
            recipe=self._text,
            parent={"name": teacher.name, "num_steps": teacher.num_steps, "hash": teacher.hash} if teacher else None,
            data={"fingerprint": self._images.fingerprint, "num_images": self._images.num_images},
            trajectory=dict(self._trajectory),
            sampler=objective.advised_sampler(),
            is_denoiser=objective.is_denoiser,
        )
