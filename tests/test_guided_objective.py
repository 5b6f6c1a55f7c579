"""Guided distillation: a student that has the guidance of its teacher inside."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from tests.test_guidance_input import CLASSES, plain
from tests.test_guided_denoiser import NULL, Gaussian, noise
from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.diffusion.denoiser import Denoiser, ddim_step, scales
from vdiff.diffusion.guided import Guided
from vdiff.diffusion.prediction import predict
from vdiff.diffusion.schedule import CosineSchedule, Schedule
from vdiff.objectives.guided import GuidedSection
from vdiff.objectives.objective import Task, add_noise, random_times
from vdiff.objectives.progressive import progressive_target
from vdiff.objectives.weighting import weighted_loss
from vdiff.randomness import Randomness
from vdiff.samplers.ddim import Ddim

STRENGTHS = (1.0, 1.5, 2.0, 3.0)
GUIDED = {1.0: (0.39999, 0.29927), 1.5: (0.51687, 0.23168), 2.0: (0.59759, 0.17933)}
GUIDED[3.0] = (0.68761, 0.10741)
"""g -> mean and deviation of what 1024 guided DDIM steps draw of class 0 of `Gaussian`;
computed apart from vdiff, from the affine maps.
"""


def rng(count: int) -> Randomness:
    return Randomness.for_update(0, 1, 0, torch.arange(count), count)


class Untaught(nn.Module):
    """The network of the guided Gaussian as a student begins: it is told g and passes over it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Gaussian()

    def forward(
        self, z: Tensor, time: Tensor, condition: Condition = NOTHING, keys: Tensor | None = None
    ) -> Tensor:
        out: Tensor = self.inner(z, time, condition._replace(guidance=None))
        return out


class Ideal(nn.Module):
    """A student that has learned guidance without a fault: g is an input of one call."""

    def __init__(self) -> None:
        super().__init__()
        network = Gaussian()
        self.schedule = network.schedule
        self.teacher = Guided(network, network.schedule, "x", null_label=NULL)

    def forward(
        self, z: Tensor, time: Tensor, condition: Condition = NOTHING, keys: Tensor | None = None
    ) -> Tensor:
        assert condition.guidance is not None
        t = (time.double() + 1) / 1024
        return self.teacher(z, t, condition).x


def gaussian_losses(student: nn.Module, told: Tensor | None, **options: Any) -> Tensor:
    network = Gaussian()
    teacher = Denoiser(network, network.schedule, "x")
    section = GuidedSection.model_validate(options)
    objective = section.build(Task("truncated_snr", 10, 8, teacher, 1, None, NULL))
    count = 6
    x = 0.4 + 0.3 * torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    labels = torch.zeros(count, dtype=torch.int64)
    return objective(
        Denoiser(student, network.schedule, "x"), x, rng(count), Condition(labels, told)
    )


def test_without_guidance_the_first_update_has_nothing_to_learn() -> None:
    """At g = 1 the student, which begins as the teacher, is what it is to become: exactly."""
    found = gaussian_losses(Untaught(), torch.tensor([1.0, 1.0, 2.0, 1.0, 3.0, 1.0]))
    assert found[[0, 1, 3, 5]].tolist() == [0, 0, 0, 0]
    assert found[[2, 4]].min() > 1e-4
    assert gaussian_losses(Untaught(), None, guidance=1.0).tolist() == [0] * 6
    assert gaussian_losses(Untaught(), None, guidance=1.5).min() > 1e-5


def test_nor_has_the_network_with_the_new_input() -> None:
    """But for the rounding of sums over a doubled batch, which are made in another order."""
    schedule = CosineSchedule(64)
    network = plain()
    teacher = Denoiser(network, schedule, "v")
    student = Denoiser(network.with_guidance_input(), schedule, "v")
    objective = GuidedSection().build(Task("truncated_snr", 9, 8, teacher, 1, None, CLASSES - 1))
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(8) % (CLASSES - 1)
    found = objective(student, x, rng(8), Condition(labels, torch.ones(8)))
    assert found.max() < 1e-10
    assert objective(student, x, rng(8), Condition(labels, torch.full((8,), 2.0))).min() > 1e-3


def test_a_student_without_a_fault_has_no_loss_for_any_guidance() -> None:
    assert gaussian_losses(Ideal(), torch.tensor([1.0, 1.5, 2.0, 3.0, 4.0, 2.5])).max() < 1e-12


def test_the_loss_is_the_distance_to_the_guided_teacher_at_its_times() -> None:
    """Written out: times, noise, two predictions, and the weight of their distance."""
    strengths = torch.tensor([1.5, 2.0, 2.5, 3.0, 3.5, 4.0])
    network = Gaussian()
    count = len(strengths)
    x = 0.4 + 0.3 * torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    for times in (None, 4):
        chances = rng(count)
        t = random_times(chances, True, times)
        if times is not None:
            assert set((t * times).tolist()) <= {1.0, 2.0, 3.0, 4.0}
        alpha, sigma = network.schedule.alpha_sigma(t)
        z = add_noise(x, alpha, sigma, chances)
        time = network.schedule.time_input(t).float()
        strong = network(z, time, Condition(torch.zeros(count, dtype=torch.int64)))
        weak = network(z, time, Condition(torch.full((count,), NULL)))
        target = weak + strengths[:, None, None, None] * (strong - weak)
        expected = weighted_loss("truncated_snr", strong, target, alpha, sigma)
        section = GuidedSection()
        teacher = Denoiser(network, network.schedule, "x")
        student = Denoiser(Untaught(), network.schedule, "x")
        made = section.build(Task("truncated_snr", 10, 8, teacher, 1, times, NULL))
        told = Condition(torch.zeros(count, dtype=torch.int64), strengths)
        torch.testing.assert_close(made(student, x, rng(count), told), expected, rtol=1e-3, atol=0)


def test_outside_of_the_interval_the_student_learns_no_guidance() -> None:
    strengths = torch.full((6,), 3.0)
    inside = gaussian_losses(Untaught(), strengths)
    never = gaussian_losses(Untaught(), strengths, interval=(1e6, 1e7))
    some = gaussian_losses(Untaught(), strengths, interval=(0.5, 2.0))
    assert never.tolist() == [0] * 6
    assert 0 < int((some > 0).sum()) < 6
    assert torch.equal(some[some > 0], inside[some > 0])


@pytest.mark.parametrize("guidance", STRENGTHS)
def test_an_ideal_student_draws_the_guided_gaussian_in_one_call_a_step(guidance: float) -> None:
    z = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)[:, None, None, None]
    network = Ideal()
    labels = torch.zeros(3, dtype=torch.int64)
    told = Condition(labels, torch.full((3,), guidance))
    chances = Randomness.for_images(torch.arange(3))
    x = Ddim()(Denoiser(network, network.schedule, "x"), z, 1024, chances, told)[:, 0, 0, 0]
    mean, deviation = GUIDED[guidance]
    assert float(x[1]) == pytest.approx(mean, abs=1e-5)
    assert float(x[2] - x[0]) / 2 == pytest.approx(deviation, abs=1e-5)


@pytest.mark.parametrize("guidance", STRENGTHS)
def test_one_step_lands_where_sixteen_guided_steps_land(guidance: float) -> None:
    network = Gaussian()
    teacher = Guided(network, network.schedule, "x", null_label=NULL)
    count, num_steps, teacher_steps = 4, 4, 16
    told = Condition(torch.zeros(count, dtype=torch.int64), torch.full((count,), guidance).double())
    z = noise(count)
    step = torch.arange(1, num_steps + 1, dtype=torch.float64)
    t = step / num_steps
    target = progressive_target(teacher, z, step, num_steps, teacher_steps, told)
    landed = stepped(network.schedule, target, z, t, t - 1 / num_steps)
    there = z
    for k in range(teacher_steps):
        fine = num_steps * teacher_steps
        here = (step * teacher_steps - k) / fine
        there = ddim_step(teacher(there, here, told), here - 1 / fine, network.schedule)
    assert (landed - there).abs().max() < 1e-12


def stepped(schedule: Schedule, x: Tensor, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """A DDIM step with this x."""
    return ddim_step(predict("x", x, z, *scales(schedule, t, z)), s, schedule)


def test_what_the_student_has_inside_is_what_was_asked_for() -> None:
    assert GuidedSection().guidance_inside == {"kind": "input", "low": 1.0, "high": 4.0}
    fixed = GuidedSection.model_validate({"guidance": 1.5})
    assert fixed.guidance_inside == {"kind": "baked", "value": 1.5}
    assert fixed.is_denoiser
    assert not fixed.needs_fewer_steps


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"guidance": [4, 1]}, "from a smaller g to a larger one"),
        ({"guidance": [2, 2]}, "write it without brackets"),
        ({"guidance": -1}, "greater than or equal to 0"),
        ({"guidance": "much"}, "valid number"),
        ({"interval": [5, 0.2]}, "from a smaller noise level"),
    ],
)
def test_guidance_that_cannot_be_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        GuidedSection.model_validate(options)
