"""Checkpoints of diffusion_distiller: how many steps they are for,
and which U-Net their tensors belong to.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from vdiff.disk.tensor_facts import is_size
from vdiff.formats.adapter import ForeignModel, Format
from vdiff.formats.contents import Contents
from vdiff.formats.foreign_file import ForeignFile, warning
from vdiff.formats.opcodes import Table

Shapes = Mapping[str, tuple[int, ...]]


class DistillerFormat(Format):
    """`{"G": weights, "n_timesteps": N, "time_scale": s}` in a file of torch."""

    options: ClassVar[Mapping[str, str]] = {
        "size": "pixels of its pictures",
        "heads": "attention heads at every level (`attn_heads`)",
    }
    suffix: ClassVar[str] = ".pt"

    @classmethod
    def recognises(cls, found: Contents) -> bool:
        top = found.entries
        are_counts = is_size(top.get("n_timesteps")) and is_size(top.get("time_scale"))
        return found.container == "torch" and are_counts and isinstance(top.get("G"), Table)

    def describe(self, found: Contents) -> ForeignFile:
        """What the weights tell.

        The number of attention heads and dropout leave no trace in them.
        """
        num_steps = found.entries["n_timesteps"]
        time_scale = found.entries["time_scale"]
        assert is_size(num_steps)
        assert is_size(time_scale)
        shapes = {
            fact.name.removeprefix("G."): fact.shape
            for fact in found.tensors
            if fact.name.startswith("G.")
        }
        facts = {
            "num_bytes": found.num_bytes,
            "num_steps": num_steps,
            "n_timesteps": num_steps,
            "time_scale": time_scale,
            "base_steps": num_steps * time_scale,
            **network_facts(shapes),
            **warning(found.names),
        }
        return ForeignFile(found.path, "diffusion_distiller checkpoint", found.tensors, facts)

    def candidates(self, found: Contents, asked: Mapping[str, str]) -> Sequence[Mapping[str, str]]:
        from vdiff.formats import distiller_model

        return distiller_model.readings(self.describe(found).facts, asked)

    def read(self, found: Contents, asked: Mapping[str, str]) -> ForeignModel:
        from vdiff.formats import distiller_model

        return distiller_model.read(found, self.describe(found).facts, asked)

    def write(self, model: ForeignModel, path: Path, asked: Mapping[str, str]) -> None:
        from vdiff.formats import distiller_writing

        distiller_writing.write(model, path)

    def to_read_back(self, model: ForeignModel) -> Mapping[str, str]:
        from vdiff.formats import distiller_writing

        return distiller_writing.told_of(model)


def network_facts(shapes: Shapes) -> dict[str, Any]:
    """The settings of the U-Net, computed back from the shapes of its tensors."""
    levels = _levels(shapes)
    inlet = shapes.get("down.0.weight", ())
    time = shapes.get("down.1.resblocks.time.1.weight", ())
    if len(inlet) != 4 or not inlet[0] or not time or not all(levels):
        return {"network": "not the U-Net of diffusion_distiller"}
    width = inlet[0]
    channels = inlet[1]
    # The network may fold squares of pixels into channels. Colour pictures give 3 * fold**2 of
    # them.
    fold = math.isqrt(channels // 3)
    if fold and channels % 3 == 0:
        channels //= fold**2
    return {
        "width": width,
        "multipliers": [_ratio(level[0][0], width) for level in levels],
        "blocks": max(map(len, levels)),
        "attention_strides": [
            2**i for i, level in enumerate(levels) if any(attends for _, attends in level)
        ],
        # With it, the time gives a scale and a shift for each channel, not a shift alone.
        "affine_time": time[0] == 2 * levels[0][0][0],
        "channels": channels,
        "fold": max(fold, 1),
    }


def _ratio(channels: int, width: int) -> int | float:
    """Channels of a level per channel of the first one:
    an int where it is whole, as configurations have it.
    """
    if channels % width:
        return channels / width
    return channels // width


def _levels(shapes: Shapes) -> list[list[tuple[int, bool]]]:
    """For each level of the way down, its blocks as (channels, has attention).

    A bare convolution ends a level.
    """
    levels: list[list[tuple[int, bool]]] = [[]]
    indices = {
        int(match[1]) for match in map(re.compile(r"down\.(\d{1,4})\.").match, shapes) if match
    }
    # Number 0 is the convolution at the entrance.
    for index in sorted(indices - {0}):
        channels = shapes.get(f"down.{index}.resblocks.conv1.weight", (0,))
        if f"down.{index}.0.weight" in shapes:
            levels.append([])
        elif channels and channels[0]:
            levels[-1].append((channels[0], f"down.{index}.attention.qkv.weight" in shapes))
    return levels
