"""The U-Net: what a recipe says about it, and the network itself."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from vdiff.config import trajectory
from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.errors import UsageError
from vdiff.networks.blocks import DownLevel, Middle, Style, TimeEmbedding, UpLevel, zeroed
from vdiff.networks.dropout import Dropout
from vdiff.networks.network import Network, NetworkSection
from vdiff.networks.unet_config import MOST_LAYERS, MOST_LEVELS, UNetConfig


class UNetSection(NetworkSection):
    """A U-Net: residual blocks at halving resolutions and back, with skip connections."""

    kind: Literal["unet"] = trajectory("unet")
    """Which network this is."""
    width: int = trajectory(ge=2, le=4096)
    """Channels at the full resolution; time and memory grow with it, the number of parameters with its square."""
    multipliers: tuple[Annotated[int, Field(ge=1, le=16)], ...] = trajectory(min_length=1, max_length=MOST_LEVELS)
    """One number per level, from the full resolution down, each half the one before: its channels over `width`."""
    blocks: int = trajectory(2, ge=1, le=MOST_LAYERS)
    """Residual blocks per level on the way down (one more on the way up)."""
    attention_at: tuple[PositiveInt, ...] = trajectory(())
    """Resolutions, in pixels, whose blocks are followed by attention; its cost grows with the fourth power of them."""
    head_dim: PositiveInt | None = trajectory(None)
    """Channels per attention head; must divide the channels wherever attention sits. Not given: one head."""
    dropout: float = trajectory(0.0, ge=0, lt=1)
    """Probability that a value inside a residual block is set to zero in training; helps against overfitting."""
    num_classes: int | None = trajectory(None, ge=1, le=2**24)
    """Number of classes; the network is told the class of each picture. Not given: it is told nothing."""
    norm_groups: PositiveInt | None = trajectory(None)
    """Groups of channels that are normalized together. Not given: the most, up to 32, that divide every level."""
    time_scale_shift: bool = trajectory(True)
    """Whether the time scales and shifts the values in a residual block; otherwise it is only added to them."""
    mid_attention: bool = trajectory(True)
    """Whether attention sits between the two blocks at the lowest resolution."""

    def build(self, image_size: int, channels: int) -> "UNet":
        """The network for pictures of `image_size` x `image_size` pixels, with fresh weights."""
        return UNet(self.configure(image_size, channels))

    @classmethod
    def restore(cls, config: object) -> "UNet":
        """The network of a model folder, with fresh weights, from its parsed `config.json`."""
        return UNet.from_config(config)

    @classmethod
    def misfit(cls, config: Mapping[str, Any], shape: tuple[int, int, int], num_classes: int) -> str | None:
        channels, *size = shape
        expected = {"in_channels": channels, "out_channels": channels, "num_class_embeds": num_classes or None}
        for name, value in expected.items():
            if config.get(name, value) != value:
                return name
        sizes: list[object] = [None, size]
        if size[0] == size[1]:
            sizes.append(size[0])
        return None if config.get("sample_size") in sizes else "sample_size"

    def check(self, image_size: int, channels: int) -> None:
        self.configure(image_size, channels)

    def configure(self, image_size: int, channels: int) -> "UNetConfig":
        """The configuration that `build` uses, without allocating anything.

        UsageError: the size cannot be halved, or `attention_at`, `head_dim` or `norm_groups` does not fit the levels.
        """
        widths = tuple(self.width * multiplier for multiplier in self.multipliers)
        resolutions = self._resolutions(image_size)
        attended = self._attended_levels(resolutions)
        self._check_heads([width for width, attends in zip(widths, attended, strict=True) if attends])
        groups = self._groups(math.gcd(*widths))
        self._check_norm(resolutions[-1] ** 2 * widths[-1] // groups)
        return UNetConfig(
            sample_size=image_size,
            in_channels=channels,
            out_channels=channels,
            flip_sin_to_cos=False,
            down_block_types=tuple("AttnDownBlock2D" if attends else "DownBlock2D" for attends in attended),
            up_block_types=tuple("AttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(attended)),
            block_out_channels=widths,
            layers_per_block=self.blocks,
            dropout=self.dropout,
            attention_head_dim=self.head_dim,
            norm_num_groups=groups,
            attn_norm_num_groups=groups,
            resnet_time_scale_shift="scale_shift" if self.time_scale_shift else "default",
            add_attention=self.mid_attention,
            num_class_embeds=self.num_classes,
        )

    def _resolutions(self, image_size: int) -> list[int]:
        halvings = len(self.multipliers) - 1
        if image_size % 2**halvings:
            sizes = [size for size in (image_size >> halvings, (image_size >> halvings) + 1) if size]
            near = " or ".join(str(size << halvings) for size in sizes)
            most = (image_size & -image_size).bit_length()
            raise UsageError(
                f"pictures of {image_size} pixels cannot be halved {halvings} times for {halvings + 1} levels",
                f"use pictures of {near} pixels, or at most {most} `multipliers`",
                "network.multipliers",
            )
        return [image_size >> level for level in range(halvings + 1)]

    def _attended_levels(self, resolutions: list[int]) -> list[bool]:
        missing = [str(size) for size in self.attention_at if size not in resolutions]
        if missing:
            raise UsageError(
                f"`attention_at` names {', '.join(missing)}, but no level of the network has that resolution",
                f"choose from the levels' resolutions: {', '.join(map(str, resolutions))}",
                "network.attention_at",
            )
        return [size in self.attention_at for size in resolutions]

    def _check_heads(self, widths: list[int]) -> None:
        middle = [self.width * self.multipliers[-1]] * self.mid_attention
        common = math.gcd(*widths, *middle)
        if self.head_dim and common % self.head_dim:
            raise UsageError(
                f"`head_dim` {self.head_dim} does not divide the channels where attention sits: {[*widths, *middle]}",
                f"set `head_dim` to a divisor of {common}, or leave it out for one head",
                "network.head_dim",
            )

    def _groups(self, common: int) -> int:
        """The number of norm groups; `common` is the greatest common divisor of the levels' channels."""
        if self.norm_groups is None:
            return max(groups for groups in range(1, 33) if common % groups == 0)
        if common % self.norm_groups:
            raise UsageError(
                f"`norm_groups` {self.norm_groups} does not divide the channels of every level",
                f"set `norm_groups` to a divisor of {common}, or leave it out",
                "network.norm_groups",
            )
        return self.norm_groups

    def _check_norm(self, num_values: int) -> None:
        """`num_values` are normalized together at the lowest resolution: one alone always becomes 0."""
        if num_values == 1:
            raise UsageError(
                "the lowest level has 1 x 1 pixels and one channel per norm group, so it can pass nothing on",
                "use fewer `multipliers`, or fewer `norm_groups` than the lowest level has channels",
                "network.norm_groups",
            )


class UNet(Network):
    """The U-Net of diffusers' `UNet2DModel`: the same function, settings and parameter names."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self._config = config
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], config.embedding, config.freq_shift, config.flip_sin_to_cos)
        self.class_embedding = _class_embedding(config)
        self.down_blocks, skips = _down_levels(config)
        self.mid_block = Middle(widths[-1], _style(config), config.add_attention, config.mid_norm_groups)
        self.up_blocks = _up_levels(config, skips)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], config.norm_eps)
        self.conv_out = zeroed(nn.Conv2d(widths[0], config.out_channels, 3, padding=1))
        dropouts = (module for module in self.modules() if isinstance(module, Dropout))
        for layer, dropout in enumerate(dropouts):
            dropout.layer = layer

    @classmethod
    def from_config(cls, config: object) -> Self:
        """The network, with fresh weights, of a parsed `config.json`; raises as `UNetConfig.read` does."""
        return cls(UNetConfig.read(config))

    @property
    def config(self) -> dict[str, Any]:
        """What goes into `config.json`."""
        return self._config.to_json()

    def diffusers(self) -> dict[str, Any]:
        return self.config

    def forward(
        self, z: Tensor, time: Tensor, condition: Condition = NOTHING, dropout_keys: Tensor | None = None
    ) -> Tensor:
        """z: [B, C, H, W].   time: base-grid index, [B], fractions allowed.   dropout_keys: int64 [B].

        Returns [B, out_channels, H, W] in the dtype of `z`.   ValueError: a label is missing or not expected.
        """
        embedding = F.silu(self._embedding(time, condition.label))
        h = self.conv_in(z.to(self.conv_in.weight.dtype))
        skips = [h]
        for level in self.down_blocks:
            h = level(h, embedding, skips, dropout_keys)
        h = self.mid_block(h, embedding, dropout_keys)
        for level in self.up_blocks:
            h = level(h, embedding, skips, dropout_keys)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(h)))
        return out.to(z.dtype)

    def _embedding(self, time: Tensor, label: Tensor | None) -> Tensor:
        embedding: Tensor = self.time_embedding(time)
        if (label is None) != (self.class_embedding is None):
            raise ValueError("this network " + ("takes no `label`" if label is not None else "needs a `label` [B]"))
        return embedding if self.class_embedding is None else embedding + self.class_embedding(label)


def _style(config: UNetConfig) -> Style:
    return Style(
        embedding=config.embedding,
        groups=config.norm_num_groups,
        eps=config.norm_eps,
        dropout=config.dropout,
        scale_shift=config.resnet_time_scale_shift == "scale_shift",
        head_dim=config.attention_head_dim,
        padding=config.downsample_padding,
    )


def _class_embedding(config: UNetConfig) -> nn.Embedding | None:
    if config.num_class_embeds is None:
        return None
    embedding = nn.Embedding(config.num_class_embeds, config.embedding)
    # torch's standard deviation of 1 would drown the time at first.
    nn.init.normal_(embedding.weight, std=0.02)
    return embedding


def _down_levels(config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """The levels on the way down, and the widths of the skip connections that they leave behind."""
    levels = nn.ModuleList()
    skips = [config.block_out_channels[0]]
    for i, (block_type, width) in enumerate(zip(config.down_block_types, config.block_out_channels, strict=True)):
        halves = i < len(config.down_block_types) - 1
        attention = block_type == "AttnDownBlock2D"
        levels.append(DownLevel(skips[-1], width, config.layers_per_block, _style(config), attention, halves))
        skips += [width] * (config.layers_per_block + halves)
    return levels, skips


def _up_levels(config: UNetConfig, skips: list[int]) -> nn.ModuleList:
    levels = nn.ModuleList()
    before = config.block_out_channels[-1]
    for block_type, width in zip(config.up_block_types, reversed(config.block_out_channels), strict=True):
        used = [skips.pop() for _ in range(config.layers_per_block + 1)]
        levels.append(UpLevel(before, width, used, _style(config), block_type == "AttnUpBlock2D", doubles=bool(skips)))
        before = width
    return levels
