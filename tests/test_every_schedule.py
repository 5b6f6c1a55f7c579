"""What every noise schedule does, for every kind and choice of the table:
its published formula and what all share.
"""

from collections.abc import Callable
from math import atan, copysign, cos, exp, log, pi, sqrt, tan
from typing import Any, Literal, get_args, get_origin

import pytest
import torch

from vdiff.config import Section
from vdiff.diffusion import SCHEDULES
from vdiff.diffusion.schedule import Schedule, tabled_betas

Signal = Callable[[float], float]
"""alpha^2 at a time."""


def cosine(grid: int) -> Signal:
    """Nichol & Dhariwal 2021, equation 17; the last beta of the table is 0.999."""

    def free(t: float) -> float:
        return cos((t + 0.008) / 1.008 * pi / 2) ** 2 / cos(0.008 / 1.008 * pi / 2) ** 2

    return lambda t: max(free(t), 0.001 * free(1 - 1 / grid))


def cosine_logsnr(smallest: float, largest: float) -> Signal:
    """Salimans & Ho 2022: logsnr(t) = -2 log tan(a t + b), and alpha^2 is its sigmoid."""
    b = atan(exp(-largest / 2))
    a = atan(exp(-smallest / 2)) - b
    return lambda t: 1 / (1 + tan(a * t + b) ** 2)


def table(betas: list[float]) -> Signal:
    """Ho et al. 2020: the product of 1 - beta; linear between two entries."""
    products = [1.0]
    for beta in betas:
        products.append(products[-1] * (1 - beta))

    def signal(t: float) -> float:
        left = min(int(t * len(betas)), len(betas) - 1)
        share = t * len(betas) - left
        return (1 - share) * products[left] + share * products[left + 1]

    return signal


def spread(first: float, last: float, grid: int) -> list[float]:
    return [first + (last - first) * i / (grid - 1) for i in range(grid)]


def laplace(t: float) -> float:
    """alpha^2 before the betas are limited: the snr follows a Laplace
    distribution (Hang & Gu 2024).
    """
    sign = copysign(1, 0.5 - t)
    snr = exp(-0.5 * sign * log(1 - 2 * abs(0.5 - t) + 1e-6))
    return sqrt(snr / (1 + snr))


def edm(smallest: float, largest: float, deviation: float) -> Signal:
    """Karras et al. 2022: noise of the deviation s on clean pictures is sigma / alpha."""
    start = atan(smallest / deviation)
    slope = atan(largest / deviation) - start
    return lambda t: 1 / (1 + (deviation * tan(start + slope * t)) ** 2)


def vp(beta_min: float, beta_d: float) -> Signal:
    """Song et al. 2021, equation 33."""
    return lambda t: exp(-beta_d * t**2 / 2 - beta_min * t)


EXPECTED: dict[str, list[tuple[dict[str, Any], Signal]]] = {
    "cosine": [({}, cosine(1024)), ({"grid": 8}, cosine(8))],
    "cosine_logsnr": [
        ({}, cosine_logsnr(-20, 20)),
        ({"grid": 16, "smallest": -6, "largest": 9}, cosine_logsnr(-6, 9)),
    ],
    "betas": [
        ({}, table(spread(1e-4, 0.02, 1000))),
        ({"table": "linear", "grid": 20, "first": 0.01, "last": 0.3}, table(spread(0.01, 0.3, 20))),
        (
            {"table": "scaled_linear", "first": 0.00085, "last": 0.012},
            table([root**2 for root in spread(0.00085**0.5, 0.012**0.5, 1000)]),
        ),
        ({"table": (0.1, 0.2, 0.5)}, table([0.1, 0.2, 0.5])),
        (
            {"table": "squaredcos_cap_v2", "grid": 64},
            table([1 - cosine(64)((i + 1) / 64) / cosine(64)(i / 64) for i in range(64)]),
        ),
        (
            {"table": "sigmoid", "grid": 64, "first": 0.001, "last": 0.3},
            table([0.001 + 0.299 / (1 + exp(-place)) for place in spread(-6, 6, 64)]),
        ),
        (
            {"table": "laplace", "grid": 32},
            table([min(1 - laplace((i + 1) / 32) / laplace(i / 32), 0.999) for i in range(32)]),
        ),
    ],
    "edm": [
        ({}, edm(0.002, 80, 0.5)),
        (
            {"grid": 32, "sigma_min": 0.02, "sigma_max": 14, "sigma_data": 1.0},
            edm(0.02, 14, 1.0),
        ),
    ],
    "vp": [({}, vp(0.1, 19.9)), ({"grid": 64, "beta_min": 0.5, "beta_d": 6.0}, vp(0.5, 6.0))],
}
"""For every kind, options and the formula. A schedule without an entry
here fails the tests below.
"""

TOLD: dict[str, Callable[[float, int, float], float]] = {
    "edm": lambda t, grid, signal: log((1 - signal) / signal) / 2,
    "vp": lambda t, grid, signal: (grid - 1) * t,
}
"""(t, T, alpha^2) -> what the network is told; T t - 1 for all others."""

CASES = [
    (kind, options, signal) for kind in SCHEDULES for options, signal in EXPECTED.get(kind, [])
]
every_case = pytest.mark.parametrize(
    ("kind", "options", "signal"), CASES, ids=[f"{kind} {options}" for kind, options, _ in CASES]
)


def built(kind: str, options: dict[str, Any]) -> Schedule:
    section: Any = SCHEDULES.section(kind)(**options)
    return section.build()


def grid_points(schedule: Schedule) -> torch.Tensor:
    return torch.arange(schedule.grid + 1, dtype=torch.float64) / schedule.grid


def literals(section: type[Section], name: str) -> set[Any]:
    """The values that a field's annotation names."""
    annotation = section.model_fields[name].annotation
    kinds = [annotation, *get_args(annotation)]
    return {value for each in kinds if get_origin(each) is Literal for value in get_args(each)}


@pytest.mark.parametrize("kind", list(SCHEDULES))
def test_every_kind_and_every_choice_of_it_has_its_formula(kind: str) -> None:
    section = SCHEDULES.section(kind)
    seen = [section(**options) for options, _ in EXPECTED[kind]]
    for name in section.model_fields:
        assert literals(section, name) <= {getattr(each, name) for each in seen}, name


@every_case
def test_the_signal_is_that_of_the_formula_at_and_between_grid_points(
    kind: str, options: dict[str, Any], signal: Signal
) -> None:
    schedule = built(kind, options)
    t = torch.cat(
        [grid_points(schedule)[1:], torch.linspace(0.001, 1 - 1 / schedule.grid, 301).double()]
    )
    alpha, sigma = schedule.alpha_sigma(t)
    wanted = torch.tensor([signal(float(each)) for each in t], dtype=torch.float64)
    torch.testing.assert_close(alpha**2, wanted, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(sigma**2, 1 - wanted, rtol=1e-9, atol=1e-12)


@every_case
def test_what_all_schedules_share(kind: str, options: dict[str, Any], signal: Signal) -> None:
    schedule = built(kind, options)
    t = grid_points(schedule)
    alpha, sigma = schedule.alpha_sigma(t.float())
    assert (alpha.dtype, sigma.dtype) == (torch.float64, torch.float64)
    assert (alpha**2 + sigma**2 - 1).abs().max() < 1e-14
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() > 0).all()
    assert (alpha[0], sigma[0]) == (1, 0)
    assert torch.equal(
        schedule.alpha_sigma(t[1:].reshape(-1, 1))[0][:, 0], schedule.alpha_sigma(t[1:])[0]
    )
    torch.testing.assert_close(schedule.rho(t[1:]), alpha[1:] / sigma[1:], rtol=1e-6, atol=0)
    torch.testing.assert_close(
        schedule.logsnr(t[1:]), 2 * (alpha[1:] / sigma[1:]).log(), rtol=1e-6, atol=1e-6
    )
    told = TOLD.get(kind, lambda t, grid, signal: grid * t - 1)
    for time in (*t[1:].tolist(), 0.5, 0.123):
        wanted = told(time, schedule.grid, signal(time))
        found = schedule.time_input(torch.tensor(time, dtype=torch.float64))
        assert (found.dtype, found.item()) == (torch.float64, pytest.approx(wanted, abs=1e-9))


@every_case
def test_diffusers_has_the_same_noise_at_every_grid_point(
    kind: str, options: dict[str, Any], signal: Signal
) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    schedule = built(kind, options)
    config = schedule.diffusers_config()
    theirs = diffusers.DDIMScheduler(num_train_timesteps=schedule.grid, **config).alphas_cumprod
    wanted = torch.tensor([signal(float(t)) for t in grid_points(schedule)[1:]])
    torch.testing.assert_close(theirs, wanted, rtol=1e-3, atol=1e-6)


@every_case
def test_its_table_of_betas_gives_it_again(
    kind: str, options: dict[str, Any], signal: Signal
) -> None:
    schedule = built(kind, options)
    betas = tabled_betas(schedule)
    assert betas.shape == (schedule.grid,)
    alpha, _ = schedule.alpha_sigma(grid_points(schedule)[1:])
    torch.testing.assert_close((1 - betas).cumprod(0), alpha**2, rtol=1e-6, atol=1e-15)
