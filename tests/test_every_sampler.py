"""What every sampler does in a step, for every kind and choice of the table, in closed form."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.test_every_schedule import literals
from tests.toys import SCHEDULES, curved, noise
from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.diffusion.denoiser import Denoiser, scales
from vdiff.diffusion.prediction import Prediction
from vdiff.diffusion.schedule import Schedule
from vdiff.randomness import Randomness
from vdiff.samplers import SAMPLERS
from vdiff.samplers.dpmpp import FEWEST_OF_THIRD, Dpmpp
from vdiff.samplers.sampler import Point, Predict, Sampler

NUM_STEPS = 4


class Step(NamedTuple):
    """z_s = of_z z_t + of_x x + of_eps eps + sqrt(variance) noise."""

    of_z: float
    of_x: float
    of_eps: float
    variance: float


class Scales(NamedTuple):
    """At the earlier time s and at t."""

    alpha_s: float
    sigma_s: float
    alpha_t: float
    sigma_t: float

    @property
    def share(self) -> float:
        """Of the noise that must come anew: 1 - SNR(t) / SNR(s)."""
        return 1 - (self.alpha_t**2 / self.sigma_t**2) / (self.alpha_s**2 / self.sigma_s**2)


def ddim(section: Any, at: Scales) -> Step:
    """Song et al. 2021, equations 12 and 16, with alpha^2 and sigma^2 for
    their alpha and 1 - alpha.
    """
    variance = (
        section.eta**2 * (at.sigma_s**2 / at.sigma_t**2) * (1 - at.alpha_t**2 / at.alpha_s**2)
    )
    return Step(0, at.alpha_s, (at.sigma_s**2 - variance) ** 0.5, variance)


def ancestral(section: Any, at: Scales) -> Step:
    """Ho et al. 2020, equation 7; the variance is that of the posterior, that of the step,
    or between the two.
    """
    small, large = at.share * at.sigma_s**2, at.share * at.sigma_t**2
    mix = {"small": 0.0, "medium": section.mix, "large": 1.0}[section.variance]
    of_z = (1 - at.share) * at.alpha_s / at.alpha_t
    return Step(of_z, at.share * at.alpha_s, 0, small ** (1 - mix) * large**mix)


EXPECTED: dict[str, tuple[Callable[[Any, Scales], Step], list[dict[str, Any]]]] = {
    "ddim": (ddim, [{}, {"eta": 0.5}, {"eta": 1.0}]),
    "ancestral": (
        ancestral,
        [
            {},
            {"variance": "small"},
            {"variance": "medium"},
            {"variance": "medium", "mix": 0.2},
            {"variance": "large"},
        ],
    ),
}
"""For every kind, its step and the options it is tried with.
A sampler without an entry here fails the tests below.
"""

SOLVERS: dict[str, list[dict[str, Any]]] = {
    "dpmpp": [
        {"grid": "uniform"},
        {"order": 2, "grid": "logsnr"},
        {"grid": "karras"},
        {"order": 3},
    ],
    "unipc": [{"grid": "uniform"}, {"grid": "logsnr"}, {"grid": "karras"}],
    "ipndm": [{"grid": "karras"}, {"grid": "uniform"}, {"grid": "logsnr"}],
    "heun": [{"grid": "uniform"}, {"grid": "logsnr"}, {"grid": "karras"}],
}
"""Kinds whose steps depend on those before: `test_solvers` has what they do in closed form."""

OPTIONS = {kind: options for kind, (_, options) in EXPECTED.items()} | SOLVERS
CASES = [(kind, options) for kind in SAMPLERS for options in OPTIONS.get(kind, [{}])]


def cases(*kinds: str) -> pytest.MarkDecorator:
    chosen = [case for case in CASES if case[0] in kinds]
    names = [f"{kind} {options}" for kind, options in chosen]
    return pytest.mark.parametrize(("kind", "options"), chosen, ids=names)


every_case = cases(*SAMPLERS)
every_schedule = pytest.mark.parametrize("name", SCHEDULES)


class Noted(Denoiser):
    """Remembers what it was asked and what it answered."""

    def __call__(
        self, z: Tensor, t: Tensor, condition: Condition = NOTHING, rng: Any = None
    ) -> Prediction:
        pred = super().__call__(z, t, condition, rng)
        self.__dict__.setdefault("seen", []).append((z, t, condition, pred))
        return pred


def noted(name: str) -> Noted:
    denoiser = curved(SCHEDULES[name])
    return Noted(denoiser.network, denoiser.schedule, "v")


def built(kind: str, options: dict[str, Any]) -> tuple[Any, Sampler]:
    section: Any = SAMPLERS.section(kind)(**options)
    return section, section.build()


def steps_of(sampler: Sampler) -> int:
    """As many as show all that it does: of few, the third order is the second."""
    if isinstance(sampler, Dpmpp) and sampler.order == 3:
        return FEWEST_OF_THIRD
    return NUM_STEPS


def rng(count: int) -> Randomness:
    return Randomness.for_images(torch.arange(count))


@pytest.mark.parametrize("kind", list(SAMPLERS))
def test_every_kind_and_every_choice_of_it_has_its_step(kind: str) -> None:
    section = SAMPLERS.section(kind)
    seen = [section(**options) for options in OPTIONS[kind]]
    assert seen
    for name in section.model_fields:
        assert literals(section, name) <= {getattr(each, name) for each in seen}, name


@every_schedule
@cases(*EXPECTED)
def test_every_step_is_the_published_one(kind: str, options: dict[str, Any], name: str) -> None:
    section, sampler = built(kind, options)
    denoiser, random, arrived = noted(name), rng(3), []
    images = sampler(
        denoiser, noise(3), NUM_STEPS, rng(3), watch=lambda z, x: arrived.append((z, x))
    )
    times = [i / NUM_STEPS for i in range(NUM_STEPS, -1, -1)]
    assert len(arrived) == len(denoiser.seen) == NUM_STEPS
    for (t, s), (z, asked, _, pred), (moved, x) in zip(
        itertools.pairwise(times), denoiser.seen, arrived, strict=True
    ):
        assert asked.tolist() == [t] * 3
        assert torch.equal(x, pred.x)
        if s == 0:
            assert torch.equal(moved, pred.x)
            continue
        at = Scales(
            *(
                float(each)
                for time in (s, t)
                for each in scales(denoiser.schedule, torch.tensor([time]), z)
            )
        )
        step = EXPECTED[kind][0](section, at)
        wanted = step.of_z * z + step.of_x * pred.x + step.of_eps * pred.eps
        if step.variance > 0:
            wanted = wanted + step.variance**0.5 * random.normal(*z.shape[1:]).to(z)
        torch.testing.assert_close(moved, wanted, rtol=1e-9, atol=1e-9)
    assert torch.equal(images, arrived[-1][0])


@every_case
def test_a_sampler_begins_with_the_noise_it_is_given_and_goes_on_from_where_it_is(
    kind: str, options: dict[str, Any]
) -> None:
    _, sampler = built(kind, options)
    denoiser, arrived, z = noted("cosine"), [], noise(2)
    sampler(denoiser, z, steps_of(sampler), rng(2), watch=lambda z, x: arrived.append(z))
    asked = [seen[0] for seen in denoiser.seen][:: sampler.calls_per_step]
    assert torch.equal(asked[0], z)
    assert all(
        torch.equal(before, after) for before, after in zip(arrived[:-1], asked[1:], strict=True)
    )


@every_case
def test_conditions_reach_the_network_at_every_step(kind: str, options: dict[str, Any]) -> None:
    _, sampler = built(kind, options)
    for condition in (Condition(torch.tensor([1, 0])), NOTHING):
        denoiser = noted("cosine")
        steps = steps_of(sampler)
        sampler(denoiser, noise(2), steps, rng(2), condition)
        assert [seen[2] is condition for seen in denoiser.seen] == [True] * sampler.calls(steps)


@every_case
def test_a_sampler_says_whether_fresh_noise_enters_and_nothing_is_learned_from_it(
    kind: str, options: dict[str, Any]
) -> None:
    section, sampler = built(kind, options)
    at = Scales(0.8, 0.6, 0.6, 0.8)
    is_noisy = kind in EXPECTED and EXPECTED[kind][0](section, at).variance > 0
    assert sampler.is_noisy == is_noisy
    z = noise(2).requires_grad_(True)
    steps = steps_of(sampler)
    assert not sampler(noted("cosine"), z, steps, rng(2)).requires_grad
    one, other = (
        sampler(noted("cosine"), noise(2), steps, Randomness.for_images(torch.tensor([0, n])))
        for n in (1, 2)
    )
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1]) == (not sampler.is_noisy)


def test_samplers_that_draw_other_pictures_have_other_names() -> None:
    names = [str(built(kind, options)[1]) for kind, options in CASES]
    same = {str(built("ancestral", {})[1]), str(built("ancestral", {"variance": "large"})[1])}
    assert len(same) == 1
    assert len(set(names)) == len(names) - 1
    assert all(name.split()[0] == kind for name, (kind, _) in zip(names, CASES, strict=True))


class Plain(Sampler):
    """As little as a sampler can be."""

    def step(
        self, here: Point, s: float, before: Sequence[Point], predict: Predict, rng: Randomness
    ) -> Tensor:
        return here.prediction.x

    def __str__(self) -> str:
        return "plain"


def test_a_sampler_that_says_nothing_about_it_adds_no_noise_clips_nothing_and_makes_one_call() -> (
    None
):
    assert not Plain().is_noisy
    assert Plain().clip is None
    assert Plain().calls_per_step == 1
    assert Plain().calls(5) == 5
    assert not Plain().needs_denoiser
    assert torch.equal(
        Plain()(noted("cosine"), noise(2), 1, rng(2)), noted("cosine")(noise(2), torch.ones(2)).x
    )


class Looking(Plain):
    """Asks for two earlier points, makes a second call, and stands at times of its own."""

    num_remembered = 2
    calls_per_step = 2

    def __init__(self) -> None:
        self.seen: list[tuple[Point, float, list[Point], Prediction]] = []

    def step(
        self, here: Point, s: float, before: Sequence[Point], predict: Predict, rng: Randomness
    ) -> Tensor:
        self.seen.append((here, s, list(before), predict(here.z + 1, here.t)))
        return here.z / 2

    def times(
        self, num_steps: int, schedule: Schedule, model_steps: int | None = None
    ) -> list[float]:
        return [(i / num_steps) ** 2 for i in range(num_steps, -1, -1)]


def test_a_step_is_told_the_points_before_it_of_its_own_batch_alone() -> None:
    sampler, denoiser = Looking(), noted("cosine")
    for _ in range(2):
        sampler.seen.clear()
        denoiser.__dict__["seen"] = []
        sampler(denoiser, noise(2), NUM_STEPS, rng(2))
        heres = [here for here, *_ in sampler.seen]
        assert [here.t for here in heres] == [1, 9 / 16, 1 / 4, 1 / 16]
        assert [s for _, s, *_ in sampler.seen] == [9 / 16, 1 / 4, 1 / 16, 0]
        for number, (_, _, before, _) in enumerate(sampler.seen):
            expected = heres[max(number - 2, 0) : number]
            assert len(before) == len(expected)
            assert all(found is wanted for found, wanted in zip(before, expected, strict=True))
        assert len(denoiser.seen) == NUM_STEPS * sampler.calls_per_step


def test_further_calls_see_the_condition_and_are_clipped_like_the_first() -> None:
    sampler, denoiser, condition = Looking(), noted("cosine"), Condition(torch.tensor([1, 0]))
    sampler.clip = 0.25
    sampler(denoiser, 3 * noise(2), NUM_STEPS, rng(2), condition)
    assert [seen[2] is condition for seen in denoiser.seen] == [True] * (2 * NUM_STEPS)
    assert max(float(seen[3].x.abs().max()) for seen in denoiser.seen) > 0.25
    for here, *_, further in sampler.seen:
        for pred in (here.prediction, further):
            assert float(pred.x.abs().max()) <= 0.25


class Mending(Plain):
    """Halves every z that it reaches, once the network has seen it."""

    num_remembered = 1

    def __init__(self) -> None:
        self.seen: list[tuple[Point, list[Point]]] = []

    def corrected(self, here: Point, before: Sequence[Point], predict: Predict) -> Tensor:
        return here.z / 2

    def step(
        self, here: Point, s: float, before: Sequence[Point], predict: Predict, rng: Randomness
    ) -> Tensor:
        self.seen.append((here, list(before)))
        return here.z + 1


def test_a_corrected_z_is_what_this_step_and_later_ones_see_and_costs_no_call() -> None:
    sampler, denoiser, z = Mending(), noted("cosine"), noise(2)
    sampler(denoiser, z, 3, rng(2))
    reached = [z, z / 2 + 1, (z / 2 + 1) / 2 + 1]
    for (here, _), each, asked in zip(sampler.seen, reached, denoiser.seen, strict=True):
        torch.testing.assert_close(asked[0], each)
        torch.testing.assert_close(here.z, each / 2)
        assert torch.equal(here.prediction.x, asked[3].x)
    assert sampler.seen[2][1][0] is sampler.seen[1][0]
