"""The stages of a chain: the base training, then one stage per student;
and which of them a command means.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from vdiff.config import values_that_shape_weights
from vdiff.errors import UsageError
from vdiff.model_folder.card import BASE as BASE
from vdiff.recipe.recipe import DistillSection, Recipe, TrainSection
from vdiff.system.plural import count


@dataclass(frozen=True)
class Stage:
    """One training of the chain.

    index: 0 for the base, k for the k-th student.   start_steps, num_steps: of the teacher and of
    the student; equal for the base.   settings: how long and how fast.
    is_listed: whether it stands in `distill.stages`.
    """

    index: int
    name: str
    start_steps: int
    num_steps: int
    settings: TrainSection | DistillSection
    is_listed: bool = False

    @property
    def teacher_steps(self) -> int:
        """How many of the teacher's steps one of the student's replaces."""
        return self.start_steps // self.num_steps


def plan(recipe: Recipe) -> list[Stage]:
    """All stages of a recipe: `original`, `base_0`, `base_1`, ..."""
    section = recipe.distill
    steps = section.steps()
    is_listed = section.stages is not None
    stages = [Stage(0, BASE, steps[0], steps[0], recipe.train)]
    for index, (stage, (before, after)) in enumerate(
        zip(section.listed(), pairwise(steps), strict=True), start=1
    ):
        stages.append(
            Stage(index, f"base_{index - 1}", before, after, section.settings(stage), is_listed)
        )
    return stages


def doubts(stages: Sequence[Stage]) -> list[str]:
    """What a recipe may say but its author hardly means, a sentence each, with what to type."""
    found = []
    for stage in stages:
        settings = stage.settings
        if stage.index and stage.teacher_steps == 1 and settings.objective.needs_fewer_steps:
            found.append(
                f"`{stage.name}` has as many steps as its teacher: with "
                f"`{settings.objective.kind}` it has nothing to learn; give it fewer `steps`, or "
                "another `objective`"
            )
        wanted = settings.objective.usual_teacher_steps
        if stage.index and stage.teacher_steps < wanted:
            found.append(
                f"`{stage.name}` has {stage.teacher_steps} of its teacher's steps for one of its "
                f"own, and its `objective` wants {wanted} or more: let it start at "
                f"{wanted * stage.num_steps:,} steps (`distill.start_steps`)"
            )
        if settings.warmup_updates > settings.updates:
            section = "train" if stage.index == 0 else "distill"
            reached = settings.rate(settings.updates - 1) / settings.learning_rate
            found.append(
                f"`{stage.name}` ends before its warm-up of {settings.warmup_updates:,} updates "
                f"does: its learning rate reaches {reached:.2g} of the {settings.learning_rate:g} "
                f"that the recipe names; `--set {section}.warmup_updates={settings.updates // 10}` "
                "lets it rise in time"
            )
    return found


def shaping_values(recipe: Recipe, stage: Stage, precision: str) -> dict[str, object]:
    """Every value that shapes the weights of a stage, by dotted name;
    its teacher and its data are not among them.

    precision: what the machine computes in; `auto` is not the same everywhere.
    """
    section = "train" if stage.index == 0 else "distill"
    settings = values_that_shape_weights(stage.settings, f"{section}.")
    for name in ("start_steps", "end_steps", "factor", "guidance", "overrides", "stages"):
        settings.pop(f"{section}.{name}", None)
    network: dict[str, object] = {}
    if stage.index == 0:
        # a student has its teacher's
        network = values_that_shape_weights(recipe.network, "network.")
    data = values_that_shape_weights(recipe.data, "data.")
    diffusion = values_that_shape_weights(recipe.diffusion, "diffusion.")
    own = {
        "seed": recipe.seed,
        "precision": precision,
        "stage": stage.index,
        "num_steps": stage.num_steps,
    }
    return {**own, "start_steps": stage.start_steps, **data, **network, **diffusion, **settings}


def told_length(stage: Stage, before: int, update: int) -> str:
    """Where the recipe asks for another number of updates than before: whether that changes the
    learning rate; empty where it asks for the same.

    before: the updates that the stage was to have when it was saved.   update: those done then.
    """
    settings = stage.settings
    if before == settings.updates:
        return ""
    told = (
        f"`{stage.name}` was to have {count(before, 'update')}, "
        f"and is to have {settings.updates:,} now: "
    )
    if settings.decay == "constant":
        return told + "it goes on as if that had been asked for from the start"
    rate = settings.model_copy(update={"updates": before}).rate(update - 1)
    return told + (f"the learning rate was {rate:.3g} and goes on at {settings.rate(update):.3g}")


def keeps_state(recipe: Recipe, stage: Stage) -> bool:
    """Whether the last save of a stage stays when it is finished."""
    if stage.index == 0:
        return recipe.train.keep_state
    return recipe.distill.keep_state


def stages_after(
    stages: Sequence[Stage], start_steps: int, name: str, index: int | None = None
) -> list[Stage]:
    """The stages that follow a teacher of `start_steps` steps.
    Errors: UsageError when there is none.

    name: what messages call the teacher.   index: of the stage that it is in this run; None for a
    teacher from elsewhere, which is followed by the first stage that starts at its number of steps.
    """
    following = [stage for stage in stages[1:] if stage.start_steps <= start_steps]
    if index is not None and index < len(stages) and stages[index].num_steps == start_steps:
        following = list(stages[index + 1 :])
    is_passed_over = start_steps > stages[-1].num_steps
    if not following and not is_passed_over:
        problem = f"`{name}` is the last stage ({counted(start_steps)}): nothing is left to distill"
        raise UsageError(problem, _how_to_go_on(stages, start_steps), "--from")
    if not following or following[0].start_steps != start_steps:
        known = ", ".join(str(stage.start_steps) for stage in stages[1:])
        problem = (
            f"`{name}` has {counted(start_steps)}, but no stage of the recipe starts there "
            f"(they start at {known})"
        )
        raise UsageError(problem, _how_to_start_at(stages, start_steps), "--from")
    return following


def without_guided(following: Sequence[Stage], start_steps: int) -> list[Stage]:
    """What follows a teacher of `start_steps` steps that has its guidance already: not the stage
    that would guide it, if another one starts where it does.
    """
    rest = [stage for stage in following if stage.settings.objective.guidance_inside is None]
    if rest and rest[0].start_steps == start_steps:
        return rest
    return list(following)


def _how_to_go_on(stages: Sequence[Stage], start_steps: int) -> str:
    """What makes another stage follow the last one, or a model with fewer steps than that."""
    if stages[-1].is_listed and start_steps < stages[-1].num_steps:
        return f"add a stage `{{steps: {start_steps}}}` to `distill.stages`, and what follows it"
    if stages[-1].is_listed:
        return "add another stage to `distill.stages`"
    if start_steps > 1:
        return f"--set distill.end_steps={start_steps // 2} goes on"
    return "one step is as few as it gets; take an earlier teacher to make it again"


def _how_to_start_at(stages: Sequence[Stage], start_steps: int) -> str:
    """What makes a stage start at a number of steps at which none does;
    the last one ends at fewer.
    """
    change = (
        f"set `distill.start_steps` to {start_steps}, as in --set distill.start_steps={start_steps}"
    )
    if not stages[-1].is_listed:
        return change
    earlier = [stage for stage in stages[1:] if stage.start_steps > start_steps]
    if not earlier:
        return f"{change}, and let the first of `distill.stages` lead on from there"
    # the list passes over this number of steps: one of its stages leads from more to fewer
    passing = earlier[-1]
    if passing.start_steps % start_steps or start_steps % passing.num_steps:
        return (
            f"take a teacher of as many steps as one of `distill.stages` starts at, or {change}, "
            f"and list in `distill.stages` what follows {counted(start_steps)}"
        )
    return (
        f"in `distill.stages`, put a stage `{{steps: {start_steps}}}` before that of "
        f"`{passing.name}`, and give that one `steps: {passing.num_steps}`"
    )


def same_start(stages: Sequence[Stage], following: Sequence[Stage]) -> str:
    """A sentence on which of several stages that start at the same number of steps was taken;
    empty for only one.
    """
    names = [stage.name for stage in stages[1:] if stage.start_steps == following[0].start_steps]
    if len(names) == 1:
        return ""
    told = ", ".join(f"`{name}`" for name in names)
    return (
        f"{told} all start at {counted(following[0].start_steps)}: "
        f"`{following[0].name}` is what comes next"
    )


def counted(num_steps: int) -> str:
    """`1 step`, `8 steps`."""
    return count(num_steps, "step")


def check_count(count: int | None) -> None:
    """UsageError when a number of stages asks for nothing."""
    if count is not None and count < 1:
        raise UsageError(
            f"--stages {count} asks for nothing",
            "ask for 1 or more, or leave it out for all",
            "--stages",
        )


def chosen(stages: Sequence[Stage], count: int | None, to: int | None) -> list[Stage]:
    """The first `count` of the stages, and none below `to` steps, but all with so many.

    Errors: UsageError for a choice of nothing.
    """
    check_count(count)
    if to is not None and to not in [stage.num_steps for stage in stages]:
        known = ", ".join(str(stage.num_steps) for stage in stages)
        raise UsageError(f"no stage ends at {to} steps", f"choose one of: {known}", "--to")
    wanted = [stage for stage in stages if to is None or stage.num_steps >= to]
    return wanted[:count]
