"""Learning from a teacher: one step of the student lands where K steps of the teacher land
(Salimans & Ho 2022).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vdiff.config import shapes_weights
from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.diffusion.denoiser import Denoiser, beside, ddim_step, scales
from vdiff.diffusion.prediction import predict
from vdiff.objectives.objective import Objective, ObjectiveSection, Task, add_noise
from vdiff.objectives.weighting import Weighting, weighted_loss
from vdiff.phases import phase

if TYPE_CHECKING:
    from torch import Tensor

    from vdiff.diffusion.schedule import Schedule
    from vdiff.randomness import Randomness


TeacherSteps = Literal["ddim", "dpmpp"]
"""How a teacher goes from one of its points to the next."""

LEAST_POINTS = 8
"""Of a 2M teacher for a step of the student: its first point in each is of first order only."""


class ProgressiveSection(ObjectiveSection):
    """Progressive distillation with the exact target."""

    needs_teacher: ClassVar[bool] = True
    # its x leads to where the teacher's steps land: an average over a step
    is_denoiser: ClassVar[bool] = False
    needs_fewer_steps: ClassVar[bool] = True

    kind: Literal["progressive"] = shapes_weights("progressive")
    """How the student learns."""
    teacher: TeacherSteps = shapes_weights("ddim")
    """How the teacher goes from point to point: ddim, or dpmpp (DPM-Solver++ 2M, begun anew in each
    of the student's steps): 64 points of that are as exact as 1024 of DDIM. For a teacher that is
    the base, and at least 8 points for a step of the student.
    """
    stratified: bool = shapes_weights(True)
    """Spread the steps of a batch evenly over the student's grid; the loss varies less."""
    clip: float | None = shapes_weights(None, gt=0)
    """Limit of the pictures that the teacher predicts inside the target, and of the student's when
    it draws: for teachers whose own sampler keeps them within limits. One that predicts eps needs
    it, as its x is eps divided by almost nothing at the end of the schedule.
    """

    @property
    def needs_denoiser(self) -> bool:
        return self.teacher == "dpmpp"

    @property
    def usual_teacher_steps(self) -> int:
        return LEAST_POINTS if self.teacher == "dpmpp" else 1

    def advised_sampler(self) -> dict[str, Any] | None:
        # the target is a mean of pictures within the limits: a picture outside them is only nearer
        # to it when it is clipped
        return None if self.clip is None else {"kind": "ddim", "clip": self.clip}

    def build(self, task: Task) -> Objective:
        return ProgressiveObjective(
            task.weighting,
            task.taught_by,
            task.num_steps,
            task.teacher_steps,
            self.stratified,
            self.clip,
            self.teacher,
        )


class ProgressiveObjective(Objective):
    """weight(SNR) * |x_predicted - x~|^2 at the student's times {1/N, ..., N/N}.

    num_steps: N, the student's.   teacher_steps: K, how many of the teacher's steps one of the
    student's replaces.
    clip: limit of the teacher's x; None leaves it free.
    by: how the teacher goes from point to point.
    """

    def __init__(
        self,
        weighting: Weighting,
        teacher: Denoiser,
        num_steps: int,
        teacher_steps: int = 2,
        stratified: bool = True,
        clip: float | None = None,
        by: TeacherSteps = "ddim",
    ) -> None:
        self.weighting = weighting
        self.teacher = teacher
        self.num_steps = num_steps
        self.teacher_steps = teacher_steps
        self.stratified = stratified
        self.clip = clip
        self.by = by

    def __call__(
        self, student: Denoiser, x: Tensor, rng: Randomness, condition: Condition = NOTHING
    ) -> Tensor:
        if self.stratified:
            u = rng.stratified()
        else:
            u = rng.uniform()
        step = (u * self.num_steps).floor() + 1
        t = step / self.num_steps
        alpha, sigma = student.schedule.alpha_sigma(t)
        z = add_noise(x, alpha, sigma, rng)
        with phase("teacher"):
            target = progressive_target(
                self.teacher,
                z,
                step,
                self.num_steps,
                self.teacher_steps,
                condition,
                self.clip,
                self.by,
            )
        drawn = student(z, t, condition, rng).x
        if self.clip is not None:
            # the value is what the sampler keeps of it, and the gradient passes: a picture that
            # lies outside where the target's is at the limit is right already
            drawn = drawn.clamp(-self.clip, self.clip).detach() + (drawn - drawn.detach())
        return weighted_loss(self.weighting, drawn, target, alpha, sigma)


def progressive_target(
    teacher: Denoiser,
    z: Tensor,
    step: Tensor,
    num_steps: int,
    teacher_steps: int,
    condition: Condition = NOTHING,
    clip: float | None = None,
    by: TeacherSteps = "ddim",
) -> Tensor:
    """The x~ with which one DDIM step of 1/N lands where `teacher_steps` steps of the teacher land.

    x~ = sum_k w_k D_k       over the teacher's way from t to s = t - 1/N

    Each of its steps is DDIM's with D_k for x. By ddim D_k is its prediction x_k; by dpmpp (2M)
    D_k = x_k + h_k / (2 h_{k-1}) (x_k - x_{k-1}), h the steps' lengths in log rho, and x_k at the
    first point and in the step to t = 0.

    z: noisy images at t = step / num_steps, [B, C, H, W].
    step: [B], whole numbers in 1..num_steps.
    clip: limit of the teacher's x, from which its eps is made anew; None leaves it free.
    """
    import torch

    # in the teacher's steps: t_k = (start - k) / (N K), exact
    start = step.double() * teacher_steps
    times = [(start - k) / (num_steps * teacher_steps) for k in range(teacher_steps + 1)]
    weights = rho_weights(teacher.schedule, times)
    target = torch.zeros_like(z)
    memory = _Memory(teacher.schedule) if by == "dpmpp" else None
    with torch.no_grad():
        for (t, s), weight in zip(pairwise(times), weights, strict=True):
            pred = teacher(z, t, condition)
            if clip is not None:
                pred = pred.clipped(clip, z, *scales(teacher.schedule, t, z))
            if memory is not None:
                towards = memory.second_order(pred.x, t, s)
                pred = predict("x", towards, z, *scales(teacher.schedule, t, z))
            target = torch.addcmul(target, beside(weight, z)[:, None, None, None], pred.x)
            z = ddim_step(pred, s, teacher.schedule)
    return target


class _Memory:
    """The x of the point before, and how far it lies behind, for 2M."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._before: tuple[Tensor, Tensor] | None = None

    def second_order(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """D of the step from t to s, [B] each.   x: predicted at t, [B, C, H, W]."""
        import torch

        before = self._before
        ahead = (self._schedule.logsnr(s) - self._schedule.logsnr(t)) / 2
        self._before = x, ahead
        if before is None:
            return x
        x_before, behind = before
        # into t = 0 the step is infinitely long
        share = torch.where(s == 0, 0, ahead / (2 * behind))
        return torch.addcmul(x, beside(share, x)[:, None, None, None], x - x_before)


def rho_weights(schedule: Schedule, times: list[Tensor]) -> list[Tensor]:
    """w_k = (rho(t_{k+1}) - rho(t_k)) / (rho(t_K) - rho(t_0)):
    float64 [B] each, in [0, 1], summing to 1.

    times: t_0 > ... > t_K >= 0, [B] each. Formed from ratios to rho(t_K), which stay finite at t_K
    = 0: there all but the last weight are 0.
    """
    import torch

    end_alpha, end_sigma = schedule.alpha_sigma(times[-1])
    ratios = [
        alpha * end_sigma / (sigma * end_alpha)
        for alpha, sigma in map(schedule.alpha_sigma, times[:-1])
    ]
    ratios.append(torch.ones_like(ratios[0]))  # float64: the differences are about 1 / num_steps
    return [(after - before) / (1 - ratios[0]) for before, after in pairwise(ratios)]
