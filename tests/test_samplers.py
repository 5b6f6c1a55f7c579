"""Samplers: closed forms, first-order convergence, and what every sampler must do on arrival."""

import itertools

import pytest
import torch

from tests.toys import SCHEDULES, curved, gaussian, noise
from vdiff.diffusion.denoiser import Denoiser, ddim_step
from vdiff.diffusion.prediction import Prediction
from vdiff.diffusion.schedule import BetasSection, sampling_times
from vdiff.randomness import Randomness
from vdiff.samplers import SAMPLERS
from vdiff.samplers.ancestral import Ancestral
from vdiff.samplers.ddim import Ddim, DdimSection
from vdiff.samplers.draw import draw
from vdiff.samplers.walk import scalars, snr_ratio

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
    images = SAMPLERS.section(kind)().build()(curved(COSINE), noise(2), 4, rng(2), watch=lambda z, x: seen.append(x))
    assert len(seen) == 4
    assert torch.equal(images, seen[-1])


@pytest.mark.parametrize("kind", list(SAMPLERS))
def test_a_clipped_sampler_stays_within_its_limit(kind):
    sampler = SAMPLERS.section(kind)(clip=0.25).build()
    assert sampler(curved(COSINE), 3 * noise(4), 6, rng(4)).abs().max() <= 0.25


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
        def forward(self, z, time, label=None, keys=None):
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
    [(Ddim(eta=1.0), 0.5), (Ddim(eta=0.5), 0.5), (Ancestral(0.0), 0.5), (Ancestral(1.0), 0.5), (Ancestral(0.5), 0.5)],
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
    for mix, variance in [(0.0, (1 - r) * sigma_s**2), (1.0, (1 - r) * sigma_t**2), (0.5, (1 - r) * sigma_s * sigma_t)]:
        moved = Ancestral(mix).step(pred, z, t, s, COSINE, rng(len(z)))
        assert float(moved.var()) == pytest.approx(variance, rel=0.02)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_ancestral_mean_is_the_quotient_it_was_before(schedule):
    """alpha_t sigma_s^2 / (sigma_t^2 alpha_s) has no 0 / 0 at alpha_t = 0, and is r alpha_s / alpha_t elsewhere."""

    class Nothing:
        def normal(self, *shape):
            return torch.zeros(1, *shape)

    one, zero = torch.ones(1, 1, 1, 1).double(), torch.zeros(1, 1, 1, 1).double()
    pred = Prediction(zero, zero, zero)
    for num_steps in (2, 7, 64):
        for t, s in itertools.pairwise(sampling_times(num_steps)[:-1]):
            found = float(Ancestral(1.0).step(pred, one, t, s, schedule, Nothing()))
            quotient = snr_ratio(schedule, t, s) * (scalars(schedule, s)[0] / scalars(schedule, t)[0])
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
        first, other = (sampler.step(pred, z, 1.0, 0.75, schedule, rng(3)) for z in (noise(3), noise(3, seed=1)))
        alpha, _ = scalars(schedule, 0.75)
        expected = alpha * pred.x + rng(3).normal(1, 2, 3)  # large variance: (1 - r) sigma_t^2 = 1
        torch.testing.assert_close(first, expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(first, other)


def test_only_samplers_with_fresh_noise_say_so():
    assert [DdimSection().build().is_noisy, DdimSection(eta=0.1).build().is_noisy, Ancestral(0.0).is_noisy] == [
        False,
        True,
        True,
    ]
