"""The U-Net of lucidrains' denoising-diffusion-pytorch, versions 0.27 to 2.3, top to bottom.

It is another network than `unet.py`: convolutions come before their norms, attention is linear at
the high resolutions and has learned keys and values beside those of the pixels, and each level
keeps two results for the way up. The names of the weights are those of version 2.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.networks.lucidrains_section import AttentionConfig, LucidrainsConfig
from vdiff.networks.lucidrains_section import LucidrainsSection as LucidrainsSection
from vdiff.networks.network import Network
from vdiff.networks.repeated import Repeated


class LucidrainsUNet(Network):
    """See `LucidrainsConfig` for its settings.

    It is told of no classes, and drops nothing in training.
    """

    def __init__(self, config: LucidrainsConfig) -> None:
        super().__init__()
        self._config = config
        widths = config.widths
        self.init_conv = nn.Conv2d(config.channels, widths[0], 7, padding=3)
        self.time_mlp = TimeEmbedding(config)
        self.downs = nn.ModuleList(_down(config, level) for level in range(config.num_levels))
        self.mid_block1 = Block(widths[-1], widths[-1], config)
        self.mid_attn = _attention(widths[-1], config.middle, config)
        self.mid_block2 = Block(widths[-1], widths[-1], config)
        levels = reversed(range(config.num_levels))
        self.ups = nn.ModuleList(_up(config, level) for level in levels)
        self.final_res_block = Block(2 * widths[0], config.last_width, config)
        self.final_conv = nn.Conv2d(config.last_width, config.channels, 1)

    @property
    def config(self) -> dict[str, Any]:
        """What goes into `config.json`."""
        return self._config.model_dump(mode="json")

    def forward(
        self,
        z: Tensor,
        time: Tensor,
        condition: Condition = NOTHING,
        dropout_keys: Tensor | None = None,
    ) -> Tensor:
        """z: [B, C, H, W], H and W divisible by 2^(levels - 1).
        time: the table's index, [B], fractions allowed.

        Returns [B, C, H, W] in the dtype of `z`.
        ValueError: a label or a guidance is given.
        """
        self.check_guidance(condition)
        if condition.label is not None:
            raise ValueError("this network takes no `label`")
        embedding = self.time_mlp(time)
        h = self.init_conv(z.to(self.init_conv.weight.dtype))
        first = h
        kept: list[Tensor] = []
        for level in self.downs:
            block1, block2, attention, resample = _four(level)
            h = block1(h, embedding)
            kept.append(h)
            h = attention(block2(h, embedding))
            kept.append(h)
            h = resample(h)
        h = self.mid_block1(h, embedding)
        h = self.mid_block2(self.mid_attn(h), embedding)
        for level in self.ups:
            block1, block2, attention, resample = _four(level)
            h = block1(torch.cat([h, kept.pop()], dim=1), embedding)
            h = block2(torch.cat([h, kept.pop()], dim=1), embedding)
            h = resample(attention(h))
        h = self.final_res_block(torch.cat([h, first], dim=1), embedding)
        out: Tensor = self.final_conv(h)
        return out.to(z.dtype)


def _down(config: LucidrainsConfig, level: int) -> nn.ModuleList:
    """Two blocks with attention behind them, of the width above;
    then half the resolution and the next width.
    """
    width, below = config.widths[level], config.widths[level + 1]
    resample: nn.Module
    if level == config.num_levels - 1:
        resample = nn.Conv2d(width, below, 3, padding=1)
    elif config.halving == "convolution":
        resample = nn.Conv2d(width, below, 4, stride=2, padding=1)
    else:
        resample = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * width, below, 1))
    return nn.ModuleList(
        [
            Block(width, width, config),
            Block(width, width, config),
            _attention(width, config.attentions[level], config),
            resample,
        ]
    )


def _up(config: LucidrainsConfig, level: int) -> nn.ModuleList:
    """The way back of `_down`. Each block is given what one block of the way down has left."""
    width, above = config.widths[level + 1], config.widths[level]
    resample: nn.Module
    if level == 0:
        resample = nn.Conv2d(width, above, 3, padding=1)
    else:
        doubling = nn.Upsample(scale_factor=2.0, mode="nearest")
        resample = nn.Sequential(doubling, nn.Conv2d(width, above, 3, padding=1))
    return nn.ModuleList(
        [
            Block(width + above, width, config),
            Block(width + above, width, config),
            _attention(width, config.attentions[level], config),
            resample,
        ]
    )


def _four(level: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    block1, block2, attention, resample = level.children()
    return block1, block2, attention, resample


class Block(Repeated):
    """x + (conv -> norm -> silu) twice; the time scales and shifts the first of the two norms."""

    def __init__(self, before: int, width: int, config: LucidrainsConfig) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(config.time_width, 2 * width))
        self.block1 = Normed(before, width, config.groups)
        self.block2 = Normed(width, width, config.groups)
        self.res_conv: nn.Module = nn.Identity()
        if before != width:
            self.res_conv = nn.Conv2d(before, width, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x: [B, before, H, W].   embedding: [B, time_width].   Returns [B, width, H, W]."""
        scale, shift = self.mlp(embedding)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(self.block1(x) * (scale + 1) + shift)
        h = F.silu(self.block2(h))
        shortcut: Tensor = self.res_conv(x)
        return h + shortcut


class Normed(nn.Module):
    """A 3x3 convolution, then a norm.

    groups: of a group norm; None for one by the root mean square.
    """

    def __init__(self, before: int, width: int, groups: int | None) -> None:
        super().__init__()
        self.proj = nn.Conv2d(before, width, 3, padding=1)
        self.norm: nn.Module = RootMeanSquareNorm(width)
        if groups is not None:
            self.norm = nn.GroupNorm(groups, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, before, H, W] -> [B, width, H, W]."""
        out: Tensor = self.norm(self.proj(x))
        return out


def _attention(width: int, attention: AttentionConfig, config: LucidrainsConfig) -> nn.Module:
    if attention.full:
        return FullAttention(width, attention, config)
    return LinearAttention(width, attention, config)


class FullAttention(Repeated):
    """x + attention among all pixels; every pixel sees the learned memory too."""

    def __init__(self, width: int, attention: AttentionConfig, config: LucidrainsConfig) -> None:
        super().__init__()
        self.heads = attention.heads
        inner = attention.heads * attention.head_dim
        self.norm = _norm(width, config)
        self.to_qkv = nn.Conv2d(width, 3 * inner, 1, bias=False)
        self.mem_kv = _memory(attention.heads, config.memory, attention.head_dim)
        self.to_out = nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W]; the same shape comes back."""
        # [B, heads, pixels, head_dim]
        q, k, v = (part.mT for part in _heads(self.to_qkv(self.norm(x)), self.heads))
        k, v = _remembering(k, v, self.mem_kv, dim=2)
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.to_out(mixed.mT.reshape(len(x), -1, *x.shape[2:]))
        return out + x


class LinearAttention(Repeated):
    """x + attention whose cost grows with the number of pixels,
    not with its square   (Shen et al. 2018).
    """

    def __init__(self, width: int, attention: AttentionConfig, config: LucidrainsConfig) -> None:
        super().__init__()
        self.heads = attention.heads
        self.scale = attention.head_dim**-0.5
        self.divides_values = config.divides_values
        inner = attention.heads * attention.head_dim
        self.norm = _norm(width, config)
        self.to_qkv = nn.Conv2d(width, 3 * inner, 1, bias=False)
        self.mem_kv = _memory(attention.heads, attention.head_dim, config.memory)
        self.to_out = nn.Sequential(nn.Conv2d(inner, width, 1), _norm(width, config))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W]; the same shape comes back."""
        # [B, heads, head_dim, pixels]
        q, k, v = _heads(self.to_qkv(self.norm(x)), self.heads)
        if self.divides_values:
            v = v / (x.shape[2] * x.shape[3])
        k, v = _remembering(k, v, self.mem_kv, dim=3)
        context = k.softmax(dim=3) @ v.mT
        mixed = context.mT @ (q.softmax(dim=2) * self.scale)
        out: Tensor = self.to_out(mixed.reshape(len(x), -1, *x.shape[2:]))
        return out + x


def _heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, each [B, heads, head_dim, pixels], of [B, 3 heads head_dim, H, W]."""
    batch, channels, height, width = qkv.shape
    parts = qkv.view(batch, 3, heads, channels // (3 * heads), height * width)
    q, k, v = parts.unbind(dim=1)
    return q, k, v


def _memory(heads: int, *size: int) -> nn.Parameter | None:
    """Keys and values, [2, heads, *size]; None where there are none."""
    if 0 in size:
        return None
    return nn.Parameter(torch.randn(2, heads, *size))


def _remembering(k: Tensor, v: Tensor, memory: Tensor | None, dim: int) -> tuple[Tensor, Tensor]:
    """Keys and values with the learned ones before those of the pixels, which lie along `dim`."""
    if memory is None:
        return k, v
    keys, values = memory.to(k.dtype)[:, None].expand(-1, len(k), -1, -1, -1)
    return torch.cat([keys, k], dim=dim), torch.cat([values, v], dim=dim)


def _norm(width: int, config: LucidrainsConfig) -> nn.Module:
    if config.norm == "layer":
        return ChannelNorm(width)
    return RootMeanSquareNorm(width)


class RootMeanSquareNorm(nn.Module):
    """g x / rms(x) over the channels of each pixel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W]; the same shape comes back."""
        out: Tensor = F.normalize(x, dim=1) * self.g * x.shape[1] ** 0.5
        return out


class ChannelNorm(nn.Module):
    """g (x - mean) / deviation over the channels of each pixel; up to version 1.6."""

    eps = 1e-5

    def __init__(self, width: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W]; the same shape comes back."""
        centred = x - x.mean(dim=1, keepdim=True)
        variance = centred.square().mean(dim=1, keepdim=True)
        return centred * (variance + self.eps).rsqrt() * self.g


class TimeEmbedding(nn.Sequential):
    """The time as a vector: a sinusoid, then two linear layers with the exact GELU between them."""

    def __init__(self, config: LucidrainsConfig) -> None:
        super().__init__(
            Sinusoid(config.dim, config.theta),
            nn.Linear(config.dim, config.time_width),
            nn.GELU(),
            nn.Linear(config.time_width, config.time_width),
        )

    def forward(self, time: Tensor) -> Tensor:
        """time: [B], any dtype; fractions allowed.   Returns [B, time_width]."""
        sinusoid, linear1, gelu, linear2 = self.children()
        features = sinusoid(time).to(next(linear1.parameters()).dtype)
        embedding: Tensor = linear2(gelu(linear1(features)))
        return embedding


class Sinusoid(nn.Module):
    """Sines, then cosines of `dim` / 2 frequencies, 1 down to 1 / theta
    (Vaswani et al. 2017, section 3.5).
    """

    def __init__(self, dim: int, theta: float) -> None:
        super().__init__()
        self.num_waves = dim // 2
        self.theta = theta

    def forward(self, time: Tensor) -> Tensor:
        """time: [B], any dtype.   Returns float32 [B, dim]."""
        # float32 whatever the weights are: bfloat16 cannot tell time 998 from 999
        place = torch.arange(self.num_waves, dtype=torch.float32, device=time.device)
        frequency = torch.exp(place * (-math.log(self.theta) / (self.num_waves - 1)))
        angle = time.float()[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=1)
