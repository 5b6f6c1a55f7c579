"""Doubling the resolution: every pixel four times, and the convolution after it,
whichever way it is computed.
"""

from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from vdiff.networks.cpu import doubling
from vdiff.networks.cpu.doubling import convolved_double, doubled
from vdiff.networks.cpu.prepacked import Conv2d


@pytest.mark.parametrize("size", [(4, 5), (20, 30)])
def test_doubling_repeats_every_pixel_with_and_without_gradients(size: tuple[int, int]) -> None:
    h = torch.rand(2, 3, *size, requires_grad=True)
    slow = doubled(h)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        assert torch.equal(slow[..., row::2, column::2], h)
    with torch.no_grad():
        assert torch.equal(doubled(h), slow)


def test_what_was_doubled_lies_as_its_size_wants_it() -> None:
    assert doubled(torch.rand(2, 3, 8, 8)).is_contiguous()
    assert doubled(torch.rand(2, 3, 16, 16)).is_contiguous(memory_format=torch.channels_last)


def is_at_once(h: Tensor, conv: Conv2d) -> bool:
    with mock.patch.object(doubling, "doubled", wraps=doubled) as spy:
        out = convolved_double(h, conv)
    large = h.shape[2] * h.shape[3] >= 256
    assert out.is_contiguous(
        memory_format=torch.channels_last if large else torch.contiguous_format
    )
    return not spy.called


def at_once_and_after(h: Tensor, conv: Conv2d) -> tuple[list[Tensor], list[Tensor]]:
    """The result and its gradients as vdiff computes them,
    and by a convolution of the doubled picture.
    """
    found = []
    for way in (lambda h: convolved_double(h, conv), lambda h: conv(doubled(h))):
        mine = h.clone().requires_grad_()
        out = way(mine)
        gradients = torch.autograd.grad(out.float().sin().sum(), [mine, *conv.parameters()])
        found.append([out.detach(), *gradients])
    return found[0], found[1]


@pytest.mark.parametrize("channels", [(3, 5), (8, 4)])
@pytest.mark.parametrize("size", [(4, 5), (6, 4), (16, 16)])
def test_both_at_once_is_the_convolution_of_what_was_doubled(
    channels: tuple[int, int], size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    conv, h = Conv2d(*channels, 3, padding=1), torch.randn(2, channels[0], *size)
    assert is_at_once(h, conv)  # else this compares nothing
    for made, wanted in zip(*at_once_and_after(h, conv), strict=True):
        assert (made - wanted).abs().max() < 2e-6 * wanted.abs().max()


def test_in_bf16_it_is_about_as_exact_as_the_convolution() -> None:
    torch.manual_seed(0)
    conv, h = Conv2d(16, 16, 3, padding=1), torch.randn(4, 16, 16, 16).bfloat16()
    # which rounds the sums of the weights, once, in place of the weights
    with torch.autocast("cpu", torch.bfloat16):
        once, after = convolved_double(h, conv), conv(doubled(h))
    assert errors(once, after, conv, h) < 1.2
    conv = conv.bfloat16()  # here the weights are exact, and their sums are not
    assert is_at_once(h, conv)
    assert errors(convolved_double(h, conv), conv(doubled(h)), conv, h) < 3


@torch.no_grad()
def errors(once: Tensor, after: Tensor, conv: Conv2d, h: Tensor) -> float:
    """The mean square error of one over that of the other."""
    exact = nn.functional.conv2d(
        doubled(h.float()), conv.weight.float(), conv.bias.float(), padding=1
    )
    first, second = ((each.float() - exact).square().mean() for each in (once, after))
    return float(first / second)


def test_the_way_depends_on_picture_channels_and_dtype_alone() -> None:
    wide, narrow = Conv2d(32, 32, 3, padding=1), Conv2d(8, 8, 3, padding=1)
    for batch in (1, 2, 64):
        assert is_at_once(torch.rand(batch, 8, 4, 4), narrow)
        assert is_at_once(torch.rand(batch, 32, 16, 16), wide)
        assert not is_at_once(torch.rand(batch, 32, 4, 4), wide)
    assert not is_at_once(torch.rand(2, 8, 4, 4).double(), narrow.double())
