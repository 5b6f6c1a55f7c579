"""Learning guidance from a teacher that is guided: one call then does what two calls did
(Meng et al. 2023, stage one).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vdiff.config import shapes_weights
from vdiff.diffusion import inside
from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.diffusion.guided import Guided
from vdiff.diffusion.inside import Interval, Wanted
from vdiff.objectives.objective import Objective, ObjectiveSection, Task, add_noise, random_times
from vdiff.objectives.weighting import Weighting, weighted_loss
from vdiff.phases import phase

if TYPE_CHECKING:
    from torch import Tensor

    from vdiff.diffusion.denoiser import Denoiser
    from vdiff.randomness import Randomness


class GuidedSection(ObjectiveSection):
    """Guided distillation: the student predicts what its teacher predicts with guidance, for one g
    or for any g of a range, which it is told.
    """

    needs_teacher: ClassVar[bool] = True
    is_as_teacher: ClassVar[bool] = True

    kind: Literal["guided"] = shapes_weights("guided")
    """How the student learns."""
    guidance: Wanted = shapes_weights((1.0, 4.0))
    """g, where 1 is none: a range `[1, 4]`, of which the student is told one for every picture, or
    one number, which it has for good.
    """
    interval: Interval | None = shapes_weights(None)
    """Noise levels sigma / alpha within which the teacher is guided, as in `[0.2, 5]`;
    elsewhere it is not. Not given: everywhere.
    """
    stratified: bool = shapes_weights(True)
    """Spread the times of a batch evenly over (0, 1]; the loss varies less."""

    @property
    def guidance_inside(self) -> dict[str, Any]:
        return inside.of_wanted(self.guidance, self.interval)

    def known_times(self, num_steps: int) -> int | None:
        return None

    def as_taught(self, teacher: Denoiser, null_label: int | None) -> Guided:
        fixed = 1.0
        if not isinstance(self.guidance, tuple):
            fixed = self.guidance
        return Guided(
            teacher.network,
            teacher.schedule,
            teacher.predicts,
            guidance=fixed,
            null_label=null_label,
            interval=self.interval,
        )

    def build(self, task: Task) -> Objective:
        teacher = self.as_taught(task.taught_by, task.null_label)
        return GuidedObjective(task.weighting, teacher, task.teacher_times, self.stratified)


class GuidedObjective(Objective):
    """weight(SNR) * |x_predicted - x_guided|^2 at a random time, with fresh noise.

    teacher: guided as strongly as the condition of a picture says, or where that says nothing, as
    it is made.
    known_times: N, where the teacher knows the times i / N only; None for all times.
    """

    def __init__(
        self,
        weighting: Weighting,
        teacher: Guided,
        known_times: int | None = None,
        stratified: bool = True,
    ) -> None:
        self.weighting = weighting
        self.teacher = teacher
        self.known_times = known_times
        self.stratified = stratified

    def __call__(
        self, student: Denoiser, x: Tensor, rng: Randomness, condition: Condition = NOTHING
    ) -> Tensor:
        import torch

        t = random_times(rng, self.stratified, self.known_times)
        alpha, sigma = student.schedule.alpha_sigma(t)
        z = add_noise(x, alpha, sigma, rng)
        with phase("teacher"), torch.no_grad():
            target = self.teacher(z, t, condition).x
        drawn = student(z, t, condition, rng).x
        return weighted_loss(self.weighting, drawn, target, alpha, sigma)
