"""Pictures of a stage's networks while they learn:
always from the same seeds, each process draws its share.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from vdiff.chain.guidance import inside_of
from vdiff.chain.plan import Stage
from vdiff.data.codec import Codec
from vdiff.diffusion import inside
from vdiff.diffusion.condition import of_seeds
from vdiff.diffusion.denoiser import Denoiser
from vdiff.images.images import grid
from vdiff.machine.machine import Machine
from vdiff.model_folder.card import ModelCard
from vdiff.recipe.recipe import SampleSection
from vdiff.samplers.advised import sampler_for
from vdiff.samplers.draw import draw
from vdiff.samplers.sampler import Sampler

PREVIEW_STEPS = 32
"""A preview of a model with more sampler steps uses this many."""


@dataclass(frozen=True)
class Advice:
    """How a model is meant to be drawn with; the model card of a finished one says the same.

    name: what messages call the model.   num_steps: of the sampler.
    times: N, where it knows the times i / N only.
    sampler: as `ObjectiveSection.advised_sampler` has it, None for DDIM.
    is_denoiser: see `ModelCard`.
    guidance: g that it is told of every picture; None tells none.
    """

    name: str
    num_steps: int
    times: int | None
    sampler: Mapping[str, Any] | None
    is_denoiser: bool
    guidance: float | None = None

    @property
    def is_solvable(self) -> bool:
        """See `ModelCard.is_solvable`."""
        return self.is_denoiser and self.times is None

    def with_at_most(self, num_steps: int) -> "Advice":
        """The same, in fewer steps where these are more."""
        return replace(self, num_steps=min(self.num_steps, num_steps))


def advice_of_stage(stage: Stage, teacher: ModelCard | None) -> Advice:
    """Of the network that a stage trains.   teacher: None for the base."""
    objective = stage.settings.objective
    times = objective.known_times(stage.num_steps)
    sampler: Mapping[str, Any] | None = objective.advised_sampler()
    guidance = None
    if teacher is not None:
        guidance = inside.usual(inside_of(stage, teacher.guidance))
        if objective.is_as_teacher:
            times = teacher.times
            sampler = teacher.sampler
    return Advice(stage.name, stage.num_steps, times, sampler, objective.is_denoiser, guidance)


def advice_of_card(card: ModelCard) -> Advice:
    """Of a finished model."""
    guidance = inside.usual(card.guidance)
    return Advice(card.name, card.num_steps, card.times, card.sampler, card.is_denoiser, guidance)


Draw = Callable[[Denoiser, Advice, int], Tensor]
"""Pictures of a model, drawn as its advice says, so many: float [n, C, H, W], in every process."""


@dataclass(frozen=True)
class StagePictures:
    """Draws for one stage. Every process must ask, as each does a share of the work; all get all
    pictures.

    advice: how the network of the stage is drawn with.
    codec: between pictures and what the network sees.   shape: (C, H, W) of a picture.
    num_classes: 0 without labels.
    """

    section: SampleSection
    advice: Advice
    codec: Codec
    shape: tuple[int, int, int]
    num_classes: int
    machine: Machine

    def preview(self, denoiser: Denoiser) -> Tensor:
        """A grid of pictures, uint8 [C, H, W].

        Errors: DivergedError, in every process, for NaN or Inf in them.
        """
        advice = self.advice.with_at_most(PREVIEW_STEPS)
        drawn = self.draw(denoiser, advice, self.section.num_images)
        scale = max(1, 32 // self.shape[-1])
        return grid(self.codec.decode(drawn, self.advice.name), scale=scale)

    def sampler(self, advice: Advice) -> Sampler:
        """The sampler that draws with a model.

        Errors: ModelFileError for one that is not to be had here.
        """
        named = self.section.named_sampler
        section = sampler_for(named, advice.sampler, advice.name, is_solvable=advice.is_solvable)
        return section.build()

    def draw(self, denoiser: Denoiser, advice: Advice, count: int) -> Tensor:
        """So many pictures, float [count, C, H, W].   Errors: ModelFileError, see `sampler`."""
        sampler = self.sampler(advice)
        seeds = range(count)
        condition = of_seeds(seeds, self.num_classes, advice.guidance)

        def share(places: slice) -> Tensor:
            return draw(
                denoiser,
                sampler,
                seeds[places],
                self.codec.shape(self.shape),
                advice.num_steps,
                model_steps=advice.times,
                condition=condition.of(places),
                batch_size=self.section.batch_size,
                device=self.machine.device,
                graphs=self.machine.graphs,
            )

        with self.machine.autocast():
            return self.machine.share_out(share, count)
