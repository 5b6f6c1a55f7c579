"""The recipe: a whole YAML file as frozen sections, and the rules between them."""

from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import field_validator, model_validator

from vdiff.choices import (
    Compile,
    CudaGraphs,
    Precision,
    Shard,
    TrackerKind,
)
from vdiff.config import Registry, Section, free_to_change, shapes_weights
from vdiff.data import DATASETS
from vdiff.diffusion import SCHEDULES
from vdiff.diffusion.inside import range_of
from vdiff.diffusion.limits import check_chain
from vdiff.diffusion.process import DiffusionSection
from vdiff.errors import UsageError
from vdiff.metrics import DEFAULT, METRICS
from vdiff.metrics.metric import named
from vdiff.networks import NETWORKS
from vdiff.objectives import OBJECTIVES
from vdiff.recipe.distill import DistillSection as DistillSection
from vdiff.samplers import SAMPLERS
from vdiff.training.settings import FitSection

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

    label_drop: float = shapes_weights(0.0, ge=0, lt=1)
    """Share of the pictures that are shown without their class: the network learns what pictures
    look like whatever their class, and `vdiff sample --guidance` can lead away from that.
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


class SampleSection(Section):
    """How pictures are drawn, in previews and by `vdiff sample`."""

    sampler: Annotated[SamplerSection, SAMPLERS] = free_to_change("ddim")
    """Sampler with its options: ddim or ancestral for all models of the run; or dpmpp, unipc, ipndm
    or heun, for those that know all times, and the students draw as they are meant to.
    """
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

    @property
    def base_network(self) -> NetworkSection:
        """What the base is made of: the network, with a class more that stands for no class where
        pictures are shown without theirs.

        Errors: UsageError for a network without classes, of which none can be left out.
        """
        if self.train.label_drop == 0:
            return self.network
        return self.network.with_null_class()

    @model_validator(mode="after")
    def _check_label_drop(self) -> Self:
        _ = self.base_network
        return self

    @model_validator(mode="after")
    def _check_guidance(self) -> Self:
        """An imported base tells by its card whether it can be guided."""
        if self.network.kind == "imported":
            return self
        objectives = [stage.objective or self.distill.objective for stage in self.distill.listed()]
        guided = [each.guidance_inside for each in objectives if each.guidance_inside is not None]
        if any(map(range_of, guided)) and not self.network.may_take_guidance:
            raise ValueError(
                f"`distill`: a network of the kind `{self.network.kind}` cannot take guidance as "
                "an input; one number needs none, as in --set distill.guidance=1.5"
            )
        if guided and self.train.label_drop == 0:
            raise ValueError(
                "`distill`: guidance leads away from what a class that stands for none predicts, "
                "and the base would have no such class; set `train.label_drop`, as in "
                "--set train.label_drop=0.1"
            )
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
    def _check_teachers(self) -> Self:
        before, steps = self.train.objective, self.distill.start_steps
        for number, stage in enumerate(self.distill.listed()):
            objective = stage.objective or self.distill.objective
            is_solvable = before.is_denoiser and before.known_times(steps) is None
            if objective.guidance_inside is not None and not before.is_denoiser:
                raise ValueError(
                    f"`distill`: `base_{number}` is to be guided, and its teacher predicts where a "
                    "step leads, not the mean that guidance is made of: let the stage that guides "
                    "come first"
                )
            if objective.needs_denoiser and not is_solvable:
                whose = "the base" if number == 0 else f"the student `base_{number - 1}`"
                raise ValueError(
                    f"`distill`: `base_{number}` is to learn from a second-order way of {whose}, "
                    "which is no denoiser of all times; with `distill.stages`, its stage alone "
                    "that learns from the base can have `objective: {kind: progressive, teacher: "
                    "dpmpp}`"
                )
            if not objective.is_as_teacher:
                before, steps = objective, stage.steps or 1
        return self

    @model_validator(mode="after")
    def _check_targets(self) -> Self:
        try:
            check_chain(self.diffusion.schedule, self.distill.steps())
        except ValueError as err:
            raise ValueError(f"`distill`: {err}") from err
        return self
