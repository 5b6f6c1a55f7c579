"""Doubling the resolution: every pixel four times, then a convolution;
both at once where that is less work.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vdiff.networks.cpu.layout import laid_out
from vdiff.networks.cpu.prepacked import PICTURES, Conv2d


def doubled(h: Tensor) -> Tensor:
    """Each pixel four times: [B, C, H, W] -> [B, C, 2H, 2W], laid out for what follows."""
    # torch doubles channels-last several times as fast.
    h = h.contiguous(memory_format=torch.channels_last)
    return laid_out(F.interpolate(h, scale_factor=2.0, mode="nearest"))


def convolved_double(h: Tensor, conv: Conv2d) -> Tensor:
    """`conv` of `doubled(h)`, to rounding: [B, C, H, W] -> [B, out_channels, 2H, 2W].
    conv: 3x3, padding 1, a bias.

    After doubling, a 3x3 kernel lies on nine pixels of which only four differ. The weights that
    meet the same pixel can be added before: then a transposed convolution with a 4x4 kernel and a
    stride of 2 gives the same with 4/9 of the multiplications. Adding them costs time as well, the
    same for an image of any size.
    """
    if not _is_quicker_at_once(h, conv):
        after: Tensor = conv(doubled(h))
        return after
    h = h.contiguous(memory_format=torch.channels_last)
    dtype = conv.dtype_packed(h)
    if dtype is not None:
        return _from_packed(h.to(dtype), conv, dtype)
    kernel = _transposed_kernel(conv.weight).to(h.dtype)
    # The bias is added by the same call, but its gradient comes from `_Added`.
    out = F.conv_transpose2d(h, kernel, conv.bias.detach(), stride=2, padding=1)
    return laid_out(_Added.apply(out, conv.bias))


def _from_packed(h: Tensor, conv: Conv2d, dtype: torch.dtype) -> Tensor:
    shape = h.shape[1:]
    weight, bias = conv.packed(("at once", shape), dtype, partial(_packed, dtype=dtype, size=shape))
    out = _OPS._convolution_transpose_pointwise(h, weight, bias, *_GEOMETRY, "none", [], "")
    return laid_out(out)


def _transposed_kernel(weight: Tensor) -> Tensor:
    """[out, in, 3, 3] -> [in, out, 4, 4], the kernel of the transposed convolution, float32."""
    # Without autocast and in float32: in bfloat16 the sums would be rounded, and rounded again when
    # they are cast.
    with torch.autocast("cpu", enabled=False):
        weights = weight.float().flatten(2)
        sums = weights @ _sums(weight.device)
        return sums.view(*weights.shape[:2], 4, 4).transpose(0, 1).contiguous()


def _packed(weight: Tensor, dtype: torch.dtype, size: torch.Size) -> Tensor:
    kernel = _transposed_kernel(weight).to(dtype)
    packed: Tensor = _OPS._reorder_convolution_transpose_weight(
        kernel, *_GEOMETRY, [PICTURES, *size]
    )
    return packed


_OPS = torch.ops.mkldnn
_GEOMETRY = [1, 1], [0, 0], [2, 2], [1, 1], 1
"""Padding, padding of the result, stride, dilation and groups of the transposed convolution."""


class _Added(torch.autograd.Function):
    """The result of a convolution with its bias added, and the gradient of that bias.

    torch's own convolution takes longer for the gradient of the bias than for all the rest.
    """

    @staticmethod
    def forward(ctx: Any, out: Tensor, bias: Tensor) -> Tensor:
        ctx.dtype = bias.dtype
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        # In float32, as the bias may be: it is the gradient that comes that is in the precision of
        # h.
        grad_bias = gradients[0].sum((0, 2, 3), dtype=torch.float32)
        return gradients[0], grad_bias.to(ctx.dtype)


def _is_quicker_at_once(h: Tensor, conv: Conv2d) -> bool:
    """Whether doubling and convolving at once takes less time."""
    # The size of the batch is not asked: an image must be computed in the same way in any batch.
    has_kernels = h.device.type == ("cpu") and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    large = h.shape[2] * h.shape[3] >= PIXELS_PER_CHANNEL * conv.out_channels
    return has_kernels and h.dtype in (torch.float32, torch.bfloat16) and large


PIXELS_PER_CHANNEL = 1
"""From it on drawing gains with a single picture, and learning with a few (docs/benchmarks.md)."""


def _sums(device: torch.device) -> Tensor:
    """Which of a kernel's 3x3 weights add up to each of the 4x4 of the transposed one:
    [9, 16] of zeros and ones.
    """
    along = torch.tensor(
        [[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]], device=device
    )
    # Rows and columns of a kernel add up in the same way, each for itself.
    return torch.kron(along, along).T
