"""The U-Nets of NVlabs/edm, DDPM++ and ADM, top to bottom
(Karras et al. 2022, appendix F).

They differ from `unet.py` in their norms, whose groups follow the channels, and in how two paths
are added.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.networks.blocks import Attention, Resample, Style, TimeEmbedding, doubled, halved
from vdiff.networks.edm_unet_section import EdmUNetConfig, groups_of
from vdiff.networks.edm_unet_section import EdmUNetSection as EdmUNetSection
from vdiff.networks.network import Network
from vdiff.networks.repeated import Repeated

EPS = {"ddpm++": 1e-6, "adm": 1e-5}
"""Of every group norm."""


class EdmUNet(Network):
    """See `EdmUNetConfig` for its settings. It drops nothing in training."""

    def __init__(self, config: EdmUNetConfig) -> None:
        super().__init__()
        self._config = config
        widths = config.widths
        self.time_embedding = ClassTimeEmbedding(config)
        self.conv_in = nn.Conv2d(config.channels, config.first, 3, padding=1)
        self.down = nn.ModuleList()
        kept = [config.first]
        before = config.first
        for level, width in enumerate(widths):
            halving = Block(before, before, config, resample=halved) if level else None
            kept += [before] * (level > 0) + [width] * config.blocks
            heads = config.heads[level] if config.attends[level] else 0
            blocks = [
                Block(width if i else before, width, config, heads) for i in range(config.blocks)
            ]
            self.down.append(Level(halving, blocks))
            before = width
        self.middle = nn.ModuleList(
            [Block(before, before, config, config.heads[-1]), Block(before, before, config)]
        )
        self.up = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            is_lowest = level == len(widths) - 1
            doubling = None if is_lowest else Block(before, before, config, resample=doubled)
            blocks = []
            for i in range(config.blocks + 1):
                attends = config.attends[level] and (config.family == "adm" or i == config.blocks)
                heads = config.heads[level] if attends else 0
                blocks.append(Block(before + kept.pop(), width, config, heads))
                before = width
            self.up.append(Level(doubling, blocks))
        self.norm_out = nn.GroupNorm(groups_of(before), before, EPS[config.family])
        self.conv_out = nn.Conv2d(before, config.channels, 3, padding=1)

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
        """z: [B, C, H, W], H and W divisible by 2^(levels - 1).   time: [B].

        Returns [B, C, H, W] in the dtype of `z`.
        ValueError: a label is missing or not expected, or a guidance is told.
        """
        self.check_guidance(condition)
        embedding = F.silu(self.time_embedding(time, condition.label))
        h = self.conv_in(z.to(self.conv_in.weight.dtype))
        kept = [h]
        for level in self.down:
            h = level(h, embedding, kept, keeps=True)
        for block in self.middle:
            h = block(h, embedding)
        for level in self.up:
            h = level(h, embedding, kept, keeps=False)
        out: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return out.to(z.dtype)


class Level(nn.Module):
    """The blocks of one resolution; before them, one that changes to it, if any."""

    def __init__(self, resampling: "Block | None", blocks: "list[Block]") -> None:
        super().__init__()
        self.resampling = resampling
        self.blocks = nn.ModuleList(blocks)

    def forward(self, h: Tensor, embedding: Tensor, kept: list[Tensor], keeps: bool) -> Tensor:
        """keeps: on the way down every result is kept;
        on the way up each block takes in the last one that was.
        """
        if self.resampling is not None:
            h = self.resampling(h, embedding)
            if keeps:
                kept.append(h)
        for block in self.blocks:
            if not keeps:
                h = torch.cat([h, kept.pop()], dim=1)
            h = block(h, embedding)
            if keeps:
                kept.append(h)
        return h


class Block(Repeated):
    """A residual block and the attention behind it.   before, width: channels.
    heads: of the attention, 0 for none.   resample: changes the resolution of both paths.
    """

    def __init__(
        self,
        before: int,
        width: int,
        config: EdmUNetConfig,
        heads: int = 0,
        resample: Resample | None = None,
    ) -> None:
        super().__init__()
        is_adm = config.family == "adm"
        eps = EPS[config.family]
        self.resample = resample
        self.scales = is_adm
        self.scale_of_sum = 1.0 if is_adm else 0.5**0.5
        self.norm1 = nn.GroupNorm(groups_of(before), before, eps)
        self.conv1 = nn.Conv2d(before, width, 3, padding=1)
        self.time = nn.Linear(config.embedding, 2 * width if is_adm else width)
        self.norm2 = nn.GroupNorm(groups_of(width), width, eps)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut: nn.Module = nn.Identity()
        if before != width or (resample is not None and not is_adm):
            self.shortcut = nn.Conv2d(before, width, 1)
        self.attention: Attention | None = None
        if heads:
            style = Style(
                embedding=config.embedding,
                groups=groups_of(width),
                eps=eps,
                dropout=0.0,
                scale_shift=is_adm,
                head_dim=None,
                padding=1,
                num_heads=heads,
            )
            self.attention = Attention(width, style, groups_of(width))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x: [B, before, H, W].   embedding: [B, E], after its activation.

        Returns [B, width, H, W], in the resolution that `resample` makes.
        """
        h = F.silu(self.norm1(x))
        if self.resample is not None:
            h = self.resample(h)
            x = self.resample(x)
        h = self.conv1(h)
        told = self.time(embedding)[:, :, None, None]
        if self.scales:
            scale, shift = told.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), scale + 1)
        else:
            h = self.norm2(h + told)
        h = self.conv2(F.silu(h))
        shortcut: Tensor = self.shortcut(x)
        h = self._sum(shortcut + h)
        if self.attention is not None:
            h = self._sum(self.attention(h))
        return h

    def _sum(self, both: Tensor) -> Tensor:
        if self.scale_of_sum == 1:
            return both
        return both * self.scale_of_sum


class ClassTimeEmbedding(TimeEmbedding):
    """The time and the class as a vector, before the last activation.

    In `ddpm++` the class joins the sinusoid, and the activation is between the layers too; in `adm`
    it joins the embedding.
    """

    def __init__(self, config: EdmUNetConfig) -> None:
        is_adm = config.family == "adm"
        super().__init__(
            config.sinusoid, config.embedding, freq_shift=not is_adm, cosine_first=is_adm
        )
        self.is_late = is_adm
        self.classes: nn.Embedding | None = None
        if config.num_classes:
            width = config.embedding if is_adm else config.sinusoid
            self.classes = nn.Embedding(config.num_classes, width)

    def forward(self, time: Tensor, label: Tensor | None = None) -> Tensor:
        """time: [B].   label: int64 [B].   Returns [B, embedding]."""
        if (label is None) != (self.classes is None):
            told = "needs a `label` [B]" if label is None else "takes no `label`"
            raise ValueError(f"this network {told}")
        features = self.waves(time)
        if self.classes is not None and not self.is_late:
            features = features + self.classes(label)
        embedded: Tensor = self.linear_2(F.silu(self.linear_1(features)))
        if self.classes is not None and self.is_late:
            embedded = embedded + self.classes(label)
        return embedded
