"""Prepacking: oneDNN's kernels want weights in an order of their own.

Weights that do not learn get it once.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vdiff.networks.cpu.layout import LEAST_LARGE_PIXELS, laid_out
from vdiff.networks.fast import Fast

_OPS = torch.ops.mkldnn
_NEEDED = (
    "_reorder_convolution_weight",
    "_convolution_pointwise",
    "_reorder_convolution_transpose_weight",
    "_convolution_transpose_pointwise",
    "_reorder_linear_weight",
    "_linear_pointwise",
)
PICTURES = 16
"""The number of images that a weight is packed for, whatever the batch: the order may depend on it,
and with it the rounding, so it must not depend on which batch came first.
"""

Pack = Callable[[Tensor], Tensor]


class _Kept(NamedTuple):
    """A weight and a bias as oneDNN wants them.

    state: all that they depend on.   sources: the tensors they were made from.
    """

    state: object
    sources: tuple[Tensor, Tensor | None]
    weight: Tensor
    bias: Tensor | None


class Prepacked(Fast):
    """A layer that also keeps its weight in oneDNN's order, while no gradient is needed;
    other calls are torch's.

    prepacks: whether it may. Not where FSDP2 shards the weight, which is there only while the layer
    computes.
    """

    prepacks = True
    weight: Tensor
    bias: Any  # a tensor or None
    _kept: _Kept | None = None

    def dtype_packed(self, h: Tensor) -> torch.dtype | None:
        """The precision in which to compute with packed weights; None where they do not serve."""
        bias = self.bias
        # oneDNN's own operations have no gradient, neither for the weights nor for h.
        is_learning = self.weight.requires_grad or (bias is not None and bias.requires_grad)
        if is_learning or not self.prepacks:
            return None
        if h.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        if h.requires_grad and torch.is_grad_enabled():
            return None
        dtype = h.dtype
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
        elif self.weight.dtype != dtype:
            # torch's own layer raises the error that says what is wrong.
            return None
        if not _has_kernels(dtype):
            return None
        return dtype

    def packed(self, key: object, dtype: torch.dtype, pack: Pack) -> tuple[Tensor, Tensor | None]:
        """The weight as `pack` gives it, and the bias;
        made anew only where they or the key have changed.

        key: everything that the order depends on.   A change through `weight.data` is not noticed.
        """
        bias_written = None
        if self.bias is not None:
            bias_written = _written(self.bias)
        state = (key, dtype, _written(self.weight), bias_written)
        # Read once: another thread may replace it meanwhile.
        kept = self._kept
        if kept is None or kept.state != state:
            kept = self._pack(state, dtype, pack)
            self._kept = kept
        return kept.weight, kept.bias

    def _pack(self, state: object, dtype: torch.dtype, pack: Pack) -> _Kept:
        weight = self.weight.detach()
        bias = None
        cast_bias = None
        if self.bias is not None:
            bias = self.bias.detach()
            cast_bias = bias.to(dtype)
        # `state` tells tensors apart by their address. While the sources are kept, no other tensor
        # can get it.
        return _Kept(state, (weight, bias), pack(weight), cast_bias)

    def drop_packed(self) -> None:
        """Let go of the packed weight; the next call makes it anew."""
        self._kept = None

    def _apply(self, *given: Any, **named: Any) -> Any:
        # `to`, `half` and their like change weights through `.data`, which nobody counts.
        self.drop_packed()
        return super()._apply(*given, **named)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        # A copy, or a network in a file, packs anew.
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {name: value for name, value in state.items() if name != "_kept"}


class Conv2d(Prepacked, nn.Conv2d):
    """torch's convolution. With a prepacked weight, its result is laid out for what follows."""

    plain = nn.Conv2d

    def forward(self, h: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out_channels, H', W']; without a batch as torch does."""
        if h.dim() != 4 or self.padding_mode != "zeros" or isinstance(self.padding, str):
            return super().forward(h)
        # oneDNN leaves its result channels-last. To lay out a small float32 image again takes
        # longer than is gained.
        is_small = h.shape[2] * h.shape[3] < LEAST_LARGE_PIXELS
        if _is_float32(h) and is_small:
            return super().forward(h)
        dtype = self.dtype_packed(h)
        if dtype is None:
            return super().forward(h)
        geometry = [[*self.padding], [*self.stride], [*self.dilation], self.groups]
        size = [PICTURES, *h.shape[1:]]
        weight, bias = self.packed(
            ("after", h.shape[1:]),
            dtype,
            lambda weight: _OPS._reorder_convolution_weight(weight.to(dtype), *geometry, size),
        )
        out: Tensor = _OPS._convolution_pointwise(
            h.to(dtype), weight, bias, *geometry, "none", [], ""
        )
        return laid_out(out)


class Linear(Prepacked, nn.Linear):
    """torch's linear layer."""

    plain = nn.Linear

    def forward(self, features: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        # float32 gains little, and with few rows it loses.
        if _is_float32(features) or self.dtype_packed(features) != torch.bfloat16:
            return super().forward(features)
        dtype = torch.bfloat16
        weight, bias = self.packed(
            None, dtype, lambda weight: _OPS._reorder_linear_weight(weight.to(dtype), PICTURES)
        )
        out: Tensor = _OPS._linear_pointwise(features.to(dtype), weight, bias, "none", [], "")
        return out


def _is_float32(h: Tensor) -> bool:
    return h.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


@cache
def _has_kernels(dtype: torch.dtype) -> bool:
    """Measured on processors with AVX only (docs/benchmarks.md)."""
    has_library = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not has_library or "AVX" not in torch.backends.cpu.get_cpu_capability():
        return False
    # They are not part of torch's public interface, so a version may lack one.
    if not all(hasattr(_OPS, name) for name in _NEEDED):
        return False
    if dtype == torch.bfloat16:
        return bool(_OPS._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def _written(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor lies, and how often it was written to."""
    if tensor.is_inference():
        # torch does not count it for tensors made in inference mode, and raises an error when
        # asked.
        return tensor.data_ptr(), 0
    return tensor.data_ptr(), tensor._version
