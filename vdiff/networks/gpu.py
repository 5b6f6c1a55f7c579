"""What a GPU likes: norms and doubling that stay in the precision of autocast."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdiff.networks import blocks
from vdiff.networks.fast import Fast, Module, put_in


def fast_on_gpu(network: Module) -> Module:
    """Put the fast layers of this file into a network; the same network. See `fast_on`."""
    return put_in(network, [GroupNorm, ResidualBlock, Upsample])


class GroupNorm(Fast, nn.GroupNorm):
    """torch's group norm in the dtype of its input:
    autocast on a GPU takes it, and all that follows, to float32.
    """

    plain = nn.GroupNorm

    def forward(self, h: Tensor) -> Tensor:
        """h: [B, C, ...]; the same shape and dtype come back."""
        if not h.is_cuda or not self.affine:
            return super().forward(h)
        # Autocast lists group norm among what is computed in float32; torch's kernel adds in
        # float32 anyway.
        with torch.autocast("cuda", enabled=False):
            weight = self.weight.to(h.dtype)
            bias = self.bias.to(h.dtype)
            return F.group_norm(h, self.num_groups, weight, bias, self.eps)


class ResidualBlock(Fast, blocks.ResidualBlock):
    """Changing the resolution in the dtype of what comes in, for the same reason."""

    plain = blocks.ResidualBlock

    def resampled(self, h: Tensor) -> Tensor:
        """`h` in the new resolution."""
        if not h.is_cuda:
            return super().resampled(h)
        with torch.autocast("cuda", enabled=False):
            return super().resampled(h)


class Upsample(Fast, blocks.Upsample):
    """Doubling in the dtype of its input, for the same reason."""

    plain = blocks.Upsample

    def forward(self, h: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, 2H, 2W]."""
        if not h.is_cuda:
            return super().forward(h)
        with torch.autocast("cuda", enabled=False):
            doubled = F.interpolate(h, scale_factor=2.0, mode="nearest")
        out: Tensor = self.conv(doubled)
        return out
