"""The chain: one training after another, each student the next one's teacher;
whatever was finished is kept.

The first process looks into the run folder and decides; the others, which may have none, are told.
"""

import itertools
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from vdiff.chain.beginning import BASE_SECTIONS, Beginning, without_ignored
from vdiff.chain.behind import refuse_if_behind
from vdiff.chain.finished import before, known_values, length_field, section_of
from vdiff.chain.finished import choose as choose
from vdiff.chain.finished import is_finished as is_finished
from vdiff.chain.guidance import refuse_guidance
from vdiff.chain.plan import Stage, doubts, keeps_state, plan, same_start, shaping_values
from vdiff.chain.stage_parts import agree_on_pictures
from vdiff.chain.stage_run import Surroundings, make
from vdiff.chain.trend import check_floor
from vdiff.errors import ModelFileError, UsageError
from vdiff.model_folder import checkpoint
from vdiff.model_folder.checkpoint import Checkpoint, ModelCard, is_model_folder
from vdiff.runs import replacing, savepoint, telling
from vdiff.training.progress import StageRow


class Chain:
    """The stages of one recipe in one run folder, and what is finished of them."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._progress = surroundings.progress
        self._processes = surroundings.machine.processes
        self.run = surroundings.run
        self.is_first = surroundings.machine.is_first
        self.stages = plan(surroundings.recipe)

    def train(self, force: bool = False) -> ModelCard:
        """Make the base network, or go on where it was stopped;
        a finished one is kept unless `force`.

        Errors: UsageError where the base was imported.
        """
        self._processes.told(self._refuse_imported)
        return self._go([self.stages[0]], None, force)[0]

    def _refuse_imported(self) -> None:
        if self._surroundings.recipe.network.kind == "imported":
            problem = f"the base of `{self.run.path}` was imported: there is nothing to train"
            raise UsageError(problem, "`vdiff distill` goes on from it", "network.kind")

    def distill(
        self,
        source: str | None = None,
        count: int | None = None,
        to: int | None = None,
        force: bool = False,
    ) -> list[ModelCard]:
        """Make the students that follow the teacher `source`;
        finished ones are kept unless `force`.

        source: a name in the run or a path to any model folder; None goes on where the chain
        stands.
        count: how many stages.   to: steps of the last one.
        Returns the cards of all stages asked for.
        """

        def chosen_here() -> tuple[str, list[str]]:
            teacher, stages = choose(self.run, self.stages, source, count, to)
            told = same_start(self.stages, stages) if stages else ""
            if told and source is not None:
                self._progress.note(told)
            return str(teacher), [stage.name for stage in stages]

        teacher, names = self._processes.told(chosen_here)
        return self._go(
            [stage for stage in self.stages if stage.name in names], Path(teacher), force
        )

    def _go(self, stages: Sequence[Stage], teacher: Path | None, force: bool) -> list[ModelCard]:
        done = self._processes.told(lambda: [] if force else self._finished(stages))
        todo = [stage for stage in stages if stage.name not in done]
        text = self._processes.told(lambda: self._true_text(stages))
        surroundings = replace(self._surroundings, text=text)
        self._processes.told(lambda: self._refuse_to_replace(todo, force, text))
        self._processes.told(lambda: self._check_kept(stages, done, teacher))
        self._processes.told(lambda: refuse_guidance(self.run, stages, done, teacher))
        self._progress.show_stages(
            [_row(stage, "skipped" if stage.name in done else "waiting") for stage in stages]
        )
        if not force:
            refuse_if_behind(self._processes, self.run, [stage.name for stage in stages])
        if len(done) < len(stages):
            # missing or other pictures are told before anything is written
            images = self._processes.together(self._surroundings.recipe.data.open)
            agree_on_pictures(self._processes, images)
        for doubt in doubts(todo):
            self._progress.note(doubt)
        self._processes.told(lambda: self._tell_replaced(todo))
        anew = stages if force else []
        beginning = Beginning(self.run, text, anew, self._progress.note)
        cards = []
        # the weights of the stage before, if it was made a moment ago
        written: Mapping[str, Tensor] | None = None
        for stage in stages:
            if stage.name in done:
                cards.append(telling.card(self._processes, partial(self._kept, stage, teacher)))
                written = None
            else:
                loaded: Checkpoint | None = None
                if teacher is not None:
                    loaded = telling.model(self._processes, teacher, written=written)
                # its memory is free while the stage trains
                written = None
                card, written = make(surroundings, stage, loaded, beginning)
                cards.append(card)
                if stage is not stages[-1]:
                    self.leave_if_asked(stage)
            self._processes.told(partial(self._check_floor, stage, cards[-1]))
            teacher = self.run.model(stage.name)
        self._processes.told(lambda: self._tell_outdated(stages[-1]))
        return cards

    def foresee(self, stages: Sequence[Stage], teacher: Path | None, force: bool) -> dict[str, int]:
        """Refuse what `train` (teacher None, the base alone) and `distill` would refuse, and tell
        what they would tell; nothing is written. In the first process.

        teacher: of the first stage; None where it is still to be made, too.
        Returns how many updates of a stage are saved, from which it would go on.
        Errors: as `train` and `distill`.
        """
        if stages[0] == self.stages[0]:
            self._refuse_imported()
        done = [] if force else self._finished(stages)
        todo = [stage for stage in stages if stage.name not in done]
        self._refuse_to_replace(todo, force, self._true_text(stages))
        self._check_kept(stages, done, teacher)
        refuse_guidance(self.run, stages, done, teacher)
        self._tell_replaced(todo)
        for stage in stages:
            if stage.name in done:
                card = checkpoint.read_card(self.run.model(stage.name))
                self._tell_changes(stage, card, self._trajectory(stage))
        return {} if force else self._saved(stages, done, teacher)

    def _saved(
        self, stages: Sequence[Stage], done: Sequence[str], teacher: Path | None
    ) -> dict[str, int]:
        found: dict[str, int] = {}
        for stage in stages:
            is_known = stage.index == 0 or (teacher is not None and is_model_folder(teacher))
            if stage.name not in done and is_known and self.run.points(stage.name):
                update = self._saved_update(stage, teacher)
                if update is not None:
                    found[stage.name] = update
            # one that is still to be made is not the teacher that a save remembers
            teacher = self.run.model(stage.name) if stage.name in done else None
        return found

    def _saved_update(self, stage: Stage, teacher: Path | None) -> int | None:
        wanted = self._trajectory(stage) | {
            "data": self._surroundings.recipe.data.open().fingerprint,
            "teacher": checkpoint.read_card(teacher).hash if teacher is not None else None,
        }
        return savepoint.reached(self.run.saves(stage.name), wanted, self._progress.note)

    def _finished(self, stages: Sequence[Stage]) -> list[str]:
        return [stage.name for stage in stages if self._is_finished(stage)]

    def _is_finished(self, stage: Stage) -> bool:
        command = self._surroundings.command
        return is_finished(self.run, stage, self._trajectory(stage), command)

    def _trajectory(self, stage: Stage) -> dict[str, object]:
        return shaping_values(
            self._surroundings.recipe, stage, self._surroundings.machine.precision
        )

    def _check_floor(self, stage: Stage, card: ModelCard) -> None:
        check_floor(self._surroundings.recipe, stage, card, self.run, self._progress.note)

    def leave_if_asked(self, stage: Stage) -> None:
        """Between two stages nothing is lost.   Errors: Stopped."""
        self._surroundings.leave_if_asked(
            f"`{stage.name}` is complete, the next stage is not begun"
        )

    def _true_text(self, stages: Sequence[Stage]) -> str:
        """The recipe as it goes into the run: without what it says otherwise of a base that is
        kept than the base was made with, which is told.

        stages: those that are asked for.
        """
        text, base = self._surroundings.text, self.stages[0]
        folder = self.run.model(base.name)
        if base in stages or not is_model_folder(folder):
            return text
        try:
            card = checkpoint.read_card(folder)
        except ModelFileError:  # whoever uses it is told
            return text
        wanted = self._trajectory(base)
        names = savepoint.changed(known_values(card, wanted), wanted)
        if card.origin is not None or not any(name.startswith(BASE_SECTIONS) for name in names):
            return text
        self._tell_changes(base, card, wanted)
        return without_ignored(text, self._surroundings.recipe, card.recipe)

    def _tell_replaced(self, todo: Sequence[Stage]) -> None:
        """Say of which models the students will be those of a model that is there no more."""
        replaced = [stage.name for stage in todo]
        for stage in todo:
            again = self._surroundings.command(f"distill --from {stage.name} --force")
            told = replacing.warning(self.run, stage.name, replaced, again)
            if told:
                self._progress.note(told)

    def _refuse_to_replace(self, stages: Sequence[Stage], force: bool, text: str) -> None:
        """Errors, before any work: UsageError for what vdiff did not make,
        in a place where something is to be left.

        ModelFileError for what would be made anew although only the manifest of the model that is
        there is missing.
        """
        if not stages:
            return
        self.run.refuse_to_replace([stage.name for stage in stages], text)
        lost = {stage.name for stage in stages} & set(self.run.without_manifest())
        if lost and not force:
            folder = self.run.model(min(lost))
            fix = "put its vdiff.json back, move the folder away, or add --force to make it again"
            raise ModelFileError(
                f"`{folder}` has no vdiff.json: it cannot be told whether it is whole", fix, folder
            )

    def _kept(self, stage: Stage, teacher: Path | None) -> ModelCard:
        """The card of a finished stage, after a look whether it is what the recipe and
        the teacher would make.

        To be called in the first process.
        """
        card = checkpoint.read_card(self.run.model(stage.name))
        if teacher is not None:
            self._check_student(card, stage, teacher)
        wanted = self._trajectory(stage)
        self._tell_changes(stage, card, wanted)
        if not self.run.is_behind(stage.name):
            self._tidy_saves(stage)
        return card

    def _tell_changes(self, stage: Stage, card: ModelCard, wanted: dict[str, object]) -> None:
        """What the recipe says otherwise than when a model was made that is kept."""
        if card.is_imported:
            return  # it was imported: no recipe made it
        known = known_values(card, wanted)
        different = savepoint.changes(known, wanted)
        if not different:
            return
        why = ""
        if (
            savepoint.changed(known, wanted) == [length_field(stage)]
            and stage.settings.updates > card.updates
        ):
            keeping = f"`{section_of(stage)}.keep_state: true` keeps it"
            why = f"; its last save is gone, from which it could go on ({keeping})"
        again = self._surroundings.command("train --force")
        if stage.index:
            again = self._surroundings.command(f"distill --from {before(stage)} --force")
        self._progress.note(
            f"`{stage.name}` is kept as it was made; "
            f"the recipe has changed: {'; '.join(different)}{why}; `{again}` makes it anew"
        )

    def _tidy_saves(self, stage: Stage) -> None:
        """Saves of a run that was killed just after the model was complete."""
        savepoint.settle(self.run, stage.name, keeps_state(self._surroundings.recipe, stage))

    def _check_kept(
        self, stages: Sequence[Stage], done: Sequence[str], teacher: Path | None
    ) -> None:
        """UsageError for a finished student that is none of its teacher,
        before anything is told or done.

        Of one whose teacher is still to be made, nothing is known yet.
        """
        for stage in stages:
            if stage.name in done and teacher is not None:
                self._check_student(
                    checkpoint.read_card(self.run.model(stage.name)), stage, teacher
                )
            teacher = self.run.model(stage.name) if stage.name in done else None

    def _tell_outdated(self, last: Stage) -> None:
        """Say which finished students that follow have become those of a
        model that is there no more.
        """
        following = self.stages[last.index + 1 :]
        finished = list(
            itertools.takewhile(
                lambda stage: is_model_folder(self.run.model(stage.name)), following
            )
        )
        if not finished:
            return
        try:
            first = checkpoint.read_card(self.run.model(finished[0].name))
        except ModelFileError:  # it is damaged, which whoever uses it is told
            return
        now = checkpoint.read_card(self.run.model(last.name))
        if (
            first.parent is None
            or first.parent["name"] != last.name
            or first.parent["hash"] == now.hash
        ):
            return
        names = ", ".join(f"`{stage.name}`" for stage in finished)
        again = self._surroundings.command(f"distill --from {last.name} --force")
        self._progress.note(
            f"{names}: distilled from the `{last.name}` that was there before; "
            f"`{again}` makes anew what follows it"
        )

    def _check_student(self, card: ModelCard, stage: Stage, teacher: Path) -> None:
        """UsageError for a finished student that cannot be a link of this chain."""
        where = self.run.model(stage.name)
        named = str(teacher)
        if teacher.parent == self.run.path:
            named = teacher.name
        again = self._surroundings.command(f"distill --from {shlex.quote(named)} --force")
        fix = f"`{again}` makes it and what follows anew, or give the run another `name`"
        if card.num_steps != stage.num_steps:
            raise UsageError(
                f"`{stage.name}` has {card.num_steps} steps, the recipe's has {stage.num_steps}",
                fix,
                where,
            )
        if card.parent is not None and card.parent["hash"] != checkpoint.read_card(teacher).hash:
            problem = (
                f"`{stage.name}` was distilled from another `{card.parent['name']}` than the one "
                "that is there now"
            )
            raise UsageError(problem, fix, where)


def _row(stage: Stage, state: str) -> StageRow:
    return StageRow(stage.name, stage.start_steps, stage.num_steps, stage.settings.updates, state)
