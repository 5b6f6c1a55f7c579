"""The recipe: a whole YAML file as frozen sections, and the rules between them."""

from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails

from vdiff.choices import (
    Compile,
    CudaGraphs,
    Precision,
    Predicts,
    Shard,
    TrackerKind,
    Weighting,
)
from vdiff.config import Registry, Section, free_to_change, shapes_weights
from vdiff.data import DATASETS
from vdiff.diffusion import SCHEDULES
from vdiff.diffusion.limits import check_chain
from vdiff.diffusion.process import DiffusionSection
from vdiff.errors import UsageError
from vdiff.metrics import DEFAULT, METRICS
from vdiff.metrics.metric import named
from vdiff.networks import NETWORKS
from vdiff.objectives import OBJECTIVES
from vdiff.samplers import SAMPLERS
from vdiff.system.plural import count
from vdiff.training.settings import Decay, FitSection
from vdiff.training.step_counts import StageStepsError, listed_counts, step_counts

if TYPE_CHECKING:
    from vdiff.data.section import DatasetSection
    from vdiff.networks.section import NetworkSection
    from vdiff.objectives.objective import ObjectiveSection
    from vdiff.samplers.sampler import SamplerSection
else:  # a contract is imported with the first kind that is named
    DatasetSection = NetworkSection = ObjectiveSection = SamplerSection = Any


class TrainSection(FitSection):
    """How the base network learns from the pictures."""

    objective: Annotated[ObjectiveSection, OBJECTIVES] = shapes_weights("denoising")
    """The way of learning, with its options."""
    warmup_updates: int = shapes_weights(1000, ge=0)
    """Updates in which the learning rate rises from 0."""
    ema: float | None = shapes_weights(0.9999, gt=0, lt=1)
    """Decay per update of the running average of the weights that is saved for sampling;
    null saves the weights.
    """

    keep_state: bool = free_to_change(True)
    """Whether a finished training keeps its last save, about four times the weights,
    so that more `updates` go on.
    """

    @field_validator("objective")
    @classmethod
    def _check_objective(cls, value: ObjectiveSection) -> ObjectiveSection:
        if value.needs_teacher:
            raise ValueError(f"`{value.kind}` learns from a teacher: it belongs into `distill`")
        return value


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
    stages: Annotated[tuple[StageSection, ...], Field(min_length=1)] | None = shapes_weights(None)
    """Every stage by itself, in the place of `end_steps`,
    `factor` and `overrides`, `[{steps: 8}, {factor: 1}]`.
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
            return step_counts(self.start_steps, self.end_steps, self.factor)
        return listed_counts(
            self.start_steps, [(stage.steps, stage.factor) for stage in self.stages]
        )

    def listed(self) -> tuple[StageSection, ...]:
        """Every stage, each with its `steps`: `stages`, or what `end_steps`,
        `factor` and `overrides` mean.
        """
        steps = self.steps()[1:]
        if self.stages is None:
            others = [
                self.overrides.get(number, StageOverride()).model_dump(exclude_none=True)
                for number in steps
            ]
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
        return self.model_copy(update={**stated, "overrides": {}, "stages": None})

    @field_validator("objective")
    @classmethod
    def _check_objective(cls, value: ObjectiveSection) -> ObjectiveSection:
        return _with_teacher(value)

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        if self.stages is not None:
            self._check_stages()
            return self
        unknown = set(self.overrides) - set(self.steps()[1:])
        if unknown:
            raise ValueError(
                f"`overrides` names {count(min(unknown), 'step')}, "
                f"but the stages end at {self.steps()[1:]} steps"
            )
        return self

    def _check_stages(self) -> None:
        for name in ("end_steps", "factor", "overrides"):
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


class SampleSection(Section):
    """How pictures are drawn, in previews and by `vdiff sample`."""

    sampler: Annotated[SamplerSection, SAMPLERS] = free_to_change("ddim")
    """Sampler: ddim or ancestral, with its options."""
    num_images: int = free_to_change(64, ge=1)
    """Pictures in a grid."""
    batch_size: int = free_to_change(64, ge=1)
    """Pictures that go through the network at once;
    changes memory, and pictures by rounding only.
    """
    cuda_graphs: CudaGraphs = free_to_change("auto")
    """Whether a GPU replays recorded network calls:
    on, off, or auto (off, as no GPU has shown that it pays).
    """

    @property
    def named_sampler(self) -> SamplerSection | None:
        """The sampler, if the recipe names one; None leaves the choice to each model,
        see `samplers.advised`.
        """
        if "sampler" in self.model_fields_set:
            return self.sampler
        return None


class EvaluateSection(Section):
    """A cheap trend while networks learn. `vdiff evaluate` measures finished
    models with more pictures.
    """

    every: int | None = free_to_change(None, ge=1)
    """Updates between two measurements; one more comes at the end of each stage.
    null measures nothing.
    """
    num_images: int = free_to_change(256, ge=2)
    """Pictures that a measurement draws; numbers of different numbers of
    pictures cannot be compared.
    """
    metrics: tuple[str, ...] = free_to_change(DEFAULT)
    """What is measured, as `vdiff evaluate --metrics` takes it: agreement, fd_pixel, swd."""

    @field_validator("metrics")
    @classmethod
    def _check_metrics(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            dear = [section.name for section in named(value) if not section.is_cheap]
        except UsageError as err:
            raise ValueError(f"{err.problem}; {err.fix}") from err
        if dear:
            raise ValueError(
                f"`{dear[0]}` takes too long for a trend; "
                f"`vdiff evaluate --metrics {dear[0]}` measures it"
            )
        return value


def tables() -> list[Registry[Any]]:
    """The kinds of every part of a recipe."""
    return [DATASETS, NETWORKS, SCHEDULES, OBJECTIVES, SAMPLERS, METRICS]


class Recipe(Section):
    """Everything vdiff needs to know to make a model."""

    name: str = free_to_change(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Name of the run: its folder is runs/<name>."""
    seed: int = shapes_weights(0, ge=0, lt=2**63)
    """Start of all random numbers."""
    precision: Precision = shapes_weights("auto")
    """Arithmetic of the network: bf16, fp16, fp32, or auto (bf16 where the hardware
    multiplies it and it pays).
    """
    compile: Compile = free_to_change("auto")
    """Whether networks that learn are compiled:
    on, off, or auto (where that was measured to pay: nowhere yet).
    """
    shard: Shard = free_to_change("auto")
    """Whether each of several processes keeps only a share of every network, its average and its
    optimizer: on, off, or auto (off). For networks that do not fit; run on CPUs only so far.
    """
    deterministic: bool = free_to_change(False)
    """Whether a GPU must give the same bits every time, which is slower;
    on a CPU it always does.
    """
    data: Annotated[DatasetSection, DATASETS] = free_to_change()
    """Where the pictures are and how they are read."""
    network: Annotated[NetworkSection, NETWORKS] = free_to_change()
    """The network."""
    diffusion: DiffusionSection = free_to_change(DiffusionSection())
    """The noise process."""
    train: TrainSection = free_to_change()
    """The base training."""
    distill: DistillSection = free_to_change()
    """The distillation stages."""
    sample: SampleSection = free_to_change(SampleSection())
    """Drawing pictures."""
    evaluate: EvaluateSection = free_to_change(EvaluateSection())
    """Measuring while networks learn."""
    trackers: tuple[TrackerKind, ...] | None = free_to_change(None)
    """Who gets curves and pictures: any of accelerate's trackers, such as tensorboard, wandb or
    mlflow. null is TensorBoard where that is installed, [] none.
    """

    @model_validator(mode="after")
    def _check_network(self) -> Self:
        self.network.check(self.data.size, self.data.channels)
        return self

    @model_validator(mode="after")
    def _check_times(self) -> Self:
        steps = self.distill.start_steps
        times = self.train.objective.known_times(steps)
        # None: it learned all times, so any number of steps can be drawn with
        if times is not None and times % steps:
            kind = self.train.objective.kind
            fix = f"`--set distill.start_steps={times}` fits"
            if self.distill.stages is not None:
                fix += ", with a first stage in `distill.stages` that leads on from there"
            raise ValueError(
                f"`train.objective`: with `{kind}` the base knows {times:,} times, "
                f"and `distill.start_steps` wants {steps:,} steps of it; {fix}"
            )
        for number, stage in enumerate(self.distill.listed()):
            objective = stage.objective or self.distill.objective
            steps = stage.steps or 1
            times = objective.known_times(steps)
            if times is not None and times % steps:
                raise ValueError(
                    f"`distill`: with `{objective.kind}` the student `base_{number}` knows "
                    f"{times:,} times, and is to be drawn with in {steps:,} steps"
                )
        return self

    @model_validator(mode="after")
    def _check_targets(self) -> Self:
        try:
            check_chain(self.diffusion.schedule, self.distill.steps())
        except ValueError as err:
            raise ValueError(f"`distill`: {err}") from err
        return self
