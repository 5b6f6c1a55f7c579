"""Doubling the resolution: every pixel four times, then a convolution; both at once where that is less work."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vdiff.networks.cpu.layout import laid_out
from vdiff.networks.cpu.prepacked import PICTURES, Conv2d


def doubled(h: Tensor) -> Tensor:
    """Each pixel four times: [B, C, H, W] -> [B, C, 2H, 2W], laid out for what follows."""
    h = h.contiguous(memory_format=torch.channels_last)  # which torch doubles several times as fast
    return laid_out(F.interpolate(h, scale_factor=2.0, mode="nearest"))


def convolved_double(h: Tensor, conv: Conv2d) -> Tensor:
    """`conv` of `doubled(h)`, to rounding: [B, C, H, W] -> [B, out_channels, 2H, 2W].   conv: 3x3, padding 1, a bias.

    Of the nine pixels below such a kernel only four differ: a transposed convolution whose kernel has the sums of the
    weights that meet the same pixel does 4/9 of the work. To sum costs time too, whatever the size of the image.
    """
    if not _is_quicker_at_once(h, conv):
        after: Tensor = conv(doubled(h))
        return after
    h = h.contiguous(memory_format=torch.channels_last)
    dtype = conv.dtype_packed(h)
    if dtype is not None:
        return _from_packed(h.to(dtype), conv, dtype)
    sixteen = _sixteen(conv.weight).to(h.dtype)
    out = F.conv_transpose2d(h, sixteen, conv.bias.detach(), stride=2, padding=1)
    return laid_out(_Added.apply(out, conv.bias))


def _from_packed(h: Tensor, conv: Conv2d, dtype: torch.dtype) -> Tensor:
    shape = h.shape[1:]
    weight, bias = conv.packed(("at once", shape), dtype, partial(_packed, dtype=dtype, size=shape))
    return laid_out(_OPS._convolution_transpose_pointwise(h, weight, bias, *_HOW, "none", [], ""))


def _sixteen(weight: Tensor) -> Tensor:
    """[out, in, 3, 3] -> [in, out, 4, 4], the kernel of the transposed convolution, float32."""
    with torch.autocast("cpu", enabled=False):  # it would round the sums twice
        nine = weight.float().flatten(2)
        return (
            (nine @ _sums(weight.device)).view(*nine.shape[:2], 4, 4).transpose(0, 1).contiguous()
        )


def _packed(weight: Tensor, dtype: torch.dtype, size: torch.Size) -> Tensor:
    sixteen = _sixteen(weight).to(dtype)
    found: Tensor = _OPS._reorder_convolution_transpose_weight(sixteen, *_HOW, [PICTURES, *size])
    return found


_OPS = torch.ops.mkldnn
_HOW = [1, 1], [0, 0], [2, 2], [1, 1], 1
"""Padding, padding of the result, stride, dilation and groups of the transposed convolution."""


class _Added(torch.autograd.Function):
    """Channels that a bias was added to. torch's convolution is slower to sum its gradient than to do all the rest."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, bias: Tensor) -> Tensor:
        ctx.dtype = bias.dtype
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return gradients[0], gradients[0].sum((0, 2, 3), dtype=torch.float32).to(ctx.dtype)


def _is_quicker_at_once(h: Tensor, conv: Conv2d) -> bool:
    """Asks nothing of the batch: an image must be computed in the same way in every one."""
    has_kernels = h.device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    large = h.shape[2] * h.shape[3] >= PIXELS_PER_CHANNEL * conv.out_channels
    return has_kernels and h.dtype in (torch.float32, torch.bfloat16) and large


PIXELS_PER_CHANNEL = 1
"""From it on drawing gains with a single picture, and learning with a few (docs/benchmarks.md)."""


def _sums(device: torch.device) -> Tensor:
    """Which of a kernel's 3x3 weights add up to each of the 4x4 of the transposed one: [9, 16] of zeros and ones."""
    along = torch.tensor(
        [[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]], device=device
    )
    return torch.kron(along, along).T
