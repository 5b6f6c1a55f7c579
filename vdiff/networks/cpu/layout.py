"""The memory format of activations on a CPU:
channels-last or contiguous, as each layer is fastest.
"""

import torch
from torch import Tensor

LEAST_LARGE_PIXELS = 1024
"""From it on torch's group norm has a faster kernel for channels-last."""


def laid_out(h: Tensor) -> Tensor:
    """h: [B, C, H, W], laid out in memory as the layers after it are fastest; the values stay.

    On a CPU: channels-last (the channels of each pixel side by side) in a large image, as oneDNN's
    convolutions then need not reorder it; contiguous (each channel by itself) in a small one, as
    torch's group norm is slow otherwise (docs/benchmarks.md).
    """
    if h.device.type != "cpu":
        return h
    is_large = h.shape[2] * h.shape[3] >= LEAST_LARGE_PIXELS
    if is_large:
        return h.contiguous(memory_format=torch.channels_last)
    return h.contiguous()
