"""A toy of consistency training (Song et al. 2023):
agree with a slow copy of oneself a little nearer to the data.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from vdiff.config import shapes_weights
from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.diffusion.denoiser import Denoiser, scales
from vdiff.objectives.objective import Objective, ObjectiveSection, Task
from vdiff.objectives.target import Target
from vdiff.objectives.weighting import Weighting, weighted_loss
from vdiff.randomness import Randomness


class ConsistencySection(ObjectiveSection):
    """Consistency without a teacher, towards an average of the weights."""

    kind: Literal["consistency_toy"] = shapes_weights("consistency_toy")
    """How the network learns."""
    points: int = shapes_weights(8, ge=2)
    """Times that neighbours lie one step of apart."""
    decay: float = shapes_weights(0.9, ge=0, lt=1)
    """Of the average, per update."""

    is_denoiser: ClassVar[bool] = False

    def known_times(self, num_steps: int) -> int | None:
        return self.points

    def build(self, task: Task) -> Objective:
        return Consistency(task.weighting, self.points, self.decay)


class Consistency(Objective):
    """weight |x(z_t) - x_average(z_s)|^2 for neighbours s < t with the same noise;
    x_average(z_0) is the image.
    """

    def __init__(self, weighting: Weighting, points: int, decay: float) -> None:
        self.weighting, self.points, self.decay = weighting, points, decay

    def prepare(self, student: Denoiser, copied: Callable[[], nn.Module]) -> None:
        self.target = Target(student, copied, self.decay)

    def __call__(
        self, student: Denoiser, x: Tensor, rng: Randomness, condition: Condition = NOTHING
    ) -> Tensor:
        step = (rng.stratified() * self.points).floor() + 1
        t, s = step / self.points, (step - 1) / self.points
        noise = rng.normal(*x.shape[1:]).to(x)
        alpha, sigma = scales(student.schedule, t, x)
        wanted = self._wanted(x, noise, s, condition)
        pred = student(alpha * x + sigma * noise, t, condition, rng)
        return weighted_loss(self.weighting, pred.x, wanted, *student.schedule.alpha_sigma(t))

    @torch.no_grad()
    def _wanted(self, x: Tensor, noise: Tensor, s: Tensor, condition: Condition) -> Tensor:
        is_image = s == 0
        alpha, sigma = scales(self.target.denoiser.schedule, s, x)
        # a time of 0 is none that a network knows; what it says there is not used
        found = self.target.denoiser(
            alpha * x + sigma * noise, torch.where(is_image, 1 / self.points, s), condition
        ).x
        return torch.where(is_image[:, None, None, None], x, found)

    def follow(self, update: int, is_done: Tensor) -> None:
        self.target.follow(is_done)

    def state(self) -> dict[str, Tensor]:
        return self.target.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.target.load(state)
