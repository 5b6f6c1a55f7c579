"""How activations lie in memory, on a CPU as each layer is fastest, and that they keep their dtype."""

import contextlib
from typing import Any

import torch
from torch import Tensor

LEAST_LARGE_PIXELS = 1024
"""From it on torch's group norm has a faster kernel for channels side by side."""


def laid_out(h: Tensor) -> Tensor:
    """h: [B, C, H, W], laid out in memory as the layers after it are fastest; the values stay.

    On a CPU: the channels of each pixel side by side in a large picture, as convolutions then need not reorder it;
    each channel by itself in a small one, as torch's group norm is slow otherwise (docs/benchmarks.md).
    """
    if h.device.type != "cpu":
        return h
    is_large = h.shape[2] * h.shape[3] >= LEAST_LARGE_PIXELS
    return h.contiguous(memory_format=torch.channels_last if is_large else torch.contiguous_format)


def in_its_dtype(h: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Where a GPU's autocast does not take h to float32, as it does for norms and doubling, with all that follows."""
    return torch.autocast("cuda", enabled=False) if h.is_cuda else contextlib.nullcontext()
