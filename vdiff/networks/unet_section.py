"""What a recipe says of a U-Net, and whether that fits the pictures. Without torch."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from vdiff.config import shapes_weights
from vdiff.errors import UsageError
from vdiff.networks.section import NetworkSection
from vdiff.networks.unet_config import (
    MOST_LAYERS,
    MOST_LEVELS,
    DownBlockType,
    UNetConfig,
    UpBlockType,
)

if TYPE_CHECKING:
    from vdiff.networks.unet import UNet


_DOWN_BLOCK_TYPES: dict[bool, DownBlockType] = {False: "DownBlock2D", True: "AttnDownBlock2D"}
_UP_BLOCK_TYPES: dict[bool, UpBlockType] = {False: "UpBlock2D", True: "AttnUpBlock2D"}
"""The kinds of levels, without attention and with it, as diffusers calls them."""


class UNetSection(NetworkSection):
    """A U-Net: residual blocks at halving resolutions and back, with skip connections."""

    may_take_guidance: ClassVar[bool] = True

    kind: Literal["unet"] = shapes_weights("unet")
    """Which network this is."""
    width: int = shapes_weights(ge=2, le=4096)
    """Channels at the full resolution; time and memory grow with it,
    the number of parameters with its square.
    """
    multipliers: tuple[Annotated[int, Field(ge=1, le=16)], ...] = shapes_weights(
        min_length=1, max_length=MOST_LEVELS
    )
    """One number per level, from the full resolution down, each half the one before:
    its channels over `width`.
    """
    blocks: int = shapes_weights(2, ge=1, le=MOST_LAYERS)
    """Residual blocks per level on the way down (one more on the way up)."""
    attention_at: tuple[PositiveInt, ...] = shapes_weights(())
    """Resolutions, in pixels, whose blocks are followed by attention;
    its cost grows with the fourth power of them.
    """
    head_dim: PositiveInt | None = shapes_weights(None)
    """Channels per attention head; must divide the channels wherever attention sits. Not given:
    one head.
    """
    dropout: float = shapes_weights(0.0, ge=0, lt=1)
    """Probability that a value inside a residual block is set to zero in training;
    helps against overfitting.
    """
    num_classes: int | None = shapes_weights(None, ge=1, le=2**24)
    """Number of classes; the network is told the class of each picture. Not given:
    it is told nothing.
    """
    norm_groups: PositiveInt | None = shapes_weights(None)
    """Groups of channels that are normalized together. Not given:
    the most, up to 32, that divide every level.
    """
    time_scale_shift: bool = shapes_weights(True)
    """Whether the time scales and shifts the values in a residual block;
    otherwise it is only added to them.
    """
    mid_attention: bool = shapes_weights(True)
    """Whether attention sits between the two blocks at the lowest resolution."""

    def build(self, image_size: int, channels: int) -> "UNet":
        """The network for pictures of `image_size` x `image_size` pixels, with fresh weights."""
        from vdiff.networks.unet import UNet

        return UNet(self.configure(image_size, channels))

    @classmethod
    def restore(cls, config: object) -> "UNet":
        """The network of a model folder, with fresh weights, from its parsed `config.json`."""
        from vdiff.networks.unet import UNet

        return UNet.from_config(config)

    @classmethod
    def misfit(
        cls, config: Mapping[str, Any], shape: tuple[int, int, int], num_classes: int
    ) -> str | None:
        channels, height, width = shape
        expected = {
            "in_channels": channels,
            "out_channels": channels,
            "num_class_embeds": num_classes or None,
        }
        for name, value in expected.items():
            if config.get(name, value) != value:
                return name
        # diffusers writes nothing, one number for a square, or a list.
        sizes: list[object] = [None, [height, width]]
        if height == width:
            sizes.append(height)
        if config.get("sample_size") not in sizes:
            return "sample_size"
        return None

    def check(self, image_size: int, channels: int) -> None:
        self.configure(image_size, channels)

    def configure(self, image_size: int, channels: int) -> UNetConfig:
        """The configuration that `build` uses, without allocating anything.

        UsageError: the size cannot be halved, or `attention_at`, `head_dim` or `norm_groups` does
        not fit the levels.
        """
        widths = tuple(self.width * multiplier for multiplier in self.multipliers)
        resolutions = self._resolutions(image_size)
        attended = self._attended_levels(resolutions)
        self._check_heads(
            [width for width, attends in zip(widths, attended, strict=True) if attends]
        )
        groups = self._groups(math.gcd(*widths))
        self._check_norm(resolutions[-1] ** 2 * widths[-1] // groups)
        time_scale_shift: Literal["default", "scale_shift"] = "default"
        if self.time_scale_shift:
            time_scale_shift = "scale_shift"
        return UNetConfig(
            sample_size=image_size,
            in_channels=channels,
            out_channels=channels,
            flip_sin_to_cos=False,
            down_block_types=tuple(_DOWN_BLOCK_TYPES[attends] for attends in attended),
            up_block_types=tuple(_UP_BLOCK_TYPES[attends] for attends in reversed(attended)),
            block_out_channels=widths,
            layers_per_block=self.blocks,
            dropout=self.dropout,
            attention_head_dim=self.head_dim,
            norm_num_groups=groups,
            # Said, as diffusers would leave the norm before the attention in the middle out.
            attn_norm_num_groups=groups,
            resnet_time_scale_shift=time_scale_shift,
            add_attention=self.mid_attention,
            num_class_embeds=self.num_classes,
        )

    def _resolutions(self, image_size: int) -> list[int]:
        halvings = len(self.multipliers) - 1
        if image_size % 2**halvings:
            # The nearest sizes below and above that can be halved so often, but for 0.
            below = image_size >> halvings
            sizes = [size << halvings for size in (below, below + 1) if size]
            near = " or ".join(map(str, sizes))
            # The lowest bit that is set tells how often a number can be halved.
            most = (image_size & -image_size).bit_length()
            raise UsageError(
                f"pictures of {image_size} pixels cannot be halved {halvings} times for "
                f"{halvings + 1} levels",
                f"use pictures of {near} pixels, or at most {most} `multipliers`",
                "network.multipliers",
            )
        return [image_size >> level for level in range(halvings + 1)]

    def _attended_levels(self, resolutions: list[int]) -> list[bool]:
        missing = [str(size) for size in self.attention_at if size not in resolutions]
        if missing:
            raise UsageError(
                f"`attention_at` names {', '.join(missing)}, "
                "but no level of the network has that resolution",
                f"choose from the levels' resolutions: {', '.join(map(str, resolutions))}",
                "network.attention_at",
            )
        return [size in self.attention_at for size in resolutions]

    def _check_heads(self, widths: list[int]) -> None:
        middle = [self.width * self.multipliers[-1]] * self.mid_attention
        common = math.gcd(*widths, *middle)
        if self.head_dim and common % self.head_dim:
            raise UsageError(
                f"`head_dim` {self.head_dim} does not divide the channels where attention sits: "
                f"{[*widths, *middle]}",
                f"set `head_dim` to a divisor of {common}, or leave it out for one head",
                "network.head_dim",
            )

    def _groups(self, common: int) -> int:
        """The number of norm groups; `common` is the greatest common divisor
        of the levels' channels.
        """
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
        """`num_values` are normalized together at the lowest resolution:
        one alone always becomes 0.
        """
        if num_values == 1:
            raise UsageError(
                "the lowest level has 1 x 1 pixels and one channel per norm group, "
                "so it can pass nothing on",
                "use fewer `multipliers`, or fewer `norm_groups` than the "
                "lowest level has channels",
                "network.norm_groups",
            )
