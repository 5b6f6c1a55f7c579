"""Checkpoints of diffusion_distiller: how many steps they are for, and which U-Net their tensors belong to."""

import math
import re
from collections.abc import Mapping
from typing import Any

from vdiff.disk.tensor_facts import is_size
from vdiff.formats.adapter import Format
from vdiff.formats.contents import Contents
from vdiff.formats.facts import ForeignFile, warning
from vdiff.formats.opcodes import Table

Shapes = Mapping[str, tuple[int, ...]]


class DistillerFormat(Format):
    """`{"G": weights, "n_timesteps": N, "time_scale": s}` in a file of torch."""

    @classmethod
    def recognises(cls, found: Contents) -> bool:
        top = found.entries
        are_counts = is_size(top.get("n_timesteps")) and is_size(top.get("time_scale"))
        return found.container == "torch" and are_counts and isinstance(top.get("G"), Table)

    def describe(self, found: Contents) -> ForeignFile:
        """Heads and dropout are not among the facts: they leave no trace in the weights."""
        num_steps, time_scale = found.entries["n_timesteps"], found.entries["time_scale"]
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
            **_network_facts(shapes),
            **warning(found.names),
        }
        return ForeignFile(found.path, "diffusion_distiller checkpoint", found.tensors, facts)


def _network_facts(shapes: Shapes) -> dict[str, Any]:
    levels = _levels(shapes)
    inlet = shapes.get("down.0.weight", ())
    time = shapes.get("down.1.resblocks.time.1.weight", ())
    if len(inlet) != 4 or not inlet[0] or not time or not all(levels):
        return {"network": "not the U-Net of diffusion_distiller"}
    width = inlet[0]
    fold = math.isqrt(inlet[1] // 3)
    return {
        "width": width,
        "multipliers": [
            level[0][0] / width if level[0][0] % width else level[0][0] // width for level in levels
        ],
        "blocks": max(map(len, levels)),
        "attention_strides": [
            2**i for i, level in enumerate(levels) if any(attends for _, attends in level)
        ],
        "affine_time": time[0] == 2 * levels[0][0][0],
        "channels": inlet[1] // fold**2 if fold and inlet[1] % 3 == 0 else inlet[1],
        "fold": max(fold, 1),
    }


def _levels(shapes: Shapes) -> list[list[tuple[int, bool]]]:
    """Per level of the way down, its blocks as (channels, has attention); a bare convolution ends a level."""
    levels: list[list[tuple[int, bool]]] = [[]]
    indices = {
        int(match[1]) for match in map(re.compile(r"down\.(\d{1,4})\.").match, shapes) if match
    }
    for index in sorted(indices - {0}):
        channels = shapes.get(f"down.{index}.resblocks.conv1.weight", (0,))
        if f"down.{index}.0.weight" in shapes:
            levels.append([])
        elif channels and channels[0]:
            levels[-1].append((channels[0], f"down.{index}.attention.qkv.weight" in shapes))
    return levels
