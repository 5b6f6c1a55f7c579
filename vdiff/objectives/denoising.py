"""Learning from pictures: add noise, predict what was there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from vdiff.config import shapes_weights
from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.objectives.objective import Objective, ObjectiveSection, Task, add_noise, random_times
from vdiff.objectives.weighting import Weighting, weighted_loss

if TYPE_CHECKING:
    from torch import Tensor

    from vdiff.diffusion.denoiser import Denoiser
    from vdiff.randomness import Randomness


class DenoisingSection(ObjectiveSection):
    """The ordinary diffusion loss."""

    kind: Literal["denoising"] = shapes_weights("denoising")
    """How the network learns."""
    times: Literal["continuous", "grid"] = shapes_weights("continuous")
    """Noise levels: any t in (0, 1], or the points i / grid of the schedule only."""
    stratified: bool = shapes_weights(True)
    """Spread the times of a batch evenly over (0, 1]; the loss varies less."""

    def build(self, task: Task) -> Objective:
        return DenoisingObjective(task.weighting, self.times == "grid", self.stratified)


class DenoisingObjective(Objective):
    """weight(SNR) * |x_predicted - x|^2 at a random time, with fresh noise."""

    def __init__(
        self, weighting: Weighting, on_grid: bool = False, stratified: bool = True
    ) -> None:
        self.weighting = weighting
        self.on_grid = on_grid
        self.stratified = stratified

    def __call__(
        self, student: Denoiser, x: Tensor, rng: Randomness, condition: Condition = NOTHING
    ) -> Tensor:
        grid = student.schedule.grid if self.on_grid else None
        t = random_times(rng, self.stratified, grid)
        alpha, sigma = student.schedule.alpha_sigma(t)
        z = add_noise(x, alpha, sigma, rng)
        pred = student(z, t, condition, rng)
        return weighted_loss(self.weighting, pred.x, x, alpha, sigma)
