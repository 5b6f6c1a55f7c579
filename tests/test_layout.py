"""How activations lie in memory: where it is free, as the layers are fastest, and never other values."""

import pytest
import torch

from vdiff.networks.layout import doubled, laid_out


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


def test_the_channels_of_large_pictures_lie_side_by_side_on_a_cpu() -> None:
    small, large = torch.rand(2, 3, 31, 33), torch.rand(2, 3, 32, 32)
    assert laid_out(small) is small
    assert laid_out(large).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(laid_out(large), large)
    assert laid_out(small.contiguous(memory_format=torch.channels_last)).is_contiguous()
    elsewhere = torch.empty(2, 3, 32, 32, device="meta")
    assert laid_out(elsewhere) is elsewhere
