"""Gradients are divided where they are longer together than the limit, and else are left alone."""

import pytest
import torch
from torch import Tensor, nn

from vdiff.training.clipping import divisor, total_norm


def with_gradients(*gradients: Tensor | None) -> list[Tensor]:
    weights = [nn.Parameter(torch.zeros(3)) for _ in gradients]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    return list(weights)


LONG, LONGER = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 4.0])


def test_the_norm_is_that_of_all_gradients_together() -> None:
    assert float(total_norm(with_gradients(LONG, None, LONGER))) == 5.0
    assert float(total_norm(with_gradients(None))) == 0.0


def test_the_norm_does_not_care_how_gradients_are_shaped_or_lie() -> None:
    shapes = [(), (7,), (5, 3), (4, 6, 3, 3), (2, 0)]
    weights = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    weights[3].grad = weights[3].grad.contiguous(memory_format=torch.channels_last)
    wanted = torch.cat([weight.grad.double().flatten() for weight in weights]).norm()
    torch.testing.assert_close(total_norm(weights).double(), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("limit", [None, 5.0, 7.0])
def test_gradients_that_are_short_enough_are_not_divided(limit: float | None) -> None:
    assert divisor(torch.tensor(5.0), limit) is None


def test_longer_ones_are_divided_to_the_limit() -> None:
    found = divisor(torch.tensor(5.0), 2.0)
    assert found is not None
    assert float(found) == 2.5


def test_a_norm_that_is_not_finite_is_told() -> None:
    for bad in ("nan", "inf"):
        assert not torch.isfinite(total_norm(with_gradients(LONG, torch.full((3,), float(bad)))))
