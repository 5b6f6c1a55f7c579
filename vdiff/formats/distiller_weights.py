"""The tensors of diffusion_distiller's U-Net and those of vdiff's, both ways.

The two networks compute the same but for:
- colours: theirs are in the order blue, green, red;
- attention: one layer gives query, key and value of a head side by side, and its softmax divides by
  the root of the whole width, not of one head's;
- the norm behind the time has no factor and summand of its own where the time scales and shifts.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]

INV_FREQ = "time.0.inv_freq"
"""A buffer of theirs: the frequencies of the time's sines."""


@dataclass(frozen=True)
class Layout:
    """What the names of the tensors follow from.

    attended: for each level, from the top, whether its blocks have attention.
    blocks: of a level on the way down.   heads: at every attention.
    affine_time: whether the time scales and shifts.
    """

    attended: tuple[bool, ...]
    blocks: int
    heads: int
    affine_time: bool


_SAME = (
    ("time.1", "time_embedding.linear_1"),
    ("time.3", "time_embedding.linear_2"),
    ("down.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
)
_IN_BLOCK = (
    ("norm1", "norm1"),
    ("conv1", "conv1"),
    ("time.1", "time_emb_proj"),
    ("norm2", "norm2"),
    ("conv2", "conv2"),
    ("skip", "conv_shortcut"),
)
_INLET = "down.0.weight"
_OUTLETS = ("out.2.weight", "out.2.bias")


def to_ours(theirs: Tensors, layout: Layout, is_bgr: bool = True) -> dict[str, Tensor]:
    """Their tensors, exactly those of the layout, as vdiff's U-Net names them.

    is_bgr: whether their colours are in the order blue, green, red.
    """
    tensors = _with_colours_reversed(theirs) if is_bgr else theirs
    ours: dict[str, Tensor] = {}
    for their_name, our_name in (*_SAME, *_resamplers(layout)):
        _move(tensors, their_name, ours, our_name)
    for their_name, our_name in _blocks(layout):
        for their_part, our_part in _IN_BLOCK:
            _move(tensors, f"{their_name}.{their_part}", ours, f"{our_name}.{our_part}")
        if layout.affine_time:
            like = ours[f"{our_name}.conv1.bias"]
            ours[f"{our_name}.norm2.weight"] = torch.ones_like(like)
            ours[f"{our_name}.norm2.bias"] = torch.zeros_like(like)
    for their_name, our_name in _attentions(layout):
        _move(tensors, f"{their_name}.norm", ours, f"{our_name}.group_norm")
        _split(tensors, their_name, ours, our_name, layout.heads)
    return ours


def to_theirs(
    ours: Tensors, layout: Layout, shift: float = 0.0, is_bgr: bool = True
) -> dict[str, Tensor]:
    """The tensors of vdiff's U-Net as diffusion_distiller names them.

    shift: by how much more vdiff's network is fed than theirs, at the same noise level.
    is_bgr: whether their colours are in the order blue, green, red.
    """
    theirs: dict[str, Tensor] = {}
    for their_name, our_name in (*_SAME, *_resamplers(layout)):
        _move(ours, our_name, theirs, their_name)
    for their_name, our_name in _blocks(layout):
        for their_part, our_part in _IN_BLOCK:
            _move(ours, f"{our_name}.{our_part}", theirs, f"{their_name}.{their_part}")
        if layout.affine_time:
            _fold_norm(theirs, their_name)
    for their_name, our_name in _attentions(layout):
        if f"{our_name}.to_q.weight" in ours:
            _move(ours, f"{our_name}.group_norm", theirs, f"{their_name}.norm")
            _join(ours, our_name, theirs, their_name, layout.heads)
        else:
            _idle_attention(theirs, their_name)
    time = theirs["time.1.weight"]
    theirs["time.1.weight"] = _rotated(time, shift)
    theirs[INV_FREQ] = frequencies(time.shape[1]).to(time.device)
    return _with_colours_reversed(theirs) if is_bgr else theirs


def frequencies(width: int) -> Tensor:
    """Of the sines that their network makes of the time, float32 [width / 2]."""
    places = torch.arange(0, width, 2, dtype=torch.float64) / width
    return torch.exp(-math.log(10_000) * places).float()


def _resamplers(layout: Layout) -> Iterator[tuple[str, str]]:
    """(theirs, ours) of what stands between the levels."""
    levels = len(layout.attended)
    for level in range(levels - 1):
        place = 1 + level * (layout.blocks + 1) + layout.blocks
        yield f"down.{place}.0", f"down_blocks.{level}.downsamplers.0.conv"
        place = level * (layout.blocks + 2) + layout.blocks + 1
        yield f"up.{place}.1", f"up_blocks.{level}.upsamplers.0.conv"


def _units(layout: Layout) -> Iterator[tuple[str, str, int, bool]]:
    """(theirs, ours, number, has attention) of every place with a residual block."""
    for level, attends in enumerate(layout.attended):
        for block in range(layout.blocks):
            place = 1 + level * (layout.blocks + 1) + block
            yield f"down.{place}", f"down_blocks.{level}", block, attends
    yield "mid.0", "mid_block", 0, True
    yield "mid.1", "mid_block", 1, False
    for level, attends in enumerate(reversed(layout.attended)):
        for block in range(layout.blocks + 1):
            place = level * (layout.blocks + 2) + block
            yield f"up.{place}", f"up_blocks.{level}", block, attends


def _blocks(layout: Layout) -> Iterator[tuple[str, str]]:
    for theirs, ours, number, _ in _units(layout):
        yield f"{theirs}.resblocks", f"{ours}.resnets.{number}"


def _attentions(layout: Layout) -> Iterator[tuple[str, str]]:
    for theirs, ours, number, attends in _units(layout):
        if attends:
            yield f"{theirs}.attention", f"{ours}.attentions.{number}"


def _move(source: Tensors, name: str, target: dict[str, Tensor], new: str) -> None:
    """Weight and bias of one layer, where it is there."""
    for part in ("weight", "bias"):
        if f"{name}.{part}" in source:
            target[f"{new}.{part}"] = source[f"{name}.{part}"]


def _split(
    theirs: Tensors, their_name: str, ours: dict[str, Tensor], our_name: str, heads: int
) -> None:
    """One layer of rows (head, [query, key, value], channel) becomes three."""
    weight = theirs[f"{their_name}.qkv.weight"].flatten(1)
    bias = theirs[f"{their_name}.qkv.bias"]
    width = weight.shape[1]
    weights = weight.reshape(heads, 3, width // heads, width)
    biases = bias.reshape(heads, 3, width // heads)
    for place, name in enumerate(("to_q", "to_k", "to_v")):
        factor = 1 / math.sqrt(heads) if name == "to_q" else 1.0
        ours[f"{our_name}.{name}.weight"] = (weights[:, place] * factor).flatten(0, 1)
        ours[f"{our_name}.{name}.bias"] = (biases[:, place] * factor).flatten()
    ours[f"{our_name}.to_out.0.weight"] = theirs[f"{their_name}.out.weight"].flatten(1)
    ours[f"{our_name}.to_out.0.bias"] = theirs[f"{their_name}.out.bias"]


def _join(
    ours: Tensors, our_name: str, theirs: dict[str, Tensor], their_name: str, heads: int
) -> None:
    """The other way round of `_split`."""
    weights = []
    biases = []
    for name in ("to_q", "to_k", "to_v"):
        factor = math.sqrt(heads) if name == "to_q" else 1.0
        weight = ours[f"{our_name}.{name}.weight"] * factor
        bias = ours[f"{our_name}.{name}.bias"] * factor
        weights.append(weight.reshape(heads, -1, weight.shape[1]))
        biases.append(bias.reshape(heads, -1))
    joined = torch.stack(weights, dim=1).flatten(0, 2)
    theirs[f"{their_name}.qkv.weight"] = joined[:, :, None, None]
    theirs[f"{their_name}.qkv.bias"] = torch.stack(biases, dim=1).flatten()
    out = ours[f"{our_name}.to_out.0.weight"]
    theirs[f"{their_name}.out.weight"] = out[:, :, None, None]
    theirs[f"{their_name}.out.bias"] = ours[f"{our_name}.to_out.0.bias"]


def _idle_attention(theirs: dict[str, Tensor], name: str) -> None:
    """Theirs always has attention in the middle; this one adds nothing."""
    like = theirs[f"{name.removesuffix('attention')}resblocks.conv2.bias"]
    width = len(like)
    theirs[f"{name}.norm.weight"] = torch.ones_like(like)
    theirs[f"{name}.norm.bias"] = torch.zeros_like(like)
    theirs[f"{name}.qkv.weight"] = like.new_zeros(3 * width, width, 1, 1)
    theirs[f"{name}.qkv.bias"] = like.new_zeros(3 * width)
    theirs[f"{name}.out.weight"] = like.new_zeros(width, width, 1, 1)
    theirs[f"{name}.out.bias"] = like.new_zeros(width)


def _fold_norm(theirs: dict[str, Tensor], name: str) -> None:
    """(g n + b)(1 + scale) + shift as n (1 + scale') + shift':
    the norm's own factor g and summand b go into the layer that makes scale and shift.
    """
    factor = theirs.pop(f"{name}.norm2.weight")
    summand = theirs.pop(f"{name}.norm2.bias")
    scale, shift = theirs[f"{name}.time.1.weight"].chunk(2)
    theirs[f"{name}.time.1.weight"] = torch.cat(
        [factor[:, None] * scale, summand[:, None] * scale + shift]
    )
    scale, shift = theirs[f"{name}.time.1.bias"].chunk(2)
    # factor - 1 is summed first: with a factor of 1 nothing is rounded
    theirs[f"{name}.time.1.bias"] = torch.cat(
        [factor * scale + (factor - 1), summand * scale + (summand + shift)]
    )


def _rotated(weight: Tensor, shift: float) -> Tensor:
    """The layer behind the sines and cosines, so that it gives for the time i
    what `weight` gives for i + shift.

    weight: [out, width], the sines first.
    sin(f (i + c)) = sin(f i) cos(f c) + cos(f i) sin(f c), and cos alike.
    """
    if shift == 0:
        return weight
    angles = (frequencies(weight.shape[1]).double() * shift).to(weight.device)
    sines, cosines = weight.double().chunk(2, dim=1)
    turned = [
        sines * angles.cos() - cosines * angles.sin(),
        sines * angles.sin() + cosines * angles.cos(),
    ]
    return torch.cat(turned, dim=1).to(weight.dtype)


def _with_colours_reversed(theirs: Tensors) -> dict[str, Tensor]:
    """Red, green, blue where it was blue, green, red, and the other way round."""
    tensors = dict(theirs)
    tensors[_INLET] = tensors[_INLET].flip(1)
    for name in _OUTLETS:
        tensors[name] = tensors[name].flip(0)
    return tensors
