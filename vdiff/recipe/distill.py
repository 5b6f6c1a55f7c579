"""What a recipe says of distilling: the stages, and how each of them learns."""

from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails

from vdiff.choices import Predicts, Weighting
from vdiff.config import Section, free_to_change, shapes_weights
from vdiff.diffusion.inside import Wanted
from vdiff.objectives import OBJECTIVES
from vdiff.system.plural import count
from vdiff.training.settings import Decay, FitSection
from vdiff.training.step_counts import StageStepsError, listed_counts, step_counts

if TYPE_CHECKING:
    from vdiff.objectives.objective import ObjectiveSection
else:  # a contract is imported with the first kind that is named
    ObjectiveSection = Any


class StageOverride(Section):
    """What one stage does differently from the others."""

    updates: int | None = shapes_weights(None, ge=1)
    """Optimizer updates of this stage."""
    batch_size: int | None = shapes_weights(None, ge=1)
    """Pictures per update of this stage."""
    learning_rate: float | None = shapes_weights(None, gt=0)
    """Highest learning rate of this stage."""
    weighting: Weighting | None = shapes_weights(None)
    """Loss weight of this stage."""


class StageSection(StageOverride):
    """One stage of a chain. What it does not say is as in `distill`."""

    objective: Annotated[ObjectiveSection, OBJECTIVES] | None = shapes_weights(None)
    """The way of learning of this stage, with its options."""
    steps: int | None = shapes_weights(None, ge=1)
    """Sampler steps of this student; they divide those of its teacher, and may be as many."""
    factor: int | None = shapes_weights(None, ge=1)
    """In the place of `steps`: by how much this stage divides the number of steps; 1 keeps it."""

    @field_validator("objective")
    @classmethod
    def _check_objective(cls, value: ObjectiveSection | None) -> ObjectiveSection | None:
        if value is None:
            return None
        return _with_teacher(value)


def _with_teacher(objective: ObjectiveSection) -> ObjectiveSection:
    """The objective, which must learn from a teacher; else ValueError."""
    if not objective.needs_teacher:
        raise ValueError(f"`{objective.kind}` learns from pictures alone: it belongs into `train`")
    return objective


def _guided(wanted: Wanted) -> ObjectiveSection:
    """The objective of the stage that `distill.guidance` puts first."""
    return OBJECTIVES.section("guided").model_validate({"guidance": wanted})


class StopSection(Section):
    """When a chain stops by itself."""

    psnr_below: float | None = free_to_change(None, gt=0)
    """Agreement with the stage's own teacher, in dB from the same noise,
    under which no further stage is made.
    """


class DistillSection(FitSection):
    """How each student learns from its teacher. Every stage has a fresh optimizer and, unless it
    says otherwise, the same settings.
    """

    objective: Annotated[ObjectiveSection, OBJECTIVES] = shapes_weights("progressive")
    """The way of learning, with its options."""
    start_steps: int = shapes_weights(1024, ge=2)
    """Sampler steps of the first teacher, the base network."""
    end_steps: int = shapes_weights(4, ge=1)
    """Sampler steps of the last student."""
    factor: int | tuple[int, ...] = shapes_weights(2)
    """By how much a stage divides the number of steps:
    one number for all stages, or one per stage.
    """
    overrides: dict[int, StageOverride] = shapes_weights({})
    """Stages that differ, by the student's number of steps, as in `{1: {updates: 20_000}}`."""
    guidance: Wanted | None = shapes_weights(None)
    """Guidance g that students have inside, where 1 is none: a range `[1, 4]`, of which each
    picture is then drawn with one, or one number. A stage of as many steps as the teacher has comes
    first, which learns it; the teacher must be trained with `train.label_drop`.
    """
    stages: Annotated[tuple[StageSection, ...], Field(min_length=1)] | None = shapes_weights(None)
    """Every stage by itself, in the place of `end_steps`, `factor`, `guidance` and `overrides`,
    `[{steps: 8}, {factor: 1}]`.
    """
    learning_rate: float = shapes_weights(5e-5, gt=0)
    """Step size of Adam at its highest."""
    predicts: Predicts | None = shapes_weights(None)
    """What students predict, if not what their teacher does: v for one that predicts eps, which
    cannot draw in few steps. The first student has to learn it, so give it more updates.
    """
    decay: Decay = shapes_weights("linear")
    """How the learning rate goes on after the warm-up."""
    dropout: bool = shapes_weights(False)
    """Whether the network's dropout acts; a student is better taught without."""
    weighting: Weighting = shapes_weights("truncated_snr")
    """How much an error counts at each noise level."""

    keep_state: bool = free_to_change(False)
    """Whether a finished student keeps its last save, about three times the weights,
    so that more `updates` go on.
    """
    stop_if: StopSection = free_to_change(StopSection())
    """When the chain stops by itself, measured at the end of each stage on
    `evaluate.num_images` pictures.
    """

    def steps(self) -> tuple[int, ...]:
        """Sampler steps of the base and of every student, as in (1024, 512, ..., 4)."""
        if self.stages is None:
            halved = step_counts(self.start_steps, self.end_steps, self.factor)
            if self.guidance is not None:
                return (self.start_steps, *halved)
            return halved
        return listed_counts(
            self.start_steps, [(stage.steps, stage.factor) for stage in self.stages]
        )

    def listed(self) -> tuple[StageSection, ...]:
        """Every stage, each with its `steps`: `stages`, or what `end_steps`,
        `factor`, `guidance` and `overrides` mean.
        """
        steps = self.steps()[1:]
        if self.stages is None:
            others = [
                self.overrides.get(number, StageOverride()).model_dump(exclude_none=True)
                for number in steps
            ]
            if self.guidance is not None:
                others[0]["objective"] = _guided(self.guidance)
            return tuple(
                StageSection(steps=number, **other)
                for number, other in zip(steps, others, strict=True)
            )
        pairs = zip(self.stages, steps, strict=True)
        return tuple(
            stage.model_copy(update={"steps": number, "factor": None}) for stage, number in pairs
        )

    def settings(self, stage: StageSection) -> Self:
        """The settings of one stage of `listed`."""
        stated = {
            name: value
            for name, value in stage
            if value is not None and name not in ("steps", "factor")
        }
        # the chain's own keys go, so that a stage's settings are equal in both ways to state it
        own: dict[str, Any] = {"overrides": {}, "stages": None, "guidance": None}
        return self.model_copy(update={**stated, **own})

    @field_validator("objective")
    @classmethod
    def _check_objective(cls, value: ObjectiveSection) -> ObjectiveSection:
        return _with_teacher(value)

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        if self.stages is not None:
            self._check_stages()
        else:
            self._check_overrides()
        self._check_guided_once()
        return self

    def _check_overrides(self) -> None:
        unknown = set(self.overrides) - set(self.steps()[1:])
        if unknown:
            raise ValueError(
                f"`overrides` names {count(min(unknown), 'step')}, "
                f"but the stages end at {self.steps()[1:]} steps"
            )

    def _check_guided_once(self) -> None:
        """What is guided already is not guided again: the two would multiply."""
        is_guided = False
        for number, stage in enumerate(self.listed()):
            objective = stage.objective or self.objective
            if objective.guidance_inside is None:
                continue
            if is_guided:
                raise ValueError(
                    f"`base_{number}` would be guided a second time: one stage alone may have the "
                    f"objective `{objective.kind}`, and its students keep the guidance; "
                    "`guidance: [1, 4]` in `distill` puts it first"
                )
            is_guided = True

    def _check_stages(self) -> None:
        for name in ("end_steps", "factor", "guidance", "overrides"):
            if name in self.model_fields_set:
                problem = (
                    f"`stages` says every stage by itself, so there is no place for `{name}`: "
                    "leave one of them out"
                )
                raise _mistake(problem, name)
        try:
            self.steps()
        except StageStepsError as err:
            raise _mistake(str(err), "stages", err.place) from err


def _mistake(words: str, *place: str | int) -> ValidationError:
    """What pydantic raises for a mistake at a place inside a section."""
    details = InitErrorDetails(
        type="value_error", loc=place, input=None, ctx={"error": ValueError(words)}
    )
    return ValidationError.from_exception_data("section", [details])
