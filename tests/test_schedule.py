"""Schedules: the published formulas, the tables of DDPM code, and the times of samplers."""

import itertools
from math import cos, log, pi, tan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.toys import GRID, SCHEDULES
from vdiff.diffusion.schedule import (
    BetasSection,
    CosineLogsnrSchedule,
    CosineSchedule,
    sampling_times,
    tabled_betas,
)

T = torch.arange(0, GRID + 1, dtype=torch.float64) / GRID


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_signal_and_noise_add_up_to_one_and_the_signal_falls(schedule):
    alpha, sigma = schedule.alpha_sigma(T)
    assert (alpha**2 + sigma**2 - 1).abs().max() < 1e-14
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() > 0).all()
    assert alpha[-1] > 0


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_time_zero_is_clean_whatever_the_schedule(schedule):
    alpha, sigma = schedule.alpha_sigma(torch.zeros(1))
    assert (alpha, sigma) == (1, 0)
    assert schedule.rho(torch.zeros(1)) == float("inf")


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_logsnr_and_rho_say_the_same(schedule):
    t = T[1:]
    alpha, sigma = schedule.alpha_sigma(t)
    torch.testing.assert_close(
        schedule.logsnr(t), (alpha**2 / sigma**2).log(), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(schedule.rho(t), (schedule.logsnr(t) / 2).exp(), rtol=1e-12, atol=0)


def test_cosine_is_the_clamped_table_of_ddpm_code_at_every_grid_point():
    bar = [cos((i / GRID + 0.008) / 1.008 * pi / 2) ** 2 for i in range(GRID + 1)]
    betas = torch.tensor(
        [min(1 - after / before, 0.999) for before, after in itertools.pairwise(bar)]
    ).double()
    table = torch.tensor(
        [min(1 - b / a, 0.999) for a, b in itertools.pairwise(bar)], dtype=torch.float64
    )
    signal = CosineSchedule(GRID).alpha_sigma(T[1:])[0] ** 2
    torch.testing.assert_close(signal, (1 - table).cumprod(0), rtol=1e-9, atol=0)
    torch.testing.assert_close(tabled_betas(CosineSchedule(GRID)), betas, rtol=1e-6, atol=1e-9)


def test_cosine_ends_where_the_design_says():
    signal = CosineSchedule(1024).alpha_sigma(torch.ones(1))[0] ** 2
    f = [cos((t + 0.008) / 1.008 * pi / 2) ** 2 for t in (0, 1 - 1 / 1024)]
    assert float(signal) == pytest.approx(0.001 * f[1] / f[0], rel=1e-12)
    assert float(signal) == pytest.approx(2.32e-9, rel=5e-3)


def test_a_table_rebuilt_for_every_stage_would_move_the_end():
    ends = [float(CosineSchedule(steps).alpha_sigma(torch.ones(1))[0]) for steps in (1024, 8, 1)]
    # the reason why one grid serves all stages
    assert ends == pytest.approx([4.8e-5, 6.1e-3, 0.032], rel=0.02)


def test_cosine_noise_has_no_cancellation_near_zero():
    t = torch.tensor([1e-9, 1e-6], dtype=torch.float64)
    start = 0.008 / 1.008 * pi / 2
    slope = 2 * tan(start) * pi / 2 / 1.008  # -d alpha^2 / dt at 0
    torch.testing.assert_close(
        CosineSchedule(GRID).alpha_sigma(t)[1] ** 2 / (slope * t),
        torch.ones(2).double(),
        rtol=1e-4,
        atol=0,
    )


def test_cosine_logsnr_goes_from_its_largest_to_its_smallest():
    schedule = CosineLogsnrSchedule(GRID, -20, 20)
    assert float(schedule.logsnr(torch.tensor(1e-12))) == pytest.approx(20, abs=1e-6)
    assert float(schedule.logsnr(torch.ones(()))) == pytest.approx(-20, abs=1e-9)
    assert float(schedule.logsnr(torch.tensor(0.5))) == pytest.approx(
        -2 * log(tan(pi / 4)), abs=1e-9
    )


def test_tables_of_betas_are_met_at_the_grid_and_monotone_between():
    schedule = BetasSection(table=(0.1, 0.2, 0.5)).build()
    signal = schedule.alpha_sigma(torch.tensor([1 / 3, 2 / 3, 1.0], dtype=torch.float64))[0] ** 2
    torch.testing.assert_close(signal, torch.tensor([0.9, 0.72, 0.36], dtype=torch.float64))
    between = schedule.alpha_sigma(torch.linspace(0, 1, 100, dtype=torch.float64))[0]
    assert (between.diff() < 0).all()


@pytest.mark.parametrize("num_steps", [1, 2, 4, 8, 256, 1024])
def test_the_network_hears_the_base_grid_index_at_every_stage(num_steps):
    t = torch.tensor(sampling_times(num_steps)[:-1], dtype=torch.float64)
    heard = CosineSchedule(GRID).time_input(t)
    expected = [i * GRID // num_steps - 1 for i in range(num_steps, 0, -1)]
    assert heard.tolist() == expected
    assert num_steps != 8 or expected[::-1] == [127, 255, 383, 511, 639, 767, 895, 1023]


@given(st.integers(1, 64), st.integers(1, 64))
def test_fewer_steps_visit_times_that_the_model_knows(num_steps, model_steps):
    if num_steps > model_steps:
        with pytest.raises(ValueError):
            sampling_times(num_steps, model_steps)
        return
    times = sampling_times(num_steps, model_steps)
    assert times[0] == 1
    assert times[-1] == 0
    assert all(before > after for before, after in itertools.pairwise(times))
    assert set(times) <= {i / model_steps for i in range(model_steps + 1)}
    if model_steps % num_steps == 0:
        assert times == sampling_times(num_steps)
