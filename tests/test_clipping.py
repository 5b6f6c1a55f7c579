"""Gradients are scaled to the limit where they are longer together, and else are left alone."""

import pytest
import torch
from torch import Tensor, nn

from vdiff.training.clipping import clipped


def with_gradients(*gradients: Tensor | None) -> list[Tensor]:
    weights = [nn.Parameter(torch.zeros(3)) for _ in gradients]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient if gradient is None else gradient.clone()
    return list(weights)


LONG, LONGER = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 4.0])


@pytest.mark.parametrize("limit", [None, 5.0, 7.0])
def test_gradients_that_are_short_enough_stay_as_they_are(limit: float | None) -> None:
    weights = with_gradients(LONG, None, LONGER)
    assert float(clipped(weights, limit)) == 5.0
    assert torch.equal(weights[0].grad, LONG)
    assert torch.equal(weights[2].grad, LONGER)


def test_longer_ones_are_scaled_together_and_the_norm_before_is_told() -> None:
    weights = with_gradients(LONG, None, LONGER)
    assert float(clipped(weights, 1.0)) == 5.0
    torch.testing.assert_close(weights[0].grad, LONG / 5)
    torch.testing.assert_close(weights[2].grad, LONGER / 5)


def test_a_norm_that_is_not_finite_is_told() -> None:
    for limit in (None, 1.0):
        assert not torch.isfinite(clipped(with_gradients(LONG, torch.full((3,), float("nan"))), limit))
