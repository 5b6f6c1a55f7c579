"""How activations lie in memory: where it is free, as the layers are fastest,
and never other values.
"""

import torch

from vdiff.networks.cpu.layout import laid_out


def test_the_channels_of_large_pictures_lie_side_by_side_on_a_cpu() -> None:
    small, large = torch.rand(2, 3, 31, 33), torch.rand(2, 3, 32, 32)
    assert laid_out(small) is small
    assert laid_out(large).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(laid_out(large), large)
    assert laid_out(small.contiguous(memory_format=torch.channels_last)).is_contiguous()
    elsewhere = torch.empty(2, 3, 32, 32, device="meta")
    assert laid_out(elsewhere) is elsewhere
