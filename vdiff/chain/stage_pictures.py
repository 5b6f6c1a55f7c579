"""Pictures of a stage's networks while they learn: always from the same seeds, each process draws its share."""

from dataclasses import dataclass

from torch import Tensor

from vdiff.chain.plan import Stage
from vdiff.data.codec import Codec
from vdiff.diffusion.condition import of_seeds
from vdiff.diffusion.denoiser import Denoiser
from vdiff.images.images import grid
from vdiff.machine.machine import Machine
from vdiff.recipe.recipe import SampleSection
from vdiff.samplers.draw import draw

PREVIEW_STEPS = 32
"""A preview of a model with more sampler steps uses this many."""


@dataclass(frozen=True)
class StagePictures:
    """Draws for one stage. Every process must ask, as each does a share of the work; all get all pictures.

    codec: between pictures and what the network sees.   shape: (C, H, W) of a picture.   num_classes: 0 without labels.
    """

    section: SampleSection
    stage: Stage
    codec: Codec
    shape: tuple[int, int, int]
    num_classes: int
    machine: Machine

    def preview(self, denoiser: Denoiser) -> Tensor:
        """A grid of pictures, uint8 [C, H, W].   Errors: DivergedError, in every process, for NaN or Inf in them."""
        steps = min(self.stage.num_steps, PREVIEW_STEPS)
        times = self.stage.settings.objective.known_times(self.stage.num_steps)
        pictures = self.draw(denoiser, steps, times, self.section.num_images)
        return grid(
            self.codec.decode(pictures, self.stage.name), scale=max(1, 32 // self.shape[-1])
        )

    def draw(
        self, denoiser: Denoiser, num_steps: int, model_steps: int | None, count: int
    ) -> Tensor:
        """So many pictures, float [count, C, H, W].   model_steps: the grid of times that the model knows, if any."""
        seeds = range(count)
        condition = of_seeds(seeds, self.num_classes)

        def share(places: slice) -> Tensor:
            return draw(
                denoiser,
                self.section.sampler.build(),
                seeds[places],
                self.codec.shape(self.shape),
                num_steps,
                model_steps=model_steps,
                condition=condition.of(places),
                batch_size=self.section.batch_size,
                device=self.machine.device,
                graphs=self.machine.graphs,
            )

        with self.machine.autocast():
            return self.machine.share_out(share, count)
