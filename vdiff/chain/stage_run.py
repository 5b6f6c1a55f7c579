"""One stage: a teacher and a store become a model folder;
stopped anywhere, it goes on from its last save.
"""

import time
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from vdiff.chain.beginning import Beginning
from vdiff.chain.guidance import inside_of, taking
from vdiff.chain.plan import Stage, keeps_state, plan, told_length
from vdiff.chain.stage_chores import StageChores
from vdiff.chain.stage_parts import (
    agree,
    card_of,
    check_targets,
    copied,
    freeze,
    fresh,
    known_of,
    num_classes,
    objective_of,
    open_images,
    shaping,
    stage_batches,
    student_predicts,
    telling_of,
)
from vdiff.chain.stage_pictures import (
    PREVIEW_STEPS,
    StagePictures,
    advice_of_card,
    advice_of_stage,
)
from vdiff.chain.surroundings import Surroundings as Surroundings
from vdiff.chain.trend import Trend
from vdiff.data.dataset import Images
from vdiff.diffusion.denoiser import Denoiser
from vdiff.errors import DivergedError
from vdiff.images.images import write_png
from vdiff.machine.trackers import Trackers
from vdiff.model_folder import checkpoint
from vdiff.model_folder.checkpoint import Checkpoint, ModelCard, codec_for
from vdiff.networks.sharded import on_host
from vdiff.recipe.recipe import Recipe
from vdiff.runs import replacing, savepoint, telling
from vdiff.runs.savepoint import SavePoint, Saver
from vdiff.training.learner import Learner
from vdiff.training.log import LossRecord
from vdiff.training.loop import fit
from vdiff.training.profile import Profile


class Made(NamedTuple):
    """The model folder that a stage has left: its card, and in the first process its weights,
    in the host's memory.
    """

    card: ModelCard
    weights: dict[str, Tensor]


def make(
    surroundings: Surroundings, stage: Stage, teacher: Checkpoint | None, beginning: Beginning
) -> Made:
    """Train one stage, from its last save or from the start, and leave its model folder.

    teacher: None for the base.   beginning: what is left in the run before it learns.
    Errors: Stopped, with everything saved; DataError, DivergedError,
    MachineError.
    """
    recipe = surroundings.recipe
    machine = surroundings.machine
    images = machine.processes.together(lambda: _opened(recipe, teacher))
    agree(machine.processes, shaping(recipe, stage, teacher, images, machine.precision), images)
    if teacher is not None:
        student = copied(teacher, images, student_predicts(stage))
        check_targets(stage, teacher)
        student = taking(student, inside_of(stage, teacher.card.guidance), recipe.seed)
        # after the student was copied, and before anybody asks the teacher
        teacher = freeze(teacher, machine)
    else:
        student = fresh(recipe, images.shape)
    for tensor in student.network.state_dict().values():
        machine.processes.fill(tensor)
    objective = objective_of(stage, *known_of(teacher))
    learner = Learner(student, objective, stage.settings, machine, surroundings.progress.note)
    work = StageRun(surroundings, stage, teacher, images, learner)
    begun = time.monotonic()
    trained = work.train(beginning)
    made = work.publish(trained)
    surroundings.progress.end(stage.name, trained.loss, time.monotonic() - begun)
    return made


def _opened(recipe: Recipe, teacher: Checkpoint | None) -> Images:
    """The pictures, looked through as far as their fingerprint needs it."""
    images = open_images(recipe, num_classes(recipe, teacher))
    _ = images.fingerprint
    return images


class Trained(NamedTuple):
    """What a training has come to.

    result: a copy with the weights that are meant for sampling.
    picture: what it draws, a grid, uint8 [C, H, W].
    loss: of the last line of the log; NaN where an earlier start did the last update.
    agreement: with the teacher's pictures, for the model card; in the first process, and if it was
    to be measured.
    """

    result: Denoiser
    picture: Tensor
    loss: float
    agreement: dict[str, Any] | None


class StageRun:
    """A stage at work: `train` goes back to the last save as often as it must,
    `publish` leaves the model folder.

    teacher: frozen.   learner: of the student, as a new training begins; `train` takes it on from
    the last save.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        stage: Stage,
        teacher: Checkpoint | None,
        images: Images,
        learner: Learner,
    ) -> None:
        recipe = surroundings.recipe
        machine = surroundings.machine
        run = surroundings.run
        self._surroundings = surroundings
        self._stage = stage
        self._teacher: ModelCard | None = None
        if teacher is not None:
            self._teacher = teacher.card
        self._inside = inside_of(stage, self._teacher.guidance if self._teacher else None)
        self._images = images
        self._learner = learner
        self._codec = codec_for(teacher)
        self._num_classes = num_classes(recipe, teacher)
        self._advice = advice_of_stage(stage, self._teacher)
        self._shaping = shaping(recipe, stage, teacher, images, machine.precision)
        self._pictures = StagePictures(
            recipe.sample, self._advice, self._codec, images.shape, self._num_classes, machine
        )
        self._trend = Trend(recipe, stage, teacher, images, machine, run.evaluation / "reference")
        # samplers that are not to be had are told now, and not after hours at the first picture
        self._pictures.sampler(self._advice)
        if teacher is not None and self._trend.has_pairs:
            self._pictures.sampler(advice_of_card(teacher.card))
        self._profile: Profile | None = None
        if surroundings.profile and machine.is_first:
            self._profile = Profile(
                run.path / "profile" / f"{stage.name}.json.gz", surroundings.progress.note
            )

    def train(self, beginning: Beginning) -> Trained:
        """Train to the last update.   Errors: Stopped, DivergedError."""
        processes = self._surroundings.machine.processes
        processes.told(beginning.make_room)
        saved = self._restore()
        # a change of the recipe that is refused is refused by now
        processes.told(beginning.keep_recipe)
        while True:
            try:
                return self._fit(saved)
            except DivergedError as err:
                saved = self._roll_back(err)

    def publish(self, trained: Trained) -> Made:
        """Leave the model folder; the savepoints have served."""
        recipe = self._surroundings.recipe
        run = self._surroundings.run
        machine = self._surroundings.machine
        folder = run.model(self._stage.name)
        result = trained.result
        weights = on_host(result.network.state_dict(), keeps=machine.is_first, copy=False)

        def add_picture(target: Path) -> None:
            write_png(target / "samples.png", trained.picture)

        def published() -> ModelCard:
            card = card_of(
                recipe,
                self._surroundings.text,
                self._stage,
                self._teacher,
                self._images,
                self._shaping,
                result.network,
            )
            card = replace(card, agreement=trained.agreement)
            aside = replacing.set_aside(run, self._stage.name)
            checkpoint.save(folder, card, result, add_picture, weights)
            if aside is not None:
                replacing.forget_equal(run, self._stage.name, aside)
            savepoint.settle(run, self._stage.name, keeps_state(recipe, self._stage))
            self._surroundings.progress.saved(str(folder))
            return checkpoint.read_card(folder)

        card = telling.card(machine.processes, published)
        machine.release()
        return Made(card, weights)

    @property
    def _saves(self) -> Path:
        return self._surroundings.run.saves(self._stage.name)

    def _restore(self) -> SavePoint | None:
        machine = self._surroundings.machine
        note = self._surroundings.progress.note
        saved = telling.newest(machine.processes, self._saves, self._shaping, note)
        if saved is None:
            return None
        self._learner.load(saved.state, saved.update)
        told = told_length(self._stage, saved.length, saved.update)
        if told:
            note(told)
        if saved.processes != machine.world_size:
            told = f"saved by {saved.processes} processes, now there are {machine.world_size}"
            note(f"{told}: the batches stay the same, results agree to rounding")
        return saved

    def _roll_back(self, err: DivergedError) -> SavePoint | None:
        """Go back to the last save and on at half the learning rate,
        if the recipe says so and there is a save.
        """
        machine = self._surroundings.machine
        run = self._surroundings.run
        # all come here together; none may look while the first one still saves
        machine.wait()
        newest = machine.processes.told(
            lambda: [point.name for point in run.points(self._stage.name)]
        )
        if newest and int(newest[0]) >= self._stage.settings.updates:
            # trained to the end: going back there would change nothing
            raise err
        done = self._learner.rollbacks
        if done >= self._stage.settings.rollbacks or not newest:
            section = "distill" if self._teacher else "train"
            fix = (
                f"`--set {section}.rollbacks={done + 3}` goes on from there at "
                "half the learning rate"
            )
            last = f"the last save, at update {int(newest[0])}, is finite" if newest else ""
            raise DivergedError(
                err.problem, f"{fix}; or {err.fix}" if newest else err.fix, last
            ) from err
        saved = self._restore()
        self._learner.rollbacks = done + 1
        told = f"{err.problem}: back to update {self._learner.update}, at half the learning rate"
        self._surroundings.progress.note(told)
        return saved

    def _fit(self, saved: SavePoint | None) -> Trained:
        """Train from where the learner is.

        saved: what it was restored from.   Errors: Stopped, DivergedError.
        """
        recipe = self._surroundings.recipe
        machine = self._surroundings.machine
        learner = self._learner
        name = self._stage.name
        first = learner.update
        self._surroundings.progress.begin(name, self._stage.settings.updates, first)
        saver = Saver(self._saves, self._shaping, machine.world_size, machine.is_first, machine.any)
        trained: Trained | None = None
        with self._trackers() as trackers, saver:
            work = self._chores(saved, saver, trackers)
            shares = stage_batches(
                recipe, self._stage, self._images, self._num_classes, machine, first
            )
            is_complete = fit(
                learner,
                shares,
                machine,
                codec=self._codec,
                seed=recipe.seed,
                stage=self._stage.index,
                should_stop=lambda: bool(self._surroundings.stop()),
                chores=work.chores(),
                telling=telling_of(recipe, self._stage, self._inside),
            )
            if is_complete:
                trained = self._finish(work, has_learned=learner.update > first)
        if self._profile:
            self._profile.close()
        work.tell_saved()
        # one that leaves early would make its launcher end the one that still writes
        machine.wait()
        if trained is None:
            raise self._surroundings.stopped(f"`{name}` is saved at update {learner.update}")
        return trained

    def _finish(self, work: StageChores, has_learned: bool) -> Trained:
        """What the training has come to.

        has_learned: not if an earlier start had done the last update already.
        """
        work.report.check_learned()
        result = self._learner.result()
        picture = self._pictures.preview(result)
        if has_learned:
            work.show(picture)
        elif self._trend.has_pairs:
            # it was measured, but nothing that lies on the disk is read back for it
            work.keep_agreement(self._trend.measure(result, self._pictures.draw, PREVIEW_STEPS))
            self._surroundings.machine.wait()  # the first process measures alone
        return Trained(result, picture, work.report.loss, work.agreement)

    def _trackers(self) -> AbstractContextManager[Trackers]:
        recipe = self._surroundings.recipe
        return self._surroundings.machine.trackers(
            self._surroundings.run.tracker,
            recipe.trackers,
            recipe.name,
            first_step=self._updates_before() + self._learner.update + 1,
            say=self._surroundings.progress.note,
        )

    def _chores(self, saved: SavePoint | None, saver: Saver, trackers: Trackers) -> StageChores:
        machine = self._surroundings.machine
        run = self._surroundings.run
        progress = self._surroundings.progress
        offset = self._updates_before()
        report = LossRecord(
            self._stage.name,
            self._stage.settings,
            machine,
            progress,
            path=run.log,
            track=trackers.log,
            first_update=self._learner.update,
            pending=saved.pending if saved is not None else None,
            offset=offset,
        )
        return StageChores(
            stage=self._stage,
            learner=self._learner,
            machine=machine,
            previews=run.previews,
            progress=progress,
            pictures=self._pictures,
            trend=self._trend,
            profile=self._profile,
            report=report,
            saver=saver,
            trackers=trackers,
            offset=offset,
        )

    def _updates_before(self) -> int:
        """Of all stages before this one."""
        stages = plan(self._surroundings.recipe)
        return sum(stage.settings.updates for stage in stages[: self._stage.index])
