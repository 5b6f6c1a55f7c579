"""Group normalization whose gradient is quick in both memory formats;
also with a scale and shift for each image.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdiff.networks.fast import Fast


class GroupNorm(Fast, nn.GroupNorm):
    """torch's group norm with a gradient that is quick in channels-last too."""

    plain = nn.GroupNorm

    def forward(self, h: Tensor) -> Tensor:
        """[B, C, H, W], of which the same shape comes back; other shapes as torch computes them."""
        if h.device.type != "cpu" or h.dim() != 4 or not self.affine:
            return super().forward(h)
        if torch.compiler.is_compiling():
            weight = self.weight.to(h.dtype)
            bias = self.bias.to(h.dtype)
            return F.group_norm(h, self.num_groups, weight, bias, self.eps)
        return _normed(h, self.weight[None], self.bias[None], self.num_groups, self.eps)


def scaled_norm(norm: nn.GroupNorm, h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """shift + (1 + scale) * norm(h), in one pass over h.

    h: [B, C, H, W].   scale, shift: [B, C].
    """
    # Few numbers, [B, C]: the scale and shift of each image go into the weight and bias of the
    # norm.
    weight = norm.weight * (1 + scale)
    bias = torch.addcmul(shift, norm.bias, 1 + scale)
    return _normed(h, weight, bias, norm.num_groups, norm.eps)


def _normed(h: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """weight * normalized h + bias.

    weight, bias: [B, C], or [1, C] where all images have the same.
    """
    if not h.is_contiguous():
        h = h.contiguous(memory_format=torch.channels_last)
        out: Tensor = _ChannelsLast.apply(h, weight, bias, groups, eps)
        return out
    weight = weight.flatten()
    bias = bias.flatten()
    if len(weight) == h.shape[1]:
        return F.group_norm(h, groups, weight, bias, eps).view(h.shape)
    # torch's norm has one weight per channel. With the images of the batch as channels of a single
    # image, one call gives each image a weight of its own.
    as_one = h.reshape(1, -1, *h.shape[2:])
    return F.group_norm(as_one, groups * len(h), weight, bias, eps).view(h.shape)


class _ChannelsLast(torch.autograd.Function):
    """`_normed` in channels-last, where torch's own gradient takes up to thirty
    times as long in torch 2.14.

    Numbers of each channel are in float32 or wider, numbers of each pixel in the dtype of h.
    """

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        batch, channels, height, width = h.shape
        size = height * width
        ctx.groups = groups
        ctx.eps = eps
        wide_weight = weight.to(_wide(h))
        wide_bias = bias.to(_wide(h))
        if len(weight) == 1:
            out, mean, rstd = torch.native_group_norm(
                h, wide_weight[0], wide_bias[0], batch, channels, size, groups, eps
            )
            ctx.save_for_backward(h, weight, mean, rstd)
            return out
        # torch's norm has no weights of each image: it normalizes only, and ours come after it.
        ones = torch.ones_like(wide_weight[0])
        zeros = torch.zeros_like(wide_weight[0])
        normed, mean, rstd = torch.native_group_norm(
            h, ones, zeros, batch, channels, size, groups, eps
        )
        ctx.save_for_backward(h, weight, mean, rstd)
        return torch.addcmul(_spread(wide_bias, h), normed, _spread(wide_weight, h))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        h, weight, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():
            # The gradient itself is to be differentiated (`create_graph=True`), which torch does
            # for its own functions.
            return *_torchs_gradients(h, weight, gradients[0], ctx.groups, ctx.eps), None, None
        weight = weight.to(_wide(h))
        batch, groups = mean.shape
        mean = mean[..., None]
        rstd = rstd[..., None]
        num_values = h[0].numel() // groups
        grad = gradients[0].contiguous(memory_format=torch.channels_last)
        # The gradients for the shift and the scale of each channel of each image:
        # [B, groups, C / groups].
        grad_shift = _summed(grad).view(batch, groups, -1)
        grad_scale = (_summed(_product(grad, h)).view(batch, groups, -1) - mean * grad_shift) * rstd
        # grad_h = grad * (weight * rstd) + h * slope + offset, with a slope and an offset for each
        # group:
        # the derivative of (h - mean) * rstd, where mean and rstd depend on h too.
        in_groups = weight.view(len(weight), groups, -1)
        slope = -(rstd**2) * (in_groups * grad_scale).sum(-1, keepdim=True) / num_values
        offset = -rstd * (in_groups * grad_shift).sum(-1, keepdim=True) / num_values - mean * slope
        grad_h = torch.addcmul(
            _spread(offset.expand_as(grad_scale), h), h, _spread(slope.expand_as(grad_scale), h)
        )
        grad_h.addcmul_(grad, _spread(in_groups * rstd, h))
        # A weight that all images share gets the sum of their gradients.
        grad_weight = grad_scale.flatten(1).sum_to_size(weight.shape)
        grad_bias = grad_shift.flatten(1).sum_to_size(weight.shape)
        return grad_h, grad_weight, grad_bias, None, None


def _torchs_gradients(
    h: Tensor, weight: Tensor, grad: Tensor, groups: int, eps: float
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """The gradients of `_normed` for h, weight and bias, which can be differentiated again."""
    normed = F.group_norm(h, groups, eps=eps)
    out = normed * weight.to(h.dtype)[:, :, None, None]
    # torch refuses to be asked for a gradient of what has none.
    inputs = [tensor for tensor in (h, weight) if tensor.requires_grad]
    gradients = list(torch.autograd.grad(out, inputs, grad, create_graph=True))
    grad_h = None
    if h.requires_grad:
        grad_h = gradients.pop(0)
    grad_weight = None
    if weight.requires_grad:
        grad_weight = gradients.pop(0)
    return grad_h, grad_weight, grad.sum((2, 3)).sum_to_size(weight.shape)


def _wide(h: Tensor) -> torch.dtype:
    return torch.promote_types(h.dtype, torch.float32)


def _product(grad: Tensor, h: Tensor) -> Tensor:
    """grad * h, [B, C, H, W]."""
    if h.dtype == torch.float16:
        # The largest float16 is 65504: the product would overflow.
        h = h.float()
    return grad * h


def _summed(h: Tensor) -> Tensor:
    """Sum over the pixels: [B, C, H, W] -> [B, C], in float32 or wider."""
    rows = h.permute(0, 2, 3, 1).flatten(1, 2)
    if h.dtype == torch.float16:
        return rows.sum(1, dtype=torch.float32)
    # torch adds bfloat16 in float32 and rounds the sum.
    return rows.sum(1, dtype=h.dtype).to(_wide(h))


def _spread(numbers: Tensor, h: Tensor) -> Tensor:
    """A number for each channel of each image, in the dtype of h and beside
    its pixels: [B, C, 1, 1].
    """
    return numbers.reshape(len(numbers), -1, 1, 1).to(h.dtype)
