"""The target of diffusion_distiller, to measure what it costs:
the teacher's x at the last of its steps alone.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from vdiff.config import shapes_weights
from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.diffusion.denoiser import Denoiser, ddim_step
from vdiff.objectives.objective import Objective, ObjectiveSection, Task, add_noise
from vdiff.objectives.weighting import Weighting, weighted_loss
from vdiff.randomness import Randomness


class MidpointSection(ObjectiveSection):
    """Halving with the wrong target; not shipped, for comparison only."""

    needs_teacher: ClassVar[bool] = True

    kind: Literal["midpoint"] = shapes_weights("midpoint")
    """How the student learns."""

    def build(self, task: Task) -> Objective:
        if task.teacher_steps != 2:
            raise ValueError("the midpoint lies between two steps")
        return Midpoint(task.weighting, task.taught_by, task.num_steps)


class Midpoint(Objective):
    """weight(SNR) * |x_predicted - x_teacher(z_mid, mid)|^2,
    the times drawn as `progressive` draws them.
    """

    def __init__(self, weighting: Weighting, teacher: Denoiser, num_steps: int) -> None:
        self.weighting, self.teacher, self.num_steps = weighting, teacher, num_steps

    def __call__(
        self, student: Denoiser, x: Tensor, rng: Randomness, condition: Condition = NOTHING
    ) -> Tensor:
        step = (rng.stratified() * self.num_steps).floor() + 1
        t, mid = step / self.num_steps, (2 * step - 1) / (2 * self.num_steps)
        alpha, sigma = student.schedule.alpha_sigma(t)
        z = add_noise(x, alpha, sigma, rng)
        with torch.no_grad():
            halfway = ddim_step(self.teacher(z, t, condition), mid, student.schedule)
            target = self.teacher(halfway, mid, condition).x
        pred = student(z, t, condition, rng)
        return weighted_loss(self.weighting, pred.x, target, alpha, sigma)
