"""The U-Net and its blocks, with parts that do the same faster on a CPU."""

import torch
from torch import Tensor

from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.networks import blocks, unet
from vdiff.networks.cpu.attention import attend
from vdiff.networks.cpu.doubling import convolved_double, doubled
from vdiff.networks.cpu.layout import laid_out
from vdiff.networks.cpu.norm import scaled_norm
from vdiff.networks.cpu.prepacked import Conv2d
from vdiff.networks.fast import Fast


class UNet(Fast, unet.UNet):
    """What comes in is laid out, and every layer passes the memory format on; see `laid_out`."""

    plain = unet.UNet

    def forward(
        self,
        z: Tensor,
        time: Tensor,
        condition: Condition = NOTHING,
        dropout_keys: Tensor | None = None,
    ) -> Tensor:
        """As the plain one."""
        return super().forward(laid_out(z), time, condition, dropout_keys)


class ResidualBlock(Fast, blocks.ResidualBlock):
    """The time's scale and shift are taken into those of the group norm:
    one pass over the activations less.
    """

    plain = blocks.ResidualBlock

    def scaled(self, h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """shift + (1 + scale) * norm2(h).   h: [B, C, H, W].   scale, shift: [B, C]."""
        # torch's compiler fuses the two by itself.
        if h.device.type != "cpu" or torch.compiler.is_compiling():
            return super().scaled(h, scale, shift)
        return scaled_norm(self.norm2, h, scale, shift)

    def resampled(self, h: Tensor) -> Tensor:
        """`h` in the new resolution, which may want another memory format."""
        if h.device.type == "cpu" and self.resample is blocks.doubled:
            return doubled(h)
        return laid_out(super().resampled(h))


class Attention(Fast, blocks.Attention):
    """Attention in bfloat16 by two plain products, where the table of all
    pairs of pixels is small.
    """

    plain = blocks.Attention

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v: [B, heads, pixels, head_dim]; the same shape comes back."""
        return attend(q, k, v)


class Downsample(Fast, blocks.Downsample):
    """The halved image is laid out anew, as a smaller one may be faster
    in another memory format.
    """

    plain = blocks.Downsample

    def forward(self, h: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H/2, W/2]."""
        return laid_out(super().forward(h))


class Upsample(Fast, blocks.Upsample):
    """Doubling and convolving at once, where that is less work."""

    plain = blocks.Upsample

    def forward(self, h: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, 2H, 2W]."""
        # Somebody may have put another layer in the place of the convolution.
        if h.device.type != "cpu" or not isinstance(self.conv, Conv2d):
            return super().forward(h)
        return convolved_double(h, self.conv)
