"""What solvers promise: their published steps, their orders, and where they lead exactly."""

from collections.abc import Callable
from itertools import pairwise
from math import atan2, exp, expm1, factorial, log
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from tests.mixtures import evenly_spread, mixture, quantile
from tests.toys import SCHEDULES, Curved, curved, noise
from vdiff.cli.completion import GRIDS
from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.diffusion.denoiser import Denoiser, scales
from vdiff.diffusion.prediction import Prediction, predict
from vdiff.diffusion.schedule import BetasSection, EdmSchedule, Schedule, VpSchedule
from vdiff.randomness import Randomness
from vdiff.samplers import SAMPLERS
from vdiff.samplers.ddim import Ddim
from vdiff.samplers.grids import Grid, grid_times
from vdiff.samplers.sampler import Sampler, scalars

KINDS = ("dpmpp", "unipc", "ipndm", "heun")
EVERY = {**SCHEDULES, "edm": EdmSchedule(1000, 0.002, 80, 0.5), "vp": VpSchedule(1000, 0.1, 19.9)}
COSINE = SCHEDULES["cosine"]


def built(kind: str, **options: Any) -> Sampler:
    sampler: Sampler = SAMPLERS.section(kind)(**options).build()
    return sampler


def drawn(sampler: Sampler, denoiser: Denoiser, z: Tensor, num_steps: int) -> Tensor:
    return sampler(denoiser, z, num_steps, Randomness.for_images(torch.arange(len(z))))


# grids


@pytest.mark.parametrize("name", EVERY)
def test_a_schedule_finds_the_time_of_a_ratio_again(name: str) -> None:
    schedule = EVERY[name]
    for t in (1e-3, 0.01, 0.1, 0.5, 0.9, 0.99):
        rho = float(schedule.rho(torch.tensor(t, dtype=torch.float64)))
        assert schedule.inverse(rho) == pytest.approx(t, rel=1e-9)
        # what a schedule without a formula has
        assert Schedule._inverse(schedule, rho) == pytest.approx(t, rel=1e-9)
    assert schedule.inverse(0) == 1
    assert 0 < schedule.inverse(1e9) < 1e-3


@pytest.mark.parametrize("name", EVERY)
def test_grids_begin_in_noise_and_end_where_they_say(name: str) -> None:
    schedule = EVERY[name]

    def level(t: float) -> float:
        alpha, sigma = scalars(schedule, t)
        return sigma / alpha

    assert grid_times("uniform", 4, schedule) == [1, 0.75, 0.5, 0.25, 0]
    most = min(80, level(1.0))
    for steps in (2, 8, 200):
        times = grid_times("logsnr", steps, schedule)
        assert level(times[0]) == pytest.approx(most)
        assert times[-2] == pytest.approx(1 / max(64, steps))
        gaps = [log(level(t) / level(s)) for t, s in pairwise(times[:-1])]
        assert gaps == pytest.approx([gaps[0]] * (steps - 1))
    times = grid_times("karras", 18, schedule)
    # of Karras et al. 2022, equation 5, but for a level that the base grid does not have
    least = max(0.002, level(1 / schedule.grid))
    ends = most ** (1 / 7), least ** (1 / 7)
    wanted = [(ends[0] + i / 17 * (ends[1] - ends[0])) ** 7 for i in range(18)]
    assert [level(t) for t in times[:-1]] == pytest.approx(wanted)
    assert get_args(Grid) == GRIDS


# the published steps, in the letters of their papers


Way = Callable[[Denoiser, Tensor, list[float]], Tensor]


def asked(denoiser: Denoiser, z: Tensor, t: float) -> Prediction:
    return denoiser(z, torch.full((len(z),), t, dtype=torch.float64))


def levels(times: list[float]) -> list[float]:
    return [sigma / alpha for alpha, sigma in (scalars(COSINE, t) for t in times)]


def dpmpp_2m(denoiser: Denoiser, z: Tensor, times: list[float]) -> Tensor:
    """In x / alpha and sigma / alpha, as k-diffusion has it."""
    sigmas, old, h_last = levels(times), None, 0.0
    y = z / scalars(COSINE, times[0])[0]
    for i, t in enumerate(times[:-1]):
        x = asked(denoiser, y * scalars(COSINE, t)[0], t).x
        if sigmas[i + 1] == 0:
            return x
        h = log(sigmas[i] / sigmas[i + 1])
        towards = x
        if old is not None:
            r = h_last / h
            towards = (1 + 1 / (2 * r)) * x - 1 / (2 * r) * old
        y = sigmas[i + 1] / sigmas[i] * y - expm1(-h) * towards
        old, h_last = x, h
    raise AssertionError


def dpmpp_3m(denoiser: Denoiser, z: Tensor, times: list[float]) -> Tensor:
    """The integral of the parabola through the last three pictures, by its Taylor coefficients."""
    marks = [-log(level) if level > 0 else 0.0 for level in levels(times)]
    seen: list[tuple[float, Tensor]] = []
    for i, t in enumerate(times[:-1]):
        seen.append((marks[i], asked(denoiser, z, t).x))
        x = seen[-1][1]
        if times[i + 1] == 0:
            return x
        h = marks[i + 1] - marks[i]
        (alpha_s, sigma_s), (_, sigma_t) = scalars(COSINE, times[i + 1]), scalars(COSINE, t)
        slope, bend, p1 = torch.zeros_like(x), torch.zeros_like(x), expm1(-h)
        if len(seen) == 2:
            slope = (x - seen[-2][1]) / (seen[-1][0] - seen[-2][0])
            z = sigma_s / sigma_t * z - alpha_s * p1 * (x + h / 2 * slope)
            continue
        if len(seen) > 2:
            points = torch.tensor([[m - marks[i], (m - marks[i]) ** 2] for m, _ in seen[-3:-1]])
            values = torch.stack([value - x for _, value in seen[-3:-1]])
            found = torch.linalg.solve(points.double(), values.flatten(1)).view_as(values)
            # half of the second derivative, as its authors run it
            slope, bend = found[0], found[1]
        p2 = p1 + h
        p3 = p2 - h**2 / 2
        z = sigma_s / sigma_t * z - alpha_s * (p1 * x - p2 * slope + p3 * bend)
    raise AssertionError


def unipc_2(denoiser: Denoiser, z: Tensor, times: list[float]) -> Tensor:
    """The corrector's weights from its linear system, as Zhao et al. 2023 have it."""
    marks = [-log(level) if level > 0 else 0.0 for level in levels(times)]
    seen: list[Tensor] = []
    start, reached = z, z
    for i, t in enumerate(times[:-1]):
        new = asked(denoiser, reached, t).x
        if i > 0:
            rs = [(marks[i - 2] - marks[i - 1]) / (marks[i] - marks[i - 1])] if i > 1 else []
            start = bh2(start, seen, new, marks[i] - marks[i - 1], rs, times[i - 1], t)
        seen.append(new)
        s = times[i + 1]
        if s == 0:
            return new
        h = marks[i + 1] - marks[i]
        towards = new
        if i > 0:
            r = (marks[i - 1] - marks[i]) / h
            towards = new + (seen[-2] - new) / r / 2
        (alpha_s, sigma_s), (_, sigma_t) = scalars(COSINE, s), scalars(COSINE, t)
        reached = sigma_s / sigma_t * start - alpha_s * expm1(-h) * towards
    raise AssertionError


def bh2(
    start: Tensor, seen: list[Tensor], new: Tensor, h: float, rs: list[float], t: float, s: float
) -> Tensor:
    (alpha_s, sigma_s), (_, sigma_t) = scalars(COSINE, s), scalars(COSINE, t)
    ends = [*rs, 1.0]
    phi, b = expm1(-h) / -h - 1, []
    for k in range(1, len(ends) + 1):
        b.append(factorial(k) * phi / expm1(-h))
        phi = phi / -h - 1 / factorial(k + 1)
    matrix = torch.tensor([[r**k for r in ends] for k in range(len(ends))], dtype=torch.float64)
    weights = torch.linalg.solve(matrix, torch.tensor(b, dtype=torch.float64)).tolist()
    if len(ends) == 1:
        weights = [0.5]
    x = seen[-1]
    differences = [(other - x) / r for other, r in zip([*seen[-2:-1], new], ends, strict=True)]
    total = sum(w * d for w, d in zip(weights, differences, strict=True))
    return sigma_s / sigma_t * start - alpha_s * expm1(-h) * (x + total)


def ipndm_4(denoiser: Denoiser, z: Tensor, times: list[float]) -> Tensor:
    table = {1: [1], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12]}
    table[4] = [55 / 24, -59 / 24, 37 / 24, -9 / 24]
    sigmas, seen = levels(times), list[Tensor]()
    y = z / scalars(COSINE, times[0])[0]
    for i, t in enumerate(times[:-1]):
        pred = asked(denoiser, y * scalars(COSINE, t)[0], t)
        if times[i + 1] == 0:
            return pred.x
        seen = [pred.eps, *seen[:3]]
        mixed = sum(c * eps for c, eps in zip(table[len(seen)], seen, strict=True))
        y = y + (sigmas[i + 1] - sigmas[i]) * mixed
    raise AssertionError


def heun_of_edm(denoiser: Denoiser, z: Tensor, times: list[float]) -> Tensor:
    """Karras et al. 2022, algorithm 1 without fresh noise."""
    sigmas = levels(times)
    y = z / scalars(COSINE, times[0])[0]
    for i, (t, s) in enumerate(pairwise(times)):
        slope = (y - asked(denoiser, y * scalars(COSINE, t)[0], t).x) / sigmas[i]
        there = y + (sigmas[i + 1] - sigmas[i]) * slope
        if s == 0:
            return there
        after = (there - asked(denoiser, there * scalars(COSINE, s)[0], s).x) / sigmas[i + 1]
        y = y + (sigmas[i + 1] - sigmas[i]) * (slope + after) / 2
    raise AssertionError


def heun_in_angle(denoiser: Denoiser, z: Tensor, times: list[float]) -> Tensor:
    angles = [atan2(sigma, alpha) for alpha, sigma in (scalars(COSINE, t) for t in times)]
    for i, (t, s) in enumerate(pairwise(times)):
        pred = asked(denoiser, z, t)
        if s == 0:
            return pred.x
        turn = torch.tensor(angles[i + 1] - angles[i], dtype=torch.float64)
        v = asked(denoiser, turn.cos() * z + turn.sin() * pred.v, s).v
        z = z + turn * (pred.v + v) / 2
    raise AssertionError


PUBLISHED: list[tuple[str, dict[str, Any], Way]] = [
    ("dpmpp", {"grid": "uniform"}, dpmpp_2m),
    ("dpmpp", {"grid": "logsnr"}, dpmpp_2m),
    ("dpmpp", {"order": 3, "grid": "logsnr"}, dpmpp_3m),
    ("unipc", {"grid": "uniform"}, unipc_2),
    ("unipc", {"grid": "logsnr"}, unipc_2),
    ("ipndm", {"grid": "karras"}, ipndm_4),
    ("heun", {"grid": "karras"}, heun_of_edm),
    ("heun", {"grid": "uniform"}, heun_in_angle),
]


@pytest.mark.parametrize(
    ("kind", "options", "way"), PUBLISHED, ids=[f"{k} {o}" for k, o, _ in PUBLISHED]
)
def test_a_solver_goes_the_published_way(kind: str, options: dict[str, Any], way: Way) -> None:
    sampler, denoiser, z = built(kind, **options), curved(COSINE), noise(3)
    for steps in (12, 20):
        wanted = way(denoiser, z, sampler.times(steps, COSINE))
        found = drawn(sampler, denoiser, z, steps)
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


# calls


class Counted(Curved):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(
        self, z: Tensor, time: Tensor, condition: Condition = NOTHING, keys: Tensor | None = None
    ) -> Tensor:
        self.count += 1
        return super().forward(z, time, condition, keys)


@pytest.mark.parametrize(
    ("kind", "calls"), [("unipc", 8), ("dpmpp", 8), ("ipndm", 8), ("heun", 15)]
)
def test_calls_are_told_as_they_are_made(kind: str, calls: int) -> None:
    network = Counted()
    drawn(built(kind), Denoiser(network, COSINE, "v"), noise(2), 8)
    assert network.count == built(kind).calls(8) == calls


def test_the_third_order_begins_at_eleven_steps() -> None:
    model, z = curved(COSINE), noise(1)
    second, third = built("dpmpp"), built("dpmpp", order=3)
    assert torch.equal(drawn(third, model, z, 10), drawn(second, model, z, 10))
    assert not torch.equal(drawn(third, model, z, 11), drawn(second, model, z, 11))


@pytest.mark.parametrize("kind", KINDS)
def test_a_solver_knows_no_times_of_a_student(kind: str) -> None:
    assert built(kind).needs_denoiser
    with pytest.raises(ValueError, match="for models that know all times, not 8"):
        built(kind).times(8, COSINE, 8)


# theorems


class Gaussian(Denoiser):
    """E[x | z] where pixels are N(0.2, 0.5^2)."""

    def __call__(
        self, z: Tensor, t: Tensor, condition: Condition = NOTHING, rng: object = None
    ) -> Prediction:
        alpha, sigma = scales(self.schedule, t, z)
        gain = alpha * 0.25 / (alpha**2 * 0.25 + sigma**2)
        return predict("x", 0.2 + gain * (z - 0.2 * alpha), z, alpha, sigma)


class Constant(Denoiser):
    """The one picture that there is, whatever it is asked."""

    def __call__(
        self, z: Tensor, t: Tensor, condition: Condition = NOTHING, rng: object = None
    ) -> Prediction:
        alpha, sigma = scales(self.schedule, t, z)
        return predict("x", torch.full_like(z, 0.3), z, alpha, sigma)


class Evenly(Schedule):
    """log rho falls evenly from 2 at t = 0 to -4.38 at t = 1: the uniform grid is even in it."""

    def powers(self, t: Tensor) -> tuple[Tensor, Tensor]:
        mark = 2 - 6.38 * t
        return torch.sigmoid(2 * mark), torch.sigmoid(-2 * mark)

    def diffusers_config(self) -> dict[str, Any]:
        return {}


def last_noisy(sampler: Sampler, denoiser: Denoiser, z: Tensor, steps: int) -> Tensor:
    """Where the last step but one leads: t = 1 / steps."""
    seen: list[Tensor] = []
    rng = Randomness.for_images(torch.arange(len(z)))
    sampler(denoiser, z, steps, rng, watch=lambda z, x: seen.append(z))
    return seen[-2]


@pytest.mark.parametrize(
    ("kind", "options", "order"),
    [
        ("ddim", {}, 1),
        ("dpmpp", {}, 2),
        # with the half of a second derivative that its authors run
        ("dpmpp", {"order": 3}, 2),
        ("unipc", {}, 3),
        ("ipndm", {}, 2),
        ("heun", {}, 2),
    ],
)
def test_twice_as_many_steps_divide_the_error_by_two_to_the_order(
    kind: str, options: dict[str, Any], order: int
) -> None:
    schedule = Evenly(1024)
    denoiser = Gaussian(torch.nn.Identity(), schedule, "x")
    grid = {} if kind == "ddim" else {"grid": "uniform"}
    sampler, z = built(kind, **options, **grid), noise(4)

    def error(steps: int) -> float:
        found = last_noisy(sampler, denoiser, z, steps)
        spread = [
            (a**2 * 0.25 + s**2) ** 0.5 for a, s in (scalars(schedule, t) for t in (1.0, 1 / steps))
        ]
        ends = [0.2 * scalars(schedule, t)[0] for t in (1.0, 1 / steps)]
        exact = ends[1] + spread[1] / spread[0] * (z - ends[0])
        return float((found - exact).abs().max())

    ratio = error(128) / error(256)
    assert 2**order * 0.85 < ratio < 2**order * 1.2


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", ["dpmpp", "unipc"])
def test_the_way_is_exact_where_the_prediction_stays(kind: str, grid: str) -> None:
    denoiser = Constant(torch.nn.Identity(), COSINE, "x")
    sampler, z = built(kind, grid=grid), noise(4)
    seen: list[Tensor] = []
    times = sampler.times(8, COSINE)
    rng = Randomness.for_images(torch.arange(4))
    sampler(denoiser, z, 8, rng, watch=lambda z, x: seen.append(z))
    (alpha, sigma), *rest = [scalars(COSINE, t) for t in times]
    eps = (z - alpha * 0.3) / sigma
    for moved, (alpha, sigma) in zip(seen, rest, strict=True):
        torch.testing.assert_close(moved, alpha * 0.3 + sigma * eps, rtol=1e-12, atol=1e-12)


DISTANCES = {
    ("ddim", ""): {8: 101.9, 32: 44.0},
    ("dpmpp", "uniform"): {8: 59.8, 32: 19.1},
    ("unipc", "uniform"): {8: 56.5, 32: 18.8},
    ("dpmpp", "logsnr"): {8: 68.4, 32: 8.3},
    ("unipc", "logsnr"): {8: 50.8, 32: 6.0},
    ("unipc", "karras"): {8: 106.9, 32: 5.1},
    ("ipndm", "karras"): {8: 69.9, 32: 6.9},
    ("heun", "uniform"): {8: 46.3, 32: 14.9},
    ("heun", "karras"): {8: 142.4, 32: 13.0},
}
"""Root mean square distance to the exact map, times 1000. Those on the uniform grid are the numbers
of an independent program (DDIM 102 and 44, 2M 60 and 19, UniPC 57 and 19); all are of this one.
"""


@pytest.mark.parametrize(("kind", "grid"), DISTANCES)
def test_solvers_come_near_the_exact_map_of_a_mixture(kind: str, grid: str) -> None:
    z = evenly_spread(2048)
    exact = quantile(z)
    options = {"grid": grid} if grid else {}
    for steps, told in DISTANCES[kind, grid].items():
        found = drawn(built(kind, **options), mixture(COSINE), z, steps)
        assert 1000 * float(((found - exact) ** 2).mean().sqrt()) == pytest.approx(told, abs=0.06)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_solver_ends_at_the_exact_map_of_a_mixture(kind: str, grid: str) -> None:
    z = evenly_spread(512)
    few = drawn(Ddim(), mixture(COSINE), z, 256)
    found = drawn(built(kind, grid=grid), mixture(COSINE), z, 256)
    distance = [float(((each - quantile(z)) ** 2).mean().sqrt()) for each in (found, few)]
    assert distance[0] < 0.0015
    assert distance[0] < distance[1] / 5


def test_a_grid_in_log_rho_does_not_begin_at_the_end_of_the_cosine_schedule() -> None:
    alpha, sigma = scalars(COSINE, 1.0)
    assert log(alpha / sigma) == pytest.approx(-9.94, abs=0.01)
    for grid in ("logsnr", "karras"):
        alpha, sigma = scalars(COSINE, built("unipc", grid=grid).times(8, COSINE)[0])
        assert alpha / sigma == pytest.approx(exp(-4.382), rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", GRIDS)
def test_nothing_blows_up_where_no_signal_is_left_at_the_end(kind: str, grid: str) -> None:
    from vdiff.diffusion.schedule import BetasSection

    schedule = BetasSection(zero_terminal=True).build()
    assert scalars(schedule, 1.0)[0] == 0
    found = drawn(built(kind, grid=grid), mixture(schedule), evenly_spread(64), 16)
    assert found.isfinite().all()
    if grid != "karras":
        assert float((found - quantile(evenly_spread(64))).abs().mean()) < 0.1


@pytest.mark.parametrize("grid", ["logsnr", "karras"])
@pytest.mark.parametrize(
    "betas",
    [
        {"grid": 1000, "first": 0.00085, "last": 0.006, "table": "scaled_linear"},
        {"grid": 10, "first": 1e-4, "last": 0.03},
        {"grid": 50, "first": 1e-4, "last": 0.005},
    ],
    ids=["scaled", "ten", "fifty"],
)
def test_a_table_that_ends_with_little_noise_has_grids(betas: dict[str, Any], grid: str) -> None:
    """Its last level comes back a rounding above the table's own last value."""
    schedule = BetasSection.model_validate(betas).build()
    for steps in range(1, 40):
        times = built("unipc", grid=grid).times(steps, schedule)
        assert times[0] == pytest.approx(1, abs=1e-9)
        assert all(0 <= later < earlier <= 1 for earlier, later in pairwise(times))
