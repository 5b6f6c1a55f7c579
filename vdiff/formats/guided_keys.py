"""What the names and shapes of guided-diffusion's tensors tell of its U-Net,
and whose file it is otherwise.

Its blocks are numbered through. `input_blocks` has, for every level, its residual blocks and then
what halves; the last level has none of that. `output_blocks` has one block more for every level,
and what doubles inside the last.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vdiff.errors import ModelFileError
from vdiff.formats.contents import Contents

Shapes = Mapping[str, tuple[int, ...]]

UNET = "guided-diffusion U-Net"
CLASSIFIER = "guided-diffusion classifier"
CONSISTENCY = re.compile(r"c[dt]_(imagenet64|bedroom256|cat256)")
"""Names of the released consistency models, whose tensors are those of their teachers."""
OPTIMIZER = "state of an optimizer"


@dataclass(frozen=True)
class Layout:
    """A U-Net of guided-diffusion, as far as its shapes tell.

    width: sines and cosines of the time.   widths: channels per level, the full resolution first.
    blocks: residual blocks per level on the way down.   attends: whether a level has attention.
    halves_by_block, doubles_by_block: residual blocks change the resolution, and no convolutions.
    scale_shift: the time scales and shifts.   inputs, outputs: channels.
    num_classes: 0 without labels.
    """

    width: int
    widths: tuple[int, ...]
    blocks: int
    attends: tuple[bool, ...]
    halves_by_block: bool
    doubles_by_block: bool
    scale_shift: bool
    inputs: int
    outputs: int
    num_classes: int

    @property
    def attended_widths(self) -> list[int]:
        """Channels wherever attention sits; it always does in the middle."""
        levels = zip(self.widths, self.attends, strict=True)
        return [*(width for width, attends in levels if attends), self.widths[-1]]

    @property
    def has_learned_variance(self) -> bool:
        """Whether the second half of the outputs is a variance."""
        return self.outputs == 2 * self.inputs

    def facts(self) -> dict[str, Any]:
        """For `vdiff inspect`."""
        return {
            "width": self.width,
            "multipliers": [
                width // self.width if width % self.width == 0 else width / self.width
                for width in self.widths
            ],
            "blocks": self.blocks,
            "attention_strides": [2**i for i, attends in enumerate(self.attends) if attends],
            "resamples_with": "residual blocks" if self.halves_by_block else "convolutions",
            "scale_shift": self.scale_shift,
            "channels": self.inputs,
            "num_classes": self.num_classes or None,
            "learned_variance": self.has_learned_variance,
            "not_in_the_file": "size, heads, qkv_order, schedule, steps, rescale, predicts",
        }


def kind_of(found: Contents) -> str | None:
    """What of these programs a file is, in words; None if it is nothing of theirs."""
    if found.container not in ("torch", "safetensors"):
        return None
    names = {fact.name for fact in found.tensors}
    if {"time_embed.0.weight", "input_blocks.0.0.weight"} & names and _of_theirs(names):
        has_decoder = any(name.startswith("output_blocks.") for name in names)
        return UNET if has_decoder else CLASSIFIER
    if found.container == "torch" and set(found.entries) == {"state", "param_groups"}:
        return OPTIMIZER
    return None


def _of_theirs(names: set[str]) -> bool:
    return any(name.startswith(("input_blocks.", "middle_block.")) for name in names)


def refusal(found: Contents) -> ModelFileError | None:
    """Why a file that `kind_of` knows cannot be made a model of;
    None if it can, as far as can be seen here.
    """
    kind = kind_of(found)
    path = found.path
    if kind == OPTIMIZER:
        problem = f"`{path.name}` is the state of an optimizer; there is no network in it"
        fix = "take `ema_*.pt` or `model*.pt` from the same folder"
        return ModelFileError(problem, fix, path)
    if kind == CLASSIFIER:
        problem = f"`{path.name}` is a classifier of guided-diffusion, which draws nothing"
        return ModelFileError(problem, "take the file of the diffusion model beside it", path)
    distilled = CONSISTENCY.match(path.stem.lower())
    if distilled is not None:
        problem = (
            f"`{path.name}` is a consistency model of consistency_models: it jumps from any noise "
            "to a picture, and is no teacher"
        )
        teacher = f"edm_{distilled[1]}_ema.pt"
        return ModelFileError(problem, f"take `{teacher}`, from which it was distilled", path)
    shapes = {fact.name: fact.shape for fact in found.tensors}
    if any(".transformer_blocks." in name for name in shapes):
        problem = f"`{path.name}` is a network of latent diffusion, which is told a text"
        return ModelFileError(problem, "vdiff knows networks of pixels and classes only", path)
    return _refused_shape(shapes, found)


def _refused_shape(shapes: Shapes, found: Contents) -> ModelFileError | None:
    path = found.path
    inlet, outlet = shapes.get("input_blocks.0.0.weight", ()), shapes.get("out.2.weight", ())
    if len(inlet) == 4 and len(outlet) == 4:
        inputs, outputs = inlet[1], outlet[0]
        # its own 256 x 256 upsampler takes two pictures of 3 channels, and gives 3 and their
        # variances
        if outputs < inputs or inputs == outputs == 6:
            problem = (
                f"`{path.name}` is for super-resolution: its network takes {inputs} channels, "
                f"a small picture beside the noisy one, and gives {outputs}"
            )
            return ModelFileError(problem, "vdiff distills models that draw from noise alone", path)
    indices = _indices(shapes, "input_blocks")
    has_up = any(_ends_a_level(shapes, k) for k in _indices(shapes, "output_blocks"))
    if indices and set(range(max(indices) + 1)) - set(indices) and not has_up:
        problem = f"`{path.name}` halves its pictures without weights (`conv_resample` false)"
        return ModelFileError(problem, "vdiff does not compute such networks", path)
    return None


def layout_of(shapes: Shapes) -> Layout:
    """The U-Net that has these tensors, at least.   KeyError: one that decides it is missing."""
    outputs = max(_indices(shapes, "output_blocks")) + 1
    ends = [k for k in range(outputs) if _ends_a_level(shapes, k)]
    num_levels = len(ends) + 1
    blocks = outputs // num_levels - 1
    starts = [1 + level * (blocks + 1) for level in range(num_levels)]
    widths = [
        _shape(shapes, f"input_blocks.{start}.0.out_layers.3.weight", 4)[0] for start in starts
    ]
    attends = [
        any(
            f"input_blocks.{start + j}.1.qkv.weight" in shapes
            or f"input_blocks.{start + j}.1.proj_out.weight" in shapes
            for j in range(blocks)
        )
        for start in starts
    ]
    halving = f"input_blocks.{1 + blocks}.0"
    doubling = f"output_blocks.{ends[0]}.{_ends_a_level(shapes, ends[0])}" if ends else ""
    told = _shape(shapes, "input_blocks.1.0.emb_layers.1.weight", 2)[0]
    return Layout(
        width=_shape(shapes, "time_embed.0.weight", 2)[1],
        widths=tuple(widths),
        blocks=blocks,
        attends=tuple(attends),
        halves_by_block=num_levels > 1 and _has(shapes, f"{halving}.in_layers"),
        doubles_by_block=num_levels > 1 and _has(shapes, f"{doubling}.in_layers"),
        scale_shift=told == 2 * widths[0],
        inputs=_shape(shapes, "input_blocks.0.0.weight", 4)[1],
        outputs=_shape(shapes, "out.2.weight", 4)[0],
        num_classes=shapes["label_emb.weight"][0] if "label_emb.weight" in shapes else 0,
    )


def _shape(shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    """KeyError for one of other dimensions, too: it is not the tensor that is meant."""
    shape = shapes[name]
    if len(shape) != dimensions or 0 in shape:
        raise KeyError(name)
    return shape


def _indices(shapes: Shapes, part: str) -> list[int]:
    found = (re.match(rf"{part}\.(\d{{1,4}})\.", name) for name in shapes)
    return sorted({int(match[1]) for match in found if match})


def _ends_a_level(shapes: Shapes, k: int) -> int:
    """The place of what doubles inside `output_blocks.k`, 1 or 2; 0 if there is nothing."""
    for place in (1, 2):
        block = f"output_blocks.{k}.{place}"
        if _has(shapes, f"{block}.conv") or _has(shapes, f"{block}.in_layers"):
            return place
    return 0


def _has(shapes: Shapes, part: str) -> bool:
    return any(name.startswith(f"{part}.") for name in shapes)
