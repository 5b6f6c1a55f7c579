"""The parts of a U-Net: residual blocks, attention, and its levels.

They compute what those of diffusers' `UNet2DModel` compute, with torch's own layers. What makes
them faster on a CPU or a GPU is put in from outside; see `fast.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdiff.networks.dropout import Dropout
from vdiff.networks.repeated import Repeated


@dataclass(frozen=True)
class Style:
    """What all blocks of one network share.

    embedding: width of the time embedding.   groups, eps: of every group norm.
    dropout: probability.
    scale_shift: the time scales and shifts the second norm (otherwise it is added before it).
    head_dim: channels per attention head, None for one head or `num_heads` of them.
    padding: 1, or 0 to pad only right and bottom.
    """

    embedding: int
    groups: int
    eps: float
    dropout: float
    scale_shift: bool
    head_dim: int | None
    padding: int
    num_heads: int | None = None


class DownLevel(nn.Module):
    """One level on the way down: diffusers' `DownBlock2D`, or `AttnDownBlock2D` with `attention`.

    Residual blocks of one resolution, each followed by attention if there is any; then, if
    `halves`, a halving.
    before, width: channels of the input and of the output.
    by_block: a residual block halves, and no strided convolution.
    """

    def __init__(
        self,
        before: int,
        width: int,
        num_blocks: int,
        style: Style,
        attention: bool,
        halves: bool,
        by_block: bool = False,
    ) -> None:
        super().__init__()
        # All residual blocks are made before the attentions: the order in which layers are made
        # decides which random numbers their weights get, and one seed must give the same network
        # for ever.
        self.resnets = nn.ModuleList()
        for i in range(num_blocks):
            width_in = before if i == 0 else width
            self.resnets.append(ResidualBlock(width_in, width, style))
        self.attentions = nn.ModuleList()
        if attention:
            self.attentions.extend(Attention(width, style, style.groups) for _ in range(num_blocks))
        # A list of one or none, as in diffusers: its weights are called `downsamplers.0.conv`.
        self.downsamplers = nn.ModuleList()
        if halves and by_block:
            self.downsamplers.append(ResidualBlock(width, width, style, halved))
        elif halves:
            self.downsamplers.append(Downsample(width, style.padding))

    def forward(
        self, h: Tensor, embedding: Tensor, skips: list[Tensor], dropout_keys: Tensor | None
    ) -> Tensor:
        """The output of the level; every intermediate result is appended to `skips`."""
        for i, block in enumerate(self.resnets):
            h = block(h, embedding, dropout_keys)
            if self.attentions:
                h = self.attentions[i](h)
            skips.append(h)
        for downsample in self.downsamplers:
            if isinstance(downsample, ResidualBlock):
                h = downsample(h, embedding, dropout_keys)
            else:
                h = downsample(h)
            skips.append(h)
        return h


class Middle(nn.Module):
    """The lowest resolution: diffusers' `UNetMidBlock2D`. Two residual blocks, with attention
    between them if any.

    norm_groups: of the group norm before the attention; None: there is no norm.
    """

    def __init__(self, width: int, style: Style, attention: bool, norm_groups: int | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(width, width, style) for _ in range(2))
        self.attentions = nn.ModuleList()
        if attention:
            self.attentions.append(Attention(width, style, norm_groups))

    def forward(self, h: Tensor, embedding: Tensor, dropout_keys: Tensor | None) -> Tensor:
        """The same shape as `h`."""
        h = self.resnets[0](h, embedding, dropout_keys)
        for attention in self.attentions:
            h = attention(h)
        out: Tensor = self.resnets[1](h, embedding, dropout_keys)
        return out


class UpLevel(nn.Module):
    """One level on the way up: diffusers' `UpBlock2D`, or `AttnUpBlock2D` with `attention`.

    Residual blocks that each take in one skip connection and are followed by attention if there is
    any; then, if `doubles`, a doubling.   before: channels of what comes from below.
    width: channels of the output.
    skips: channels of the skip connections, in the order of their use.
    by_block: a residual block doubles, and no convolution.
    """

    def __init__(
        self,
        before: int,
        width: int,
        skips: list[int],
        style: Style,
        attention: bool,
        doubles: bool,
        by_block: bool = False,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList()
        width_in = before
        for skip in skips:
            # `forward` puts the channels of the skip connection behind the others.
            self.resnets.append(ResidualBlock(width_in + skip, width, style))
            width_in = width
        self.attentions = nn.ModuleList()
        if attention:
            self.attentions.extend(Attention(width, style, style.groups) for _ in skips)
        self.upsamplers = nn.ModuleList()
        if doubles and by_block:
            self.upsamplers.append(ResidualBlock(width, width, style, doubled))
        elif doubles:
            self.upsamplers.append(Upsample(width))

    def forward(
        self, h: Tensor, embedding: Tensor, skips: list[Tensor], dropout_keys: Tensor | None
    ) -> Tensor:
        """The output of the level; the skip connections that it uses are taken
        off the end of `skips`.
        """
        for i, block in enumerate(self.resnets):
            h = block(torch.cat([h, skips.pop()], dim=1), embedding, dropout_keys)
            if self.attentions:
                h = self.attentions[i](h)
        for upsample in self.upsamplers:
            if isinstance(upsample, ResidualBlock):
                h = upsample(h, embedding, dropout_keys)
            else:
                h = upsample(h)
        return h


class ResidualBlock(Repeated):
    """diffusers' `ResnetBlock2D`: x + conv(dropout(silu(norm(conv(silu(norm(x))), time)))).

    At first the last convolution is zero, so a fresh block passes `x` on.

    resample: changes the resolution of x, and of what the first convolution gets.
    """

    def __init__(
        self, before: int, width: int, style: Style, resample: "Resample | None" = None
    ) -> None:
        super().__init__()
        self.resample = resample
        self.scale_shift = style.scale_shift
        # The time gives each channel a scale and a shift, or one number that is added to it.
        width_of_time = width
        if style.scale_shift:
            width_of_time = 2 * width
        self.norm1 = nn.GroupNorm(style.groups, before, style.eps)
        self.conv1 = nn.Conv2d(before, width, 3, padding=1)
        self.time_emb_proj = nn.Linear(style.embedding, width_of_time)
        self.norm2 = nn.GroupNorm(style.groups, width, style.eps)
        self.dropout = Dropout(style.dropout)
        self.conv2 = zeroed(nn.Conv2d(width, width, 3, padding=1))
        # Without a change of width there is nothing to learn here, and diffusers has no such
        # weights.
        self.conv_shortcut: nn.Module = nn.Identity()
        if before != width:
            self.conv_shortcut = nn.Conv2d(before, width, 1)

    def forward(self, x: Tensor, embedding: Tensor, dropout_keys: Tensor | None) -> Tensor:
        """x: [B, C, H, W].   embedding: the time after its activation, [B, embedding].

        Returns [B, width, H, W], in the resolution that `resample` makes.
        """
        # One name for all of them: what nobody needs any more is freed at once.
        h: Tensor = F.silu(self.norm1(x))
        if self.resample is not None:
            h = self.resampled(h)
            x = self.resampled(x)
        h = self.conv1(h)
        time = self.time_emb_proj(embedding)
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = self.scaled(h, scale, shift)
        else:
            h = self.norm2(h + time[:, :, None, None])
        h = self.conv2(self.dropout(F.silu(h), dropout_keys))
        shortcut: Tensor = self.conv_shortcut(x)
        # The shortcut comes first: the sum takes over the memory format of its first term.
        return shortcut + h

    def resampled(self, h: Tensor) -> Tensor:
        """`h` in the new resolution."""
        assert self.resample is not None
        return self.resample(h)

    def scaled(self, h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """shift + (1 + scale) * norm2(h).   h: [B, C, H, W].   scale, shift: [B, C]."""
        # A method of its own, so that `cpu/blocks.py` can do it in one pass over the activations.
        return torch.addcmul(shift[:, :, None, None], self.norm2(h), 1 + scale[:, :, None, None])


class Attention(Repeated):
    """x + attention among all pixels of each image (Vaswani et al. 2017).

    At first it passes `x` on: the output projection is zero.   norm_groups: as in `Middle`.
    """

    def __init__(self, width: int, style: Style, norm_groups: int | None) -> None:
        super().__init__()
        self.head_dim = style.head_dim or width // (style.num_heads or 1)
        self.group_norm: nn.Module = nn.Identity()
        if norm_groups:
            self.group_norm = nn.GroupNorm(norm_groups, width, style.eps)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        # A list, as in diffusers, where a dropout layer follows: the weights are called `to_out.0`.
        self.to_out = nn.ModuleList([zeroed(nn.Linear(width, width))])

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W]; the same shape comes back."""
        # Contiguous once, or the three projections and their gradients would copy it each for
        # itself.
        pixels = self.group_norm(x).flatten(2).transpose(1, 2).contiguous()
        q, k, v = (self._heads(project(pixels)) for project in (self.to_q, self.to_k, self.to_v))
        mixed = self.attend(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = self.to_out[0](mixed)
        # x comes first: the sum takes over the memory format of its first term.
        return x + out.transpose(1, 2).reshape(x.shape)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(head_dim)) v.   q, k, v: [B, heads, pixels, head_dim]."""
        return F.scaled_dot_product_attention(q, k, v)

    def _heads(self, features: Tensor) -> Tensor:
        return features.view(*features.shape[:2], -1, self.head_dim).transpose(1, 2)


class Downsample(nn.Module):
    """Halve the resolution with a strided convolution;
    padding 0 means one pixel right and bottom.
    """

    def __init__(self, width: int, padding: int) -> None:
        super().__init__()
        self.pads_one_side = padding == 0
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=padding)

    def forward(self, h: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H/2, W/2]."""
        if self.pads_one_side:
            # DDPM was written for TensorFlow, whose padding "same" of a stride of 2 is right and
            # bottom.
            h = F.pad(h, (0, 1, 0, 1))
        out: Tensor = self.conv(h)
        return out


class Upsample(nn.Module):
    """Double the resolution: each pixel four times, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, 2H, 2W]."""
        out: Tensor = self.conv(doubled(h))
        return out


Resample = Callable[[Tensor], Tensor]
"""[B, C, H, W] in another resolution, without anything learned."""


def halved(h: Tensor) -> Tensor:
    """Means of 2 x 2 pixels: [B, C, H, W] -> [B, C, H/2, W/2]."""
    return F.avg_pool2d(h, 2)


def doubled(h: Tensor) -> Tensor:
    """Each pixel four times: [B, C, H, W] -> [B, C, 2H, 2W]."""
    return F.interpolate(h, scale_factor=2.0, mode="nearest")


class TimeEmbedding(nn.Module):
    """The time as a vector: sines and cosines of `width` / 2 frequencies, 1 down to 1/10000,
    then two linear layers.

    Vaswani et al. 2017, section 3.5.   freq_shift: 1 makes the lowest frequency exactly 1/10000.
    """

    def __init__(self, width: int, embedding: int, freq_shift: int, cosine_first: bool) -> None:
        super().__init__()
        self.width = width
        self.freq_shift = freq_shift
        self.cosine_first = cosine_first
        self.linear_1 = nn.Linear(width, embedding)
        self.linear_2 = nn.Linear(embedding, embedding)

    def forward(self, time: Tensor) -> Tensor:
        """time: [B], any dtype; fractions allowed.   Returns [B, embedding]."""
        embedded: Tensor = self.linear_2(F.silu(self.linear_1(self.waves(time))))
        return embedded

    def waves(self, time: Tensor) -> Tensor:
        """Sines and cosines in the dtype of the weights, [B, width].   time: [B]."""
        half = self.width // 2
        # float32 whatever the weights are: bfloat16 cannot tell time 1022 from 1023.
        exponent = torch.arange(half, dtype=torch.float32, device=time.device) * -math.log(10_000)
        angle = time.float()[:, None] * torch.exp(exponent / (half - self.freq_shift))
        waves = [angle.sin(), angle.cos()]
        if self.cosine_first:
            waves.reverse()
        # Sines and cosines come in pairs: an odd width is filled up with a zero.
        features = F.pad(torch.cat(waves, dim=1), (0, self.width % 2))
        return features.to(self.linear_1.weight.dtype)


def zeroed(module: nn.Module) -> nn.Module:
    """`module` with all its parameters zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
