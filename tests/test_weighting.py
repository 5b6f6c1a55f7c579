"""Every loss weight as the identity that mathematics.md states."""

import pytest
import torch

from tests.toys import SCHEDULES, noise
from vdiff.diffusion.denoiser import scales
from vdiff.diffusion.prediction import predict
from vdiff.objectives.weighting import weighted_loss


@pytest.fixture(params=SCHEDULES)
def errors(request):
    """x_mse, eps_mse, v_mse of a wrong prediction, and the arguments of weighted_loss."""
    schedule = SCHEDULES[request.param]
    t = torch.linspace(0.001, 1, 64, dtype=torch.float64)
    x, eps, wrong = noise(64), noise(64, seed=1), noise(64, seed=2)
    alpha, sigma = scales(schedule, t, x)
    z = alpha * x + sigma * eps
    truth, pred = predict("x", x, z, alpha, sigma), predict("v", wrong, z, alpha, sigma)
    means = [
        (found - true).square().mean((1, 2, 3)) for found, true in zip(pred, truth, strict=True)
    ]
    return *means, (pred.x, x, *schedule.alpha_sigma(t))


def test_constant_is_the_error_of_x(errors):
    x_mse, _, _, arguments = errors
    torch.testing.assert_close(weighted_loss("constant", *arguments), x_mse)


def test_snr_is_the_error_of_eps(errors):
    _, eps_mse, _, arguments = errors
    torch.testing.assert_close(weighted_loss("snr", *arguments), eps_mse, rtol=1e-6, atol=0)


def test_truncated_snr_is_the_larger_error_of_x_and_eps(errors):
    x_mse, eps_mse, _, arguments = errors
    torch.testing.assert_close(
        weighted_loss("truncated_snr", *arguments), torch.maximum(x_mse, eps_mse), rtol=1e-6, atol=0
    )


def test_snr_plus_one_is_the_error_of_v(errors):
    _, _, v_mse, arguments = errors
    torch.testing.assert_close(weighted_loss("snr_plus_one", *arguments), v_mse, rtol=1e-6, atol=0)


def test_min_snr_counts_no_error_of_x_more_than_five_times(errors):
    x_mse, eps_mse, _, arguments = errors
    torch.testing.assert_close(
        weighted_loss("min_snr", *arguments), torch.minimum(5 * x_mse, eps_mse), rtol=1e-6, atol=0
    )
