"""The U-Net, top to bottom. What a recipe says of it is in `unet_section.py`."""

from dataclasses import replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.networks.blocks import DownLevel, Middle, Style, TimeEmbedding, UpLevel, zeroed
from vdiff.networks.dropout import Dropout
from vdiff.networks.guidance_embedding import GuidanceEmbedding
from vdiff.networks.network import Network
from vdiff.networks.unet_config import UNetConfig
from vdiff.networks.unet_section import UNetSection as UNetSection


class UNet(Network):
    """The U-Net of diffusers' `UNet2DModel`: the same function, settings and parameter names."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self._config = config
        widths = config.block_out_channels
        style = _style(config)
        # The names are those of diffusers, and the order decides the weights that a seed gives:
        # both stay.
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(
            config.sinusoid, config.embedding, config.freq_shift, config.flip_sin_to_cos
        )
        self.class_embedding = _class_embedding(config)
        self.down_blocks, skips = _down_levels(config, style)
        self.mid_block = Middle(widths[-1], style, config.add_attention, config.mid_norm_groups)
        self.up_blocks = _up_levels(config, style, skips)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], config.norm_eps)
        # Zero, as the last layer of every block: a fresh network predicts 0 whatever it sees.
        self.conv_out = zeroed(nn.Conv2d(widths[0], config.out_channels, 3, padding=1))
        # Last: the weights that a seed gives to the others do not depend on it.
        self.guidance_embedding: GuidanceEmbedding | None = None
        if config.takes_guidance:
            self.guidance_embedding = GuidanceEmbedding(config.embedding)
        self._number_dropouts()

    @classmethod
    def from_config(cls, config: object) -> Self:
        """The network, with fresh weights, of a parsed `config.json`;
        raises as `UNetConfig.parse` does.
        """
        return cls(UNetConfig.parse(config))

    @property
    def config(self) -> dict[str, Any]:
        """What goes into `config.json`."""
        return self._config.to_json()

    def diffusers(self) -> dict[str, Any] | None:
        """None where the heads are counted, the time has a width of its own, or guidance is told:
        `UNet2DModel` has no words for it.
        """
        return self.config if self._config.is_known_to_diffusers else None

    @property
    def takes_guidance(self) -> bool:
        return self.guidance_embedding is not None

    def with_guidance_input(self) -> "UNet":
        return self._made_anew({"takes_guidance": True}, self.state_dict())

    @torch.no_grad()
    def with_fixed_guidance(self, guidance: float) -> "UNet":
        assert self.guidance_embedding is not None, "a network that takes no guidance has none"
        weights = self.state_dict()
        bias = weights[_LAST_BIAS]
        told = torch.tensor([guidance], device=bias.device)
        # not in place: these are the weights of this network
        weights[_LAST_BIAS] = bias + self.guidance_embedding(told)[0]
        kept = {name: w for name, w in weights.items() if not name.startswith(_GUIDANCE)}
        return self._made_anew({"takes_guidance": None}, kept)

    def _made_anew(self, changes: dict[str, Any], weights: dict[str, Tensor]) -> "UNet":
        """A network of another configuration with these weights of this one.

        What they do not name keeps its fresh values.
        """
        made = UNet(self._config.model_copy(update=changes)).to(self.conv_in.weight)
        made.load_state_dict(made.state_dict() | weights)
        return made.train(self.training)

    def forward(
        self,
        z: Tensor,
        time: Tensor,
        condition: Condition = NOTHING,
        dropout_keys: Tensor | None = None,
    ) -> Tensor:
        """z: [B, C, H, W].   time: base-grid index, [B], fractions allowed.
        dropout_keys: int64 [B].

        Returns [B, out_channels, H, W] in the dtype of `z`.
        ValueError: a label or a guidance is missing or not expected.
        """
        # diffusers computes this activation again in every residual block.
        embedding = F.silu(self._embedding(time, condition))
        h = self.conv_in(z.to(self.conv_in.weight.dtype))
        # Down: every result is kept.   Up: the last one kept is used first.
        skips = [h]
        for level in self.down_blocks:
            h = level(h, embedding, skips, dropout_keys)
        h = self.mid_block(h, embedding, dropout_keys)
        for level in self.up_blocks:
            h = level(h, embedding, skips, dropout_keys)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(h)))
        return out.to(z.dtype)

    def _embedding(self, time: Tensor, condition: Condition) -> Tensor:
        self.check_guidance(condition)
        embedding: Tensor = self.time_embedding(time)
        label = condition.label
        if self.class_embedding is None:
            if label is not None:
                raise ValueError("this network takes no `label`")
        else:
            if label is None:
                raise ValueError("this network needs a `label` [B]")
            embedding = embedding + self.class_embedding(label)
        if self.guidance_embedding is not None and condition.guidance is not None:
            embedding = embedding + self.guidance_embedding(condition.guidance)
        return embedding

    def _number_dropouts(self) -> None:
        """Tell each dropout layer which one it is: layers with one number
        would drop the same places.
        """
        dropouts = (module for module in self.modules() if isinstance(module, Dropout))
        for number, dropout in enumerate(dropouts):
            dropout.layer = number


_GUIDANCE = "guidance_embedding."
_LAST_BIAS = "time_embedding.linear_2.bias"
"""What a fixed g is folded into."""


def _style(config: UNetConfig) -> Style:
    return Style(
        embedding=config.embedding,
        groups=config.norm_num_groups,
        eps=config.norm_eps,
        dropout=config.dropout,
        scale_shift=config.resnet_time_scale_shift == "scale_shift",
        head_dim=config.attention_head_dim,
        num_heads=config.num_attention_heads,
        padding=config.downsample_padding,
    )


def _class_embedding(config: UNetConfig) -> nn.Embedding | None:
    if config.num_class_embeds is None:
        return None
    embedding = nn.Embedding(config.num_class_embeds, config.embedding)
    # torch's standard deviation of 1 would drown the time at first.
    nn.init.normal_(embedding.weight, std=0.02)
    return embedding


def _down_levels(config: UNetConfig, style: Style) -> tuple[nn.ModuleList, list[int]]:
    """The levels on the way down, and the widths of the skip connections that they leave behind."""
    levels = nn.ModuleList()
    # The first skip connection is what `conv_in` gives.
    skips = [config.block_out_channels[0]]
    last = len(config.block_out_channels) - 1
    for i, width in enumerate(config.block_out_channels):
        before = skips[-1]
        block_type = config.down_block_types[i]
        attention = block_type == "AttnDownBlock2D"
        halves = i < last
        by_block = _by_block(block_type, config.downsample_type)
        levels.append(
            DownLevel(before, width, config.layers_per_block, style, attention, halves, by_block)
        )
        # One of each block, and one of the halving.
        skips += [width] * (config.layers_per_block + halves)
    return levels, skips


def _by_block(block_type: str, of_attended: str) -> bool:
    """Whether a residual block changes the resolution.

    of_attended: what does at levels with attention.
    """
    if block_type.startswith("Attn"):
        return of_attended == "resnet"
    return block_type.startswith("Resnet")


def _up_levels(config: UNetConfig, style: Style, skips: list[int]) -> nn.ModuleList:
    """The levels on the way up.   skips: what `_down_levels` gave; it is used up."""
    levels = nn.ModuleList()
    if config.num_attention_heads_up is not None:
        style = replace(style, num_heads=config.num_attention_heads_up)
    before = config.block_out_channels[-1]
    widths = reversed(config.block_out_channels)
    for block_type, width in zip(config.up_block_types, widths, strict=True):
        # One block more than on the way down: the halving left a skip connection too.
        used = [skips.pop() for _ in range(config.layers_per_block + 1)]
        attention = block_type == "AttnUpBlock2D"
        # What is left belongs to higher resolutions.
        doubles = len(skips) > 0
        by_block = _by_block(block_type, config.upsample_type)
        levels.append(UpLevel(before, width, used, style, attention, doubles, by_block))
        before = width
    return levels
