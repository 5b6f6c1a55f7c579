"""x, eps and v: each gives the others."""

import pytest
import torch

from tests.toys import SCHEDULES, noise
from vdiff.diffusion.denoiser import scales
from vdiff.diffusion.prediction import predict

PREDICTS = ["v", "x", "eps"]


def noisy(schedule, times=(0.01, 0.3, 0.7, 0.99)):
    t = torch.tensor(times, dtype=torch.float64)
    x, eps = noise(len(times)), noise(len(times), seed=1)
    alpha, sigma = scales(schedule, t, x)
    return x, eps, alpha * eps - sigma * x, alpha * x + sigma * eps, alpha, sigma


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("predicts", PREDICTS)
def test_the_truth_about_one_is_the_truth_about_all(schedule, predicts):
    x, eps, v, z, alpha, sigma = noisy(schedule)
    pred = predict(predicts, {"x": x, "eps": eps, "v": v}[predicts], z, alpha, sigma)
    for found, expected in zip(pred, (x, eps, v), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("first", PREDICTS)
@pytest.mark.parametrize("second", PREDICTS)
def test_round_trips_return_to_the_prediction(first, second):
    _, _, _, z, alpha, sigma = noisy(SCHEDULES["cosine"])
    pred = predict(first, noise(4, seed=2), z, alpha, sigma)
    again = predict(second, getattr(pred, second), z, alpha, sigma)
    for found, expected in zip(again, pred, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(alpha * pred.x + sigma * pred.eps, z)


def test_clipping_keeps_x_within_the_limit_and_still_adds_up_to_z():
    _, _, _, z, alpha, sigma = noisy(SCHEDULES["cosine"])
    pred = predict("v", 3 * noise(4, seed=3), z, alpha, sigma)
    clipped = pred.clipped(0.5, z, alpha, sigma)
    assert pred.x.abs().max() > 1
    assert torch.equal(clipped.x, pred.x.clamp(-0.5, 0.5))
    torch.testing.assert_close(alpha * clipped.x + sigma * clipped.eps, z)
    torch.testing.assert_close(clipped.v, alpha * clipped.eps - sigma * clipped.x)
    assert clipped.eps.abs().max() > 1.5  # it is not clipped itself


def test_clipping_the_noise_leaves_the_picture_and_makes_v_of_both():
    _, _, _, z, alpha, sigma = noisy(SCHEDULES["cosine"])
    pred = predict("v", 3 * noise(4, seed=3), z, alpha, sigma)
    clipped = pred.with_noise_clipped(0.5, alpha, sigma)
    assert torch.equal(clipped.x, pred.x)
    assert torch.equal(clipped.eps, pred.eps.clamp(-0.5, 0.5))
    assert pred.eps.abs().max() > 1
    torch.testing.assert_close(clipped.v, alpha * clipped.eps - sigma * pred.x)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_clipping_makes_no_picture_of_what_is_no_number(bad):
    _, _, _, z, alpha, sigma = noisy(SCHEDULES["cosine"])
    pred = predict("x", torch.full_like(z, bad), z, alpha, sigma)
    assert pred.clipped(1.0, z, alpha, sigma).x.isnan().all()
    assert pred.with_noise_clipped(1.0, alpha, sigma).eps.isnan().all()


def test_clipping_within_the_limit_changes_nothing():
    _, _, _, z, alpha, sigma = noisy(SCHEDULES["cosine"])
    pred = predict("v", noise(4, seed=3), z, alpha, sigma)
    for found, expected in zip(pred.clipped(1e6, z, alpha, sigma), pred, strict=True):
        torch.testing.assert_close(found, expected)
