"""Checkpoints of diffusion_distiller: how many steps they are for, and which U-Net their tensors belong to."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vdiff.formats.opcodes import Table
from vdiff.headers.facts import TensorFact, is_size

Shapes = Mapping[str, tuple[int, ...]]


def distiller_facts(root: Any, tensors: Sequence[TensorFact]) -> dict[str, Any] | None:
    """Facts of `{"G": weights, "n_timesteps": N, "time_scale": s}`; None where `root` is something else.

    Heads and dropout are not among them: they leave no trace in the weights.
    """
    top = root.texts() if isinstance(root, Table) else {}
    num_steps, time_scale = top.get("n_timesteps"), top.get("time_scale")
    if not isinstance(top.get("G"), Table) or not is_size(num_steps) or not is_size(time_scale):
        return None
    shapes = {tensor.name.removeprefix("G."): tensor.shape for tensor in tensors if tensor.name.startswith("G.")}
    steps = {"num_steps": num_steps, "n_timesteps": num_steps, "time_scale": time_scale}
    return {**steps, "base_steps": num_steps * time_scale, **_network_facts(shapes)}


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
        "multipliers": [level[0][0] / width if level[0][0] % width else level[0][0] // width for level in levels],
        "blocks": max(map(len, levels)),
        "attention_strides": [2**i for i, level in enumerate(levels) if any(attends for _, attends in level)],
        "affine_time": time[0] == 2 * levels[0][0][0],
        "channels": inlet[1] // fold**2 if fold and inlet[1] % 3 == 0 else inlet[1],
        "fold": max(fold, 1),
    }


def _levels(shapes: Shapes) -> list[list[tuple[int, bool]]]:
    """Per level of the way down, its blocks as (channels, has attention); a bare convolution ends a level."""
    levels: list[list[tuple[int, bool]]] = [[]]
    indices = {int(match[1]) for match in map(re.compile(r"down\.(\d{1,4})\.").match, shapes) if match}
    for index in sorted(indices - {0}):
        channels = shapes.get(f"down.{index}.resblocks.conv1.weight", (0,))
        if f"down.{index}.0.weight" in shapes:
            levels.append([])
        elif channels and channels[0]:
            levels[-1].append((channels[0], f"down.{index}.attention.qkv.weight" in shapes))
    return levels
