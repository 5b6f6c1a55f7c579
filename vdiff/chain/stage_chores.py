"""What a stage does after an update besides learning, and when:
report, profile, trend, save, preview.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vdiff.chain.plan import Stage
from vdiff.chain.stage_pictures import PREVIEW_STEPS, StagePictures
from vdiff.chain.trend import Trend
from vdiff.errors import DivergedError
from vdiff.images.images import write_png
from vdiff.machine.machine import Machine
from vdiff.machine.trackers import Trackers
from vdiff.phases import phase
from vdiff.runs import contents as run_contents
from vdiff.runs.savepoint import Saver
from vdiff.training.learner import Learner
from vdiff.training.log import LossRecord
from vdiff.training.loop import Chore, Moment, always
from vdiff.training.profile import Profile
from vdiff.training.progress import Progress


@dataclass
class StageChores:
    """The chores of one stage, and whom they tell.

    previews: the folder that they go into.   profile: None where nothing is measured.
    offset: updates of the stages before, for the trackers' axis.
    """

    stage: Stage
    learner: Learner
    machine: Machine
    previews: Path
    progress: Progress
    pictures: StagePictures
    trend: Trend
    profile: Profile | None
    report: LossRecord
    saver: Saver
    trackers: Trackers
    offset: int
    agreement: dict[str, Any] | None = None
    """What was last measured, as the model card tells it; in the first process."""

    def chores(self) -> list[Chore]:
        """All of them, each with its rule, in the order in which they are done."""
        settings = self.stage.settings
        trend_every = self.trend.every
        chores = [Chore(always, self.tell)]
        if self.profile is not None:
            chores.append(Chore(always, self.measure_time))
        if self.trend.is_on:
            # before the save: its line is then written once, wherever the run is stopped
            chores.append(
                Chore(lambda now: now.is_complete or now.is_each(trend_every), self.measure_trend)
            )
        chores.append(Chore(always, self.tell_saved))
        chores.append(Chore(lambda now: now.is_last or now.is_each(settings.save_every), self.save))
        # a stage that is complete is drawn in any case, and one that is stopped leaves as soon as
        # it is saved
        chores.append(
            Chore(lambda now: not now.is_last and now.is_each(settings.preview_every), self.preview)
        )
        return chores

    def tell(self, now: Moment) -> None:
        """Take the update into the log and onto the screen."""
        with phase("logging"):
            self.report.add(now.update, now.measured, self.learner.rate(now.update - 1))

    def measure_time(self, now: Moment) -> None:
        """Count the update for the profile, which begins and ends by itself."""
        if self.profile is not None:
            self.profile.after_update()

    def measure_trend(self, now: Moment) -> None:
        """Measure what was learned so far.

        Errors: DivergedError, for the result of the training only.
        """
        try:
            values = self.trend.measure(self.learner.result(), self.pictures.draw, PREVIEW_STEPS)
        except DivergedError as err:
            if now.is_complete:
                raise
            self.progress.note(f"no trend at update {now.update:,}: {err.problem}")
        else:
            self.keep_agreement(values)
            self.report.trend(now.update, values, self.trend.num_images)
            self.progress.note(self.trend.told(now.update, values))
        self.machine.wait()  # the first process measures alone

    def keep_agreement(self, values: Mapping[str, float | None]) -> None:
        """Keep what a trend says of the likeness to the teacher, for the model card."""
        if "psnr" in values:
            self.agreement = {"psnr": values["psnr"], "num_images": self.trend.num_images}

    def tell_saved(self, now: Moment | None = None) -> None:
        """Say which save has come onto the disk since the last time;
        what went wrong with it is raised here.
        """
        update = self.saver.saved()
        if update is not None:
            self.progress.saved(f"{self.stage.name} at update {update}")

    def save(self, now: Moment) -> None:
        """Begin to save, so that nothing is lost."""
        self.saver.save(now.update, self.learner.state(), self.report.pending())
        self.machine.wait()  # the first process may still be busy with the save before

    def preview(self, now: Moment) -> None:
        """Draw what was learned so far."""
        try:
            picture = self.pictures.preview(self.learner.result())
        except DivergedError as err:  # in every process, as each has all pictures
            self.progress.note(f"no preview at update {now.update:,}: {err.problem}")
            return
        if self.machine.is_first:
            self.previews.mkdir(exist_ok=True)
            write_png(run_contents.preview(self.previews, self.stage.name, now.update), picture)
            self.show(picture)
        self.machine.wait()

    def show(self, picture: Tensor) -> None:
        """Give a picture of what was learned so far to the trackers."""
        self.trackers.picture(
            f"{self.stage.name}/samples", picture, self.offset + self.learner.update
        )
