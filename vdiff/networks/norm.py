"""Group normalization that takes in the time, with a quick gradient in both memory layouts of a CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vdiff.networks.layout import in_its_dtype


class GroupNorm(nn.GroupNorm):
    """Normalize groups of channels of each image (Wu and He 2018), then scale and shift channel by channel."""

    def forward(self, h: Tensor, time: Tensor | None = None) -> Tensor:
        """shift + (1 + scale) * (bias + weight * normalized h).

        h: [B, C, H, W]; the same shape comes back.   time: [B, 2 C], scale and shift; not given: none.
        """
        if h.device.type == "cpu" and not torch.compiler.is_compiling():
            return self._on_cpu(h, *self._affine(time))
        with in_its_dtype(h):
            weight, bias = self.weight.to(h.dtype), self.bias.to(h.dtype)
            normed = F.group_norm(h, self.num_groups, weight, bias, self.eps)
        if time is None:
            return normed
        scale, shift = time[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(shift, normed, 1 + scale)

    def _affine(self, time: Tensor | None) -> tuple[Tensor, Tensor]:
        """Factor and summand of every channel, [B, C], or [1, C] where all images have the same."""
        if time is None:
            return self.weight[None], self.bias[None]
        scale, shift = time.chunk(2, dim=1)
        return self.weight * (1 + scale), torch.addcmul(shift, self.bias, 1 + scale)

    def _on_cpu(self, h: Tensor, factor: Tensor, summand: Tensor) -> Tensor:
        if h.is_contiguous():
            # With the batch's images side by side each has factors of its own in one pass.
            side_by_side = h if len(factor) == 1 else h.reshape(1, -1, *h.shape[2:])
            groups = self.num_groups if len(factor) == 1 else self.num_groups * len(h)
            return F.group_norm(side_by_side, groups, factor.flatten(), summand.flatten(), self.eps).view(h.shape)
        h = h.contiguous(memory_format=torch.channels_last)
        out: Tensor = _ChannelsLast.apply(h, factor, summand, self.num_groups, self.eps)
        return out


class _ChannelsLast(torch.autograd.Function):
    """The same in the layout channels_last, where torch's own gradient takes up to thirty times as long in torch 2.14.

    Its numbers for each channel are in float32 at least, its numbers for each pixel in the dtype of h.
    It can be differentiated once.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, factor: Tensor, summand: Tensor, groups: int, eps: float) -> Tensor:
        batch, channels, height, width = h.shape
        factor, summand = factor.to(_wide(h)), summand.to(_wide(h))
        is_shared = len(factor) == 1
        inner = (factor[0], summand[0]) if is_shared else (torch.ones_like(factor[0]), torch.zeros_like(factor[0]))
        out, mean, rstd = torch.native_group_norm(h, *inner, batch, channels, height * width, groups, eps)
        ctx.save_for_backward(h, factor, mean, rstd)
        return out if is_shared else torch.addcmul(_spread(summand, h), out, _spread(factor, h))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, factor, mean, rstd = ctx.saved_tensors
        batch, groups = mean.shape
        mean, rstd, num_values = mean[..., None], rstd[..., None], h[0].numel() // groups
        grad = grad.contiguous(memory_format=torch.channels_last)
        of_summand = _summed(grad).view(batch, groups, -1)
        product = grad * (h.float() if h.dtype == torch.float16 else h)  # which would overflow
        of_factor = (_summed(product).view(batch, groups, -1) - mean * of_summand) * rstd
        in_groups = factor.view(len(factor), groups, -1)
        slope = -(rstd**2) * (in_groups * of_factor).sum(-1, keepdim=True) / num_values
        offset = -rstd * (in_groups * of_summand).sum(-1, keepdim=True) / num_values - mean * slope
        of_h = torch.addcmul(_spread(offset.expand_as(of_factor), h), h, _spread(slope.expand_as(of_factor), h))
        of_h.addcmul_(grad, _spread(in_groups * rstd, h))
        return of_h, *(each.flatten(1).sum_to_size(factor.shape) for each in (of_factor, of_summand)), None, None


def _wide(h: Tensor) -> torch.dtype:
    return torch.promote_types(h.dtype, torch.float32)


def _summed(h: Tensor) -> Tensor:
    """Over the pixels: [B, C, H, W] -> [B, C], float32 at least; of bfloat16 added in float32 and rounded."""
    rows = h.permute(0, 2, 3, 1).flatten(1, 2)
    return rows.sum(1, dtype=torch.float32 if h.dtype == torch.float16 else h.dtype).to(_wide(h))


def _spread(numbers: Tensor, h: Tensor) -> Tensor:
    """A number for each channel of each image, in the dtype of h and beside its pixels: [B, C, 1, 1]."""
    return numbers.reshape(len(numbers), -1, 1, 1).to(h.dtype)
