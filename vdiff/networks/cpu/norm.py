"""Group normalization with a quick gradient in both memory formats, and with a scale and shift for each image."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdiff.networks.fast import Fast


class GroupNorm(Fast, nn.GroupNorm):
    """torch's group norm, whose gradient is quick in the memory format channels-last too."""

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
    """shift + (1 + scale) * norm(h), in one pass: what differs between images is taken into the norm's own numbers.

    h: [B, C, H, W].   scale, shift: [B, C].
    """
    weight = norm.weight * (1 + scale)
    bias = torch.addcmul(shift, norm.bias, 1 + scale)
    return _normed(h, weight, bias, norm.num_groups, norm.eps)


def _normed(h: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """weight * normalized h + bias.   weight, bias: [B, C], or [1, C] where all images have the same."""
    if not h.is_contiguous():
        h = h.contiguous(memory_format=torch.channels_last)
        out: Tensor = _ChannelsLast.apply(h, weight, bias, groups, eps)
        return out
    if len(weight) == 1:
        return F.group_norm(h, groups, weight.flatten(), bias.flatten(), eps).view(h.shape)
    # With the images of the batch as channels of one image, each has a weight of its own in one call of torch's norm.
    as_one = h.reshape(1, -1, *h.shape[2:])
    return F.group_norm(as_one, groups * len(h), weight.flatten(), bias.flatten(), eps).view(
        h.shape
    )


class _ChannelsLast(torch.autograd.Function):
    """`_normed` in channels-last, where torch's own gradient takes up to thirty times as long in torch 2.14.

    Its numbers for each channel are in float32 at least, its numbers for each pixel in the dtype of h.
    """

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        batch, channels, height, width = h.shape
        ctx.groups, ctx.eps = groups, eps
        given = weight
        weight, bias = weight.to(_wide(h)), bias.to(_wide(h))
        is_shared = len(weight) == 1
        if is_shared:
            inner_weight, inner_bias = weight[0], bias[0]
        else:
            inner_weight, inner_bias = torch.ones_like(weight[0]), torch.zeros_like(weight[0])
        size = height * width
        out, mean, rstd = torch.native_group_norm(
            h, inner_weight, inner_bias, batch, channels, size, groups, eps
        )
        ctx.save_for_backward(h, given, mean, rstd)
        if is_shared:
            return out
        return torch.addcmul(_spread(bias, h), out, _spread(weight, h))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        h, weight, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():
            # The gradient itself is to be differentiated (`create_graph=True`), which torch does for its own functions.
            return *_torchs_gradients(h, weight, gradients[0], ctx.groups, ctx.eps), None, None
        weight = weight.to(_wide(h))
        batch, groups = mean.shape
        mean, rstd = mean[..., None], rstd[..., None]
        num_values = h[0].numel() // groups
        grad = gradients[0].contiguous(memory_format=torch.channels_last)
        grad_shift = _summed(grad).view(batch, groups, -1)
        product = grad * (h.float() if h.dtype == torch.float16 else h)  # float16 would overflow
        grad_scale = (_summed(product).view(batch, groups, -1) - mean * grad_shift) * rstd
        # grad_h = grad * (weight * rstd) + h * slope + offset, with a slope and an offset for each group
        in_groups = weight.view(len(weight), groups, -1)
        slope = -(rstd**2) * (in_groups * grad_scale).sum(-1, keepdim=True) / num_values
        offset = -rstd * (in_groups * grad_shift).sum(-1, keepdim=True) / num_values - mean * slope
        grad_h = torch.addcmul(
            _spread(offset.expand_as(grad_scale), h), h, _spread(slope.expand_as(grad_scale), h)
        )
        grad_h.addcmul_(grad, _spread(in_groups * rstd, h))
        grad_weight = grad_scale.flatten(1).sum_to_size(weight.shape)
        grad_bias = grad_shift.flatten(1).sum_to_size(weight.shape)
        return grad_h, grad_weight, grad_bias, None, None


def _torchs_gradients(
    h: Tensor, weight: Tensor, grad: Tensor, groups: int, eps: float
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Those of `_normed` for h, weight and bias, so that they can be differentiated again."""
    normed = F.group_norm(h, groups, eps=eps)
    out = normed * weight.to(h.dtype)[:, :, None, None]
    inputs = [each for each in (h, weight) if each.requires_grad]
    found = iter(torch.autograd.grad(out, inputs, grad, create_graph=True))
    grad_h = next(found) if h.requires_grad else None
    grad_weight = next(found) if weight.requires_grad else None
    return grad_h, grad_weight, grad.sum((2, 3)).sum_to_size(weight.shape)


def _wide(h: Tensor) -> torch.dtype:
    return torch.promote_types(h.dtype, torch.float32)


def _summed(h: Tensor) -> Tensor:
    """Over the pixels: [B, C, H, W] -> [B, C], float32 at least; of bfloat16 added in float32 and rounded."""
    rows = h.permute(0, 2, 3, 1).flatten(1, 2)
    return rows.sum(1, dtype=torch.float32 if h.dtype == torch.float16 else h.dtype).to(_wide(h))


def _spread(numbers: Tensor, h: Tensor) -> Tensor:
    """A number for each channel of each image, in the dtype of h and beside its pixels: [B, C, 1, 1]."""
    return numbers.reshape(len(numbers), -1, 1, 1).to(h.dtype)
