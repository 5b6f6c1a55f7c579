"""The progressive target, as theorems: where it lands,
and what becomes of Gaussian data over a whole chain.
"""

import pytest
import torch
from torch import nn

from tests.mixtures import evenly_spread, mixture, quantile
from tests.toys import SCHEDULES, Table, curved, gaussian, noise
from vdiff.diffusion.condition import NOTHING
from vdiff.diffusion.denoiser import Denoiser, ddim_step, scales
from vdiff.diffusion.prediction import predict
from vdiff.diffusion.schedule import BetasSection, CosineSchedule
from vdiff.objectives.progressive import ProgressiveObjective, progressive_target, rho_weights
from vdiff.randomness import Randomness
from vdiff.samplers.ddim import Ddim
from vdiff.samplers.dpmpp import Dpmpp
from vdiff.samplers.sampler import Point, Predict

STD = 0.5


def land(denoiser, z, num_steps, teacher_steps):
    """Where one student step with the exact target leads, and where the teacher's steps lead,
    at every time.
    """
    step = torch.arange(1, num_steps + 1).double()
    t, s = step / num_steps, (step - 1) / num_steps
    target = progressive_target(denoiser, z, step, num_steps, teacher_steps)
    student = ddim_step(
        predict("x", target, z, *scales(denoiser.schedule, t, z)), s, denoiser.schedule
    )
    fine = num_steps * teacher_steps
    teacher = z
    for k in range(teacher_steps):
        pred = denoiser(teacher, (step * teacher_steps - k) / fine)
        teacher = ddim_step(pred, (step * teacher_steps - k - 1) / fine, denoiser.schedule)
    return student, teacher


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("teacher_steps", [2, 4])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 8, 512, 4096])
def test_one_student_step_lands_where_the_teacher_steps_land(schedule, teacher_steps, num_steps):
    student, teacher = land(curved(schedule), noise(num_steps), num_steps, teacher_steps)
    assert (student - teacher).abs().max() < 1e-12


def test_for_two_steps_the_target_is_the_published_quotient():
    denoiser, num_steps = curved(SCHEDULES["cosine"]), 8
    z, step = (
        noise(7),
        torch.arange(2, 9).double(),
    )  # not the last step, where the quotient is 0 / 0
    t, s = step / num_steps, (step - 1) / num_steps
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (
        scales(denoiser.schedule, t, z),
        scales(denoiser.schedule, s, z),
    )
    middle = ddim_step(denoiser(z, t), t - 0.5 / num_steps, denoiser.schedule)
    z_s = ddim_step(denoiser(middle, t - 0.5 / num_steps), s, denoiser.schedule)
    quotient = (z_s - sigma_s / sigma_t * z) / (alpha_s - sigma_s / sigma_t * alpha_t)
    torch.testing.assert_close(
        progressive_target(denoiser, z, step, num_steps, 2), quotient, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("teacher_steps", [1, 2, 4])
def test_the_weights_are_an_average(schedule, teacher_steps):
    times = [
        (torch.arange(1, 513).double() * teacher_steps - k) / (512 * teacher_steps)
        for k in range(teacher_steps + 1)
    ]
    weights = torch.stack(rho_weights(schedule, times))
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(0), torch.ones(512).double(), rtol=1e-12, atol=0)


def test_at_the_last_step_only_the_last_prediction_counts():
    weights = rho_weights(
        SCHEDULES["cosine"], [torch.tensor([i / 16]).double() for i in (4, 3, 2, 1, 0)]
    )
    assert torch.stack(weights).flatten().tolist() == [0, 0, 0, 1]


def test_the_target_stays_accurate_in_float32_where_the_quotient_does_not():
    denoiser, num_steps = curved(SCHEDULES["cosine"]), 4096
    z, step = noise(num_steps), torch.arange(1, num_steps + 1).double()
    exact = progressive_target(denoiser, z, step, num_steps, 2)
    single = progressive_target(denoiser, z.float(), step, num_steps, 2)
    assert (single - exact).abs().max() < 5e-6  # the quotient is wrong by 1.3e-3 here


def distilled(teacher, num_steps, target_of, schedule=None):
    """The perfect student of a Gaussian teacher: its table is the target of z = 1."""
    schedule = schedule or teacher.schedule
    step = torch.arange(1, num_steps + 1).double()
    table = target_of(teacher, torch.ones(num_steps, 1, 1, 1).double(), step, num_steps)[:, 0, 0, 0]
    return Denoiser(Table(table, schedule.grid), schedule, "x")


def sampled_std(denoiser, num_steps):
    rng = Randomness.for_images(torch.zeros(1, dtype=torch.int64))
    return float(Ddim()(denoiser, torch.ones(1, 1, 1, 1).double(), num_steps, rng)[0, 0, 0, 0])


@pytest.mark.parametrize("factor", [2, 4])
def test_exact_targets_keep_the_spread_of_gaussian_data_down_to_one_step(factor):
    denoiser, num_steps = gaussian(SCHEDULES["cosine"], 1024, STD), 1024
    first = sampled_std(denoiser, 1024)
    assert first == pytest.approx(0.4992, abs=5e-5)  # mathematics.md
    while num_steps > 1:
        num_steps //= factor
        denoiser = distilled(denoiser, num_steps, lambda *args: progressive_target(*args, factor))
        assert sampled_std(denoiser, num_steps) == pytest.approx(first, abs=1e-12)


def midpoint_target(teacher, z, step, num_steps):
    """What diffusion_distiller trains on: the teacher's x in the middle,
    as if the weights were (0, 1) everywhere.
    """
    t = step / num_steps
    middle = ddim_step(teacher(z, t), t - 0.5 / num_steps, teacher.schedule)
    return teacher(middle, t - 0.5 / num_steps).x


def test_midpoint_targets_inflate_it_as_diffusion_distiller_does():
    """With a table rebuilt for every stage, as it does too."""
    denoiser, found = gaussian(SCHEDULES["cosine"], 1024, STD), {}
    for num_steps in [512 >> halving for halving in range(10)]:
        denoiser = distilled(denoiser, num_steps, midpoint_target, CosineSchedule(num_steps))
        found[num_steps] = sampled_std(denoiser, num_steps)
    expected = {64: 0.509, 16: 0.534, 8: 0.557, 4: 0.586, 1: 0.610}  # mathematics.md
    assert {steps: found[steps] for steps in expected} == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(("num_steps", "expected"), [(8, 0.410), (1, 0.008)])  # mathematics.md
def test_undistilled_sampling_collapses(num_steps, expected):
    denoiser = gaussian(CosineSchedule(num_steps), num_steps, STD)
    denoiser.network.grid = num_steps
    assert sampled_std(denoiser, num_steps) == pytest.approx(expected, abs=5e-4)


class KeepsInputs(nn.Module):
    """Remembers the times it is asked for."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def forward(self, z, time, condition=NOTHING, keys=None):
        self.heard.append(time)
        return torch.zeros_like(z)


def test_the_student_is_asked_at_its_own_grid_only():
    student = Denoiser(KeepsInputs(), SCHEDULES["cosine"], "v")
    objective = ProgressiveObjective("truncated_snr", curved(SCHEDULES["cosine"]), num_steps=8)
    rng = Randomness.for_update(0, 1, 0, torch.arange(64), 64)
    objective(student, noise(64).float(), rng)
    heard = set(student.network.heard[0].tolist())
    assert heard == {127, 255, 383, 511, 639, 767, 895, 1023}


def test_a_student_that_is_its_teacher_has_no_loss_when_nothing_is_skipped():
    denoiser = curved(SCHEDULES["cosine"])
    objective = ProgressiveObjective("truncated_snr", denoiser, num_steps=16, teacher_steps=1)
    losses = objective(
        denoiser, noise(8).float(), Randomness.for_update(0, 1, 0, torch.arange(8), 8)
    )
    assert losses.abs().max() == 0


def by_2m(denoiser, z, num_steps, teacher_steps):
    """Where one student step with the target of a 2M teacher leads, and where 2M leads that begins
    at its time, at every time.
    """
    schedule, fine = denoiser.schedule, num_steps * teacher_steps
    step = torch.arange(1, num_steps + 1).double()
    t, s = step / num_steps, (step - 1) / num_steps
    target = progressive_target(denoiser, z, step, num_steps, teacher_steps, by="dpmpp")
    student = ddim_step(predict("x", target, z, *scales(schedule, t, z)), s, schedule)
    sampler, arrived = Dpmpp(), []
    call = Predict(denoiser, NOTHING, sampler)
    for number in range(1, num_steps + 1):
        here, before = z[number - 1 : number], ()
        for k in range(teacher_steps):
            start = (number * teacher_steps - k) / fine
            point = Point(start, here, call(here, start))
            here = sampler.step(point, (number * teacher_steps - k - 1) / fine, before, call, None)
            before = (point,)
        arrived.append(here)
    return student, torch.cat(arrived)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("teacher_steps", [2, 8])
@pytest.mark.parametrize("num_steps", [1, 3, 8, 64])
def test_one_student_step_lands_where_a_2m_teacher_lands(schedule, teacher_steps, num_steps):
    student, teacher = by_2m(curved(schedule), noise(num_steps), num_steps, teacher_steps)
    assert (student - teacher).abs().max() < 1e-12
    # of two points in one step to t = 0, both are of first order
    if (num_steps, teacher_steps) == (1, 2):
        return
    ddim, _ = land(curved(schedule), noise(num_steps), num_steps, teacher_steps)
    assert (ddim - teacher).abs().max() > 1e-6


def test_the_points_of_2m_are_as_exact_as_many_more_of_ddim():
    schedule = SCHEDULES["cosine"]
    denoiser, z = mixture(schedule), evenly_spread(8192)
    exact = quantile(z)

    def distance(points, by):
        found = z
        for number in range(8, 0, -1):
            step = torch.full((len(z),), float(number), dtype=torch.float64)
            target = progressive_target(denoiser, found, step, 8, points // 8, by=by)
            pred = predict("x", target, found, *scales(schedule, step / 8, found))
            found = ddim_step(pred, (step - 1) / 8, schedule)
        return float(((found - exact) ** 2).mean().sqrt()) * 1000

    # computed with another program, root mean square times 1000: 10.0 by 64 points of 2M, and by
    # DDIM 27.3 with 64 points and 4.2 with 1024
    assert distance(64, "dpmpp") == pytest.approx(10.0, abs=0.3)
    assert distance(64, "ddim") == pytest.approx(27.3, abs=0.3)
    assert distance(1024, "ddim") == pytest.approx(4.2, abs=0.3)
    assert distance(128, "dpmpp") < distance(1024, "ddim")


def test_a_2m_teacher_stays_finite_where_no_signal_is_left():
    schedule = BetasSection(zero_terminal=True).build()
    step = torch.tensor([1.0, 2.0]).double()
    target = progressive_target(mixture(schedule), noise(2), step, 2, 8, by="dpmpp")
    assert target.isfinite().all()
