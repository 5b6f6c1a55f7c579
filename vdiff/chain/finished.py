"""Which stages of a run are finished, and which ones follow:
what the model folders and savepoints say.
"""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from vdiff.chain.plan import BASE, Stage, chosen, stages_after, without_guided
from vdiff.errors import ModelFileError, UsageError
from vdiff.model_folder import checkpoint
from vdiff.model_folder.card import lacking
from vdiff.model_folder.checkpoint import ModelCard, is_model_folder
from vdiff.runs import savepoint
from vdiff.runs.folder import RunFolder


def is_finished(
    run: RunFolder,
    stage: Stage,
    wanted: dict[str, object],
    command: Callable[[str], str] = lambda words: f"vdiff {words}",
) -> bool:
    """Whether its model folder is there; not where the recipe wants a longer training,
    and there is what it takes.

    wanted: the stage's `shaping_values`.   command: see `Surroundings.command`.
    Errors: ModelFileError for a card that cannot be believed, or a model that is not all there.
    """
    folder = run.model(stage.name)
    if run.is_anew(stage.name) or not is_model_folder(folder):
        return False
    card = checkpoint.read_card(folder)
    lost = lacking(folder, card)
    if lost:
        again = command("train --force")
        if stage.index:
            again = command(f"distill --from {before(stage)} --stages 1 --force")
        fix = f"copy it again from where it came from, or make it again: {again}"
        raise ModelFileError(f"`{folder}` is damaged", fix, "; ".join(lost))
    points = run.points(stage.name)
    if not points:
        return True
    # another length alone, and a save at the end of the shorter training: it can go on from there
    is_other_length = savepoint.changed(known_values(card, wanted), wanted) == [length_field(stage)]
    is_longer = is_other_length and stage.settings.updates > card.updates
    return not (is_longer and int(points[0].name) >= card.updates)


def choose(
    run: RunFolder, stages: Sequence[Stage], source: str | None, count: int | None, to: int | None
) -> tuple[Path, list[Stage]]:
    """The first teacher's folder, and the stages of a plan that a command means;
    nothing is written.

    source: the teacher, a name in the run or a path; None: with a `count`, the last model of the
    unbroken sequence from the base on, else the base.   Errors: UsageError, ModelFileError.
    """
    name = source
    if name is None:
        name = BASE
    if source is None and count is not None:
        finished = itertools.takewhile(
            lambda stage: is_model_folder(run.model(stage.name)) and not run.is_anew(stage.name),
            stages[:-1],
        )
        name = max(finished, key=lambda stage: stage.index, default=stages[0]).name
    teacher = run.find(name)
    card = checkpoint.read_card(teacher)
    is_of_run = teacher.resolve().parent == run.path.resolve() and card.name == teacher.name
    index: int | None = None
    if is_of_run:
        _refuse_half_made(run, card)
        index = card.stage
    num_steps = card.num_steps
    if card.is_imported and card.times is None:
        # it was trained for no number of steps: the recipe lays its own over all times
        num_steps = stages[0].num_steps
        index = 0
    following = stages_after(stages, num_steps, name, index)
    if index is None and card.guidance is not None:
        following = without_guided(following, num_steps)
    return teacher, chosen(following, count, to)


def _refuse_half_made(run: RunFolder, card: ModelCard) -> None:
    """UsageError for a teacher that is about to be replaced: its students would be outdated."""
    if not run.is_anew(card.name):
        return
    command = "vdiff train"
    if card.stage:
        command = "vdiff distill"
    problem = f"`{card.name}` is being made again, and the new one is not complete"
    fix = f"go on with it first: `{command}`; or begin with another teacher"
    raise UsageError(problem, fix, run.model(card.name))


def before(stage: Stage) -> str:
    """The name of its teacher's stage."""
    if stage.index == 1:
        return BASE
    return f"base_{stage.index - 2}"


def section_of(stage: Stage) -> str:
    """The section of the recipe that has its settings."""
    if stage.index == 0:
        return "train"
    return "distill"


def length_field(stage: Stage) -> str:
    """The field of the recipe that says how long a stage is."""
    return f"{section_of(stage)}.updates"


def known_values(card: ModelCard, wanted: dict[str, object]) -> dict[str, object]:
    """What a model's card says of these values; an older one does not say all."""
    return {name: value for name, value in card.trajectory.items() if name in wanted}
