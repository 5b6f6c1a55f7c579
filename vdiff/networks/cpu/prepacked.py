"""Prepacking: oneDNN's kernels want weights in an order of their own. What learns nothing is put in it once."""

from collections.abc import Callable
from functools import cache
from typing import Any

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
"""The order may depend on how many images there are; it must not depend on how many came first."""

Pack = Callable[[Tensor], Tensor]


class Prepacked(Fast):
    """A layer that keeps its weight in oneDNN's order too, while nothing learns from it; other calls are torch's.

    prepacks: whether it may. Not where FSDP2 shards the weight, which is there only while the layer computes.
    """

    prepacks = True
    weight: Tensor
    bias: Any  # a tensor or None
    _kept: tuple[object, tuple[Tensor, Tensor | None], Tensor, Tensor | None] | None = None

    def dtype_packed(self, h: Tensor) -> torch.dtype | None:
        """The precision in which to compute with packed weights; None where they do not serve."""
        weight, bias = self.weight, self.bias
        if weight.requires_grad or (bias is not None and bias.requires_grad) or not self.prepacks:
            return None
        if h.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        if h.requires_grad and torch.is_grad_enabled():
            return None
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
        elif weight.dtype == h.dtype:
            dtype = h.dtype
        else:
            return None  # torch says what is wrong
        return dtype if _has_kernels(dtype) else None

    def packed(self, key: object, dtype: torch.dtype, pack: Pack) -> tuple[Tensor, Tensor | None]:
        """The weight as `pack` has it, and the bias; made anew only where they or the key have changed.

        key: tells all that the order depends on.   Who writes to `weight.data` is not noticed.
        """
        weight, bias = self.weight, self.bias
        state = (key, dtype, _written(weight), None if bias is None else _written(bias))
        kept = self._kept  # another thread may replace it
        if kept is None or kept[0] != state:
            weight, bias = weight.detach(), None if bias is None else bias.detach()
            # with the values, whose memory nobody else can get while they are here
            kept = state, (weight, bias), pack(weight), None if bias is None else bias.to(dtype)
            self._kept = kept
        return kept[2], kept[3]

    def drop_packed(self) -> None:
        """Let go of the packed weight; the next call makes it anew."""
        self._kept = None

    def _apply(self, *given: Any, **named: Any) -> Any:
        self.drop_packed()
        return super()._apply(*given, **named)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {name: value for name, value in state.items() if name != "_kept"}


class Conv2d(Prepacked, nn.Conv2d):
    """torch's convolution; one with a prepacked weight leaves its result laid out for what follows.

    oneDNN leaves it channels-last. In small images float32 loses more in getting it back than it gains, so it does
    without.
    """

    plain = nn.Conv2d

    def forward(self, h: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out_channels, H', W']; without a batch as torch does."""
        if h.dim() != 4 or self.padding_mode != "zeros" or isinstance(self.padding, str):
            return super().forward(h)
        dtype = (
            None
            if _is_float32(h) and h.shape[2] * h.shape[3] < LEAST_LARGE_PIXELS
            else self.dtype_packed(h)
        )
        if dtype is None:
            return super().forward(h)
        how = [[*self.padding], [*self.stride], [*self.dilation], self.groups]
        size = [PICTURES, *h.shape[1:]]
        weight, bias = self.packed(
            ("after", h.shape[1:]),
            dtype,
            lambda weight: _OPS._reorder_convolution_weight(weight.to(dtype), *how, size),
        )
        out: Tensor = _OPS._convolution_pointwise(h.to(dtype), weight, bias, *how, "none", [], "")
        return laid_out(out)


class Linear(Prepacked, nn.Linear):
    """torch's linear layer."""

    plain = nn.Linear

    def forward(self, features: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        # float32 gains little, and loses with few rows
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
    if not all(hasattr(_OPS, name) for name in _NEEDED):
        return False
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and bool(_OPS._is_mkldnn_bf16_supported())
    )


def _written(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor lies, and how often it was written to; of those made in inference mode, nobody counts that."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
