"""A small diffusion transformer (Peebles & Xie 2023):
patches, attention, and modulation by time and class.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdiff.config import shapes_weights
from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.errors import ModelFileError, UsageError
from vdiff.networks.dropout import Dropout
from vdiff.networks.network import Network, NetworkSection
from vdiff.networks.repeated import Repeated


class DiTSection(NetworkSection):
    """A transformer over patches; no convolutions and no skip connections."""

    kind: Literal["dit"] = shapes_weights("dit")
    """Which network."""
    width: int = shapes_weights(64, ge=8, multiple_of=8)
    """Channels of a patch."""
    depth: int = shapes_weights(4, ge=1)
    """Blocks."""
    heads: int = shapes_weights(4, ge=1)
    """Attention heads; must divide `width`."""
    patch: int = shapes_weights(2, ge=1)
    """Height and width of a patch in pixels; must divide those of the pictures."""
    dropout: float = shapes_weights(0.0, ge=0, lt=1)
    """Probability that a value between the two layers of a block is set to zero in training."""
    num_classes: int | None = shapes_weights(None, ge=1)
    """Number of classes; not given: the network is told none."""

    def build(self, image_size: int, channels: int) -> "DiT":
        self.check(image_size, channels)
        return DiT(
            {**self.model_dump(exclude={"kind"}), "image_size": image_size, "channels": channels}
        )

    def check(self, image_size: int, channels: int) -> None:
        if image_size % self.patch:
            problem = f"pictures of {image_size} pixels cannot be cut into patches of {self.patch}"
            raise UsageError(problem, "take another `patch`", "network.patch")
        if self.width % self.heads:
            raise UsageError(
                f"{self.heads} heads do not divide a width of {self.width}",
                "take others",
                "network.heads",
            )

    @classmethod
    def restore(cls, config: Mapping[str, Any]) -> "DiT":
        given = dict(config)
        size, channels = given.pop("image_size", 0), given.pop("channels", 0)
        try:
            return cls.model_validate(given).build(size, channels)
        except (ValueError, TypeError) as err:
            raise ModelFileError(
                "this is no configuration of a `dit`", "take another folder"
            ) from err

    @classmethod
    def misfit(
        cls, config: Mapping[str, Any], shape: tuple[int, int, int], num_classes: int
    ) -> str | None:
        channels, height, width = shape
        if height != width or config["image_size"] != height:
            return "image_size"
        if config["channels"] != channels:
            return "channels"
        return None if (config["num_classes"] or 0) == num_classes else "num_classes"


class DiT(Network):
    """Patches -> blocks -> patches. At first it predicts 0, whatever the weights are."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self._config = dict(config)
        width, patch, channels = config["width"], config["patch"], config["channels"]
        count = (config["image_size"] // patch) ** 2
        self.patch, self.channels = patch, channels
        self.patches = nn.Linear(channels * patch**2, width)
        self.places = nn.Parameter(torch.randn(1, count, width) * 0.02)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        classes = config["num_classes"]
        self.classes = nn.Embedding(classes, width) if classes else None
        self.blocks = nn.ModuleList(
            Block(width, config["heads"], config["dropout"], layer)
            for layer in range(config["depth"])
        )
        self.last = nn.Linear(width, channels * patch**2)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    @property
    def config(self) -> dict[str, Any]:
        return dict(self._config)

    def forward(
        self,
        z: Tensor,
        time: Tensor,
        condition: Condition = NOTHING,
        dropout_keys: Tensor | None = None,
    ) -> Tensor:
        if (condition.label is None) != (self.classes is None):
            raise ValueError("a `label` is missing or not expected")
        told = self.time(waves(time, self.places.shape[-1]).to(self.places.dtype))
        if self.classes is not None:
            told = told + self.classes(condition.label)
        h = self.patches(
            F.pixel_unshuffle(z.to(self.places.dtype), self.patch).flatten(2).transpose(1, 2)
        )
        h = h + self.places
        for block in self.blocks:
            h = block(h, told, dropout_keys)
        size = z.shape[-1] // self.patch
        out = (
            self.last(F.layer_norm(h, h.shape[-1:])).transpose(1, 2).reshape(len(z), -1, size, size)
        )
        images: Tensor = F.pixel_shuffle(out, self.patch)
        return images.to(z.dtype)


class Block(Repeated):
    """Attention and two layers, each scaled, shifted and gated by time and class;
    at first it passes its input on.
    """

    def __init__(self, width: int, heads: int, dropout: float, layer: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.dropout = Dropout(dropout)
        self.dropout.layer = layer
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, told: Tensor, dropout_keys: Tensor | None) -> Tensor:
        """h: [B, patches, width].   told: [B, width]."""
        shift, scale, gate, shift_2, scale_2, gate_2 = self.modulation(F.silu(told))[:, None].chunk(
            6, -1
        )
        normed = F.layer_norm(h, h.shape[-1:]) * (1 + scale) + shift
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(normed).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h = h + gate * self.out(mixed)
        normed = F.layer_norm(h, h.shape[-1:]) * (1 + scale_2) + shift_2
        wide = self.dropout(F.gelu(self.wide(normed), approximate="tanh"), dropout_keys)
        out: Tensor = h + gate_2 * self.narrow(wide)
        return out


def waves(time: Tensor, width: int) -> Tensor:
    """Sines and cosines of the time at `width` / 2 frequencies, float32 [B, width]."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=time.device) * (-math.log(10_000) / half))
    angle = time.float()[:, None] * frequencies
    return torch.cat([angle.sin(), angle.cos()], 1)
