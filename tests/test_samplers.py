"""Samplers: closed forms, first-order convergence, and what every sampler must do on arrival."""

import hashlib
import importlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.toys import SCHEDULES, curved, gaussian, moved, noise
from vdiff.diffusion.condition import NOTHING
from vdiff.diffusion.denoiser import Denoiser, ddim_step, scales
from vdiff.diffusion.prediction import Prediction
from vdiff.diffusion.schedule import BetasSection, CosineLogsnrSchedule, sampling_times
from vdiff.images.images import to_uint8
from vdiff.randomness import Randomness
from vdiff.samplers import SAMPLERS
from vdiff.samplers.ancestral import Ancestral
from vdiff.samplers.ddim import Ddim, DdimSection
from vdiff.samplers.draw import draw
from vdiff.samplers.sampler import scalars, snr_ratio

COSINE = SCHEDULES["cosine"]


def rng(count, first=0):
    return Randomness.for_images(torch.arange(first, first + count))


@pytest.mark.parametrize("kind", list(SAMPLERS))
def test_every_sampler_gives_finite_pictures_of_the_right_shape_and_dtype(kind):
    sampler = SAMPLERS.section(kind)().build()
    images = sampler(curved(COSINE), noise(3, 2, 8, 8).float(), 5, rng(3))
    assert images.shape == (3, 2, 8, 8)
    assert images.dtype == torch.float32
    assert images.isfinite().all()


@pytest.mark.parametrize("kind", list(SAMPLERS))
def test_every_sampler_repeats_itself(kind):
    sampler = SAMPLERS.section(kind)().build()
    first, second = (sampler(curved(COSINE), noise(2), 4, rng(2)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", list(SAMPLERS))
def test_every_sampler_ends_on_the_predicted_picture(kind):
    seen = []
    images = SAMPLERS.section(kind)().build()(
        curved(COSINE), noise(2), 4, rng(2), watch=lambda z, x: seen.append(x)
    )
    assert len(seen) == 4
    assert torch.equal(images, seen[-1])


@pytest.mark.parametrize("kind", list(SAMPLERS))
def test_a_clipped_sampler_stays_within_its_limit(kind):
    sampler = SAMPLERS.section(kind)(clip=0.25).build()
    assert sampler(curved(COSINE), 3 * noise(4), 6, rng(4)).abs().max() <= 0.25


class Far(torch.nn.Module):
    """Predicts the same x everywhere, far outside of [-1, 1]."""

    def forward(self, z, time, condition=NOTHING, keys=None):
        return torch.full_like(z, 3.0)


def states(sampler, denoiser, z, num_steps):
    """z before every step, with its time."""
    seen = [z]
    sampler(denoiser, z, num_steps, rng(len(z)), watch=lambda z, x: seen.append(z))
    return list(zip(sampling_times(num_steps)[:-1], seen[:-1], strict=True))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_with_x_clipped_the_noise_is_what_is_left_of_z(schedule):
    """z_t = alpha_t c + sigma_t eps for a prediction that is clipped to c at every step,
    with the eps of the start.
    """
    z = 2 * noise(4)
    alpha, sigma = scalars(schedule, 1.0)
    eps = (z - alpha * 1.2) / sigma
    assert eps.abs().max() > 2
    for t, found in states(Ddim(clip=1.2), Denoiser(Far(), schedule, "x"), z, 16):
        alpha, sigma = scalars(schedule, t)
        torch.testing.assert_close(found, alpha * 1.2 + sigma * eps, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_with_the_noise_clipped_too_all_of_z_is_drawn_in(schedule):
    z = 2 * noise(4)
    alpha, sigma = scalars(schedule, 1.0)
    eps = ((z - alpha * 1.2) / sigma).clamp(-0.7, 0.7)
    for t, found in states(Ddim(clip=1.2, clip_noise=0.7), Denoiser(Far(), schedule, "x"), z, 16)[
        1:
    ]:
        alpha, sigma = scalars(schedule, t)
        torch.testing.assert_close(found, alpha * 1.2 + sigma * eps, rtol=1e-12, atol=1e-12)


GLOSSY = {
    (0.0, 1.2): "14781f737ada4df97cd951b5690b46687675a5b0af228a937f6455cae05d7d55",
    (0.5, 0.3): "5f3860ec14df4cf8e3cc84daeedf1cdc0fbf4f3f89ac3a7c6278107285f58c0b",
}
"""SHA-256 of 8-bit pictures that `Ddim(eta, clip)` drew at commit 390a5e2,
when `clip` limited the noise too.
"""


@pytest.mark.parametrize(("eta", "limit"), GLOSSY)
def test_pictures_of_before_the_noise_had_a_limit_of_its_own_can_be_had_again(eta, limit):
    """No value is nearer than 7e-4 to where rounding to 8 bits changes."""
    drawn = [
        to_uint8(
            Ddim(eta, limit, clip_noise)(curved(COSINE), 2 * noise(8, 1, 8, 8, seed=5), 8, rng(8))
        )
        for clip_noise in (limit, None)
    ]
    hashes = [hashlib.sha256(pictures.numpy().tobytes()).hexdigest() for pictures in drawn]
    assert hashes[0] == GLOSSY[eta, limit]
    assert hashes[1] != hashes[0]


REFERENCE = Path(__file__).parents[2] / "shared" / "data" / "reference"


@pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="shared/data/reference is not beside the repository"
)
@pytest.mark.parametrize("chain", [(1024, 32, 1), (1024, 8, 1), (64, 8, 2, 1)])
def test_clipped_steps_are_those_that_the_authors_of_tract_recorded(chain, monkeypatch):
    """x is clipped to [-1, 1] there. Not at s = 0, where their schedule keeps some noise."""
    monkeypatch.syspath_prepend(REFERENCE)
    toys = importlib.import_module("toys")
    recorded, seen = np.load(REFERENCE / "tract.npz"), 0
    denoiser = Denoiser(
        toys.ByLogsnr(toys.TEACHER, chain[0]), CosineLogsnrSchedule(chain[0], -20, 20), "x"
    )
    for phase, (fine, coarse) in enumerate(itertools.pairwise(chain)):
        parts = (
            f"tract/precise/{'-'.join(map(str, chain))}/{phase}/{name}"
            for name in ("i", "semi", "xt0", "xt1")
        )
        group, back, before, after = (torch.from_numpy(recorded[part]) for part in parts)
        for number, z, expected in zip(
            group * (fine // coarse) - back, before[:, None], after[:, None], strict=True
        ):
            t = torch.tensor([int(number) / fine], dtype=torch.float64)
            if number == 1:
                continue
            free = denoiser(z, t)
            pred = free.clipped(1.0, z, *scales(denoiser.schedule, t, z))
            found = moved(
                Ddim(), pred, z, float(t), (int(number) - 1) / fine, denoiser.schedule, rng(1)
            )
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
            seen += bool(free.x.abs().max() > 1)
    assert seen >= 15


@pytest.mark.parametrize("kind", list(SAMPLERS))
def test_a_picture_depends_on_its_own_seed_alone(kind):
    sampler = SAMPLERS.section(kind)().build()
    arguments = (curved(COSINE), sampler)
    together = draw(*arguments, range(5), (1, 4, 4), 6, batch_size=5)
    alone = draw(*arguments, range(5), (1, 4, 4), 6, batch_size=1)
    swapped = draw(*arguments, [4, 2], (1, 4, 4), 6)
    assert torch.equal(together, alone)
    assert torch.equal(swapped, together[[4, 2]])
    assert not torch.equal(together[0], together[1])


def exact_std(schedule, std=0.5):
    """Of the probability flow of Gaussian data: z(0) / z(1)."""
    alpha, sigma = scalars(schedule, 1.0)
    return std / (alpha**2 * std**2 + sigma**2) ** 0.5


def test_ddim_converges_with_first_order():
    errors = []
    for num_steps in (4, 8, 16, 32, 64, 128):
        denoiser = gaussian(SCHEDULES["cosine_logsnr"], num_steps, 0.5)
        found = Ddim()(denoiser, torch.ones(1, 1, 1, 1).double(), num_steps, rng(1))
        errors.append(abs(float(found[0, 0, 0, 0]) - exact_std(denoiser.schedule)))
    ratios = [before / after for before, after in itertools.pairwise(errors)]
    assert ratios == pytest.approx([1.88, 1.92, 1.96, 1.98, 1.99], abs=0.005)  # mathematics.md


def test_the_sampler_takes_the_steps_that_distillation_shortens():
    denoiser, z = curved(COSINE), noise(3)
    times = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0], dtype=torch.float64)
    by_hand = z
    for t, s in itertools.pairwise(times):
        by_hand = ddim_step(denoiser(by_hand, t.expand(3)), s.expand(3), COSINE)
    torch.testing.assert_close(Ddim()(denoiser, z, 4, rng(3)), by_hand, rtol=1e-13, atol=1e-13)


def test_fewer_steps_stand_at_the_right_times():
    heard = []

    class Listener(torch.nn.Module):
        def forward(self, z, time, condition=NOTHING, keys=None):
            heard.append(float(time[0]))
            return torch.zeros_like(z)

    Ddim()(Denoiser(Listener(), COSINE, "v"), noise(1), 2, rng(1), model_steps=8)
    assert heard == [1023, 511]


def spread(sampler, num_steps, count=20_000):
    denoiser = gaussian(COSINE, num_steps, 0.5)
    draws = rng(count)
    return float(sampler(denoiser, draws.normal(1, 1, 1).double(), num_steps, draws).std())


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (Ddim(eta=1.0), 0.5),
        (Ddim(eta=0.5), 0.5),
        (Ancestral(0.0), 0.5),
        (Ancestral(1.0), 0.5),
        (Ancestral(0.5), 0.5),
    ],
)
def test_noisy_samplers_of_many_steps_draw_the_data(sampler, expected):
    assert spread(sampler, 256) == pytest.approx(expected, rel=0.04)


def test_ancestral_sampling_with_small_variance_is_ddim_with_eta_one():
    """Their means and variances agree by algebra (Song et al. 2021, section 4.1)."""
    z, draws = noise(4), [rng(4), rng(4)]
    ddim, ancestral = (
        sampler(curved(COSINE), z, 8, random)
        for sampler, random in zip([Ddim(eta=1.0), Ancestral(0.0)], draws, strict=True)
    )
    torch.testing.assert_close(ddim, ancestral, rtol=1e-10, atol=1e-10)


def test_the_variance_of_one_step_is_the_published_one():
    t, s = 0.6, 0.4
    (alpha_t, sigma_t), (alpha_s, sigma_s) = scalars(COSINE, t), scalars(COSINE, s)
    r = (alpha_t / sigma_t) ** 2 / (alpha_s / sigma_s) ** 2
    z = torch.zeros(200_000, 1, 1, 1)
    pred = curved(COSINE)(z[:1] * 0, torch.tensor([t]))
    for mix, variance in [
        (0.0, (1 - r) * sigma_s**2),
        (1.0, (1 - r) * sigma_t**2),
        (0.5, (1 - r) * sigma_s * sigma_t),
    ]:
        found = moved(Ancestral(mix), pred, z, t, s, COSINE, rng(len(z)))
        assert float(found.var()) == pytest.approx(variance, rel=0.02)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_ancestral_mean_is_the_quotient_it_was_before(schedule):
    """alpha_t sigma_s^2 / (sigma_t^2 alpha_s) has no 0 / 0 at alpha_t = 0,
    and is r alpha_s / alpha_t elsewhere.
    """

    class Nothing:
        def normal(self, *shape):
            return torch.zeros(1, *shape)

    one, zero = torch.ones(1, 1, 1, 1).double(), torch.zeros(1, 1, 1, 1).double()
    pred = Prediction(zero, zero, zero)
    for num_steps in (2, 7, 64):
        for t, s in itertools.pairwise(sampling_times(num_steps)[:-1]):
            found = float(moved(Ancestral(1.0), pred, one, t, s, schedule, Nothing()))
            quotient = snr_ratio(schedule, t, s) * (
                scalars(schedule, s)[0] / scalars(schedule, t)[0]
            )
            assert found == pytest.approx(quotient, rel=1e-15, abs=0)
            assert torch.tensor(found).float() == torch.tensor(quotient).float()


@pytest.mark.parametrize("predicts", ["v", "x"])
@pytest.mark.parametrize("kind", list(SAMPLERS))
def test_every_sampler_begins_where_no_signal_is_left(kind, predicts):
    """Zero terminal SNR: given x, z_1 tells nothing of z_s, which is N(alpha_s x, sigma_s^2)."""
    schedule = BetasSection(table=(0.1, 0.3, 0.5, 1.0)).build()
    sampler = SAMPLERS.section(kind)().build()
    images = sampler(curved(schedule, predicts), noise(3), 4, rng(3))
    assert images.isfinite().all()
    if kind == "ancestral":
        pred = curved(schedule, predicts)(noise(3), torch.ones(3))
        first, other = (
            moved(sampler, pred, z, 1.0, 0.75, schedule, rng(3))
            for z in (noise(3), noise(3, seed=1))
        )
        alpha, _ = scalars(schedule, 0.75)
        expected = alpha * pred.x + rng(3).normal(1, 2, 3)  # large variance: (1 - r) sigma_t^2 = 1
        torch.testing.assert_close(first, expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(first, other)


def test_a_sampler_says_its_limits_otherwise_than_when_one_word_meant_both():
    """`clip=1.2` in older pictures and tables was x and noise;
    numbers must not be taken for those.
    """
    assert str(Ddim(0.5)) == "ddim eta=0.5"
    assert str(DdimSection(clip=1.2).build()) == "ddim eta=0.0 clip_x=1.2"
    assert (
        str(DdimSection(clip=1.2, clip_noise=1.1).build())
        == "ddim eta=0.0 clip_x=1.2 clip_noise=1.1"
    )


def test_only_samplers_with_fresh_noise_say_so():
    assert [
        DdimSection().build().is_noisy,
        DdimSection(eta=0.1).build().is_noisy,
        Ancestral(0.0).is_noisy,
    ] == [
        False,
        True,
        True,
    ]
