"""A U-Net of guided-diffusion as one of vdiff:
names of weights, the order inside attention, the noise process.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.process import DiffusionSection
from vdiff.errors import ModelFileError
from vdiff.formats.adapter import ForeignModel
from vdiff.formats.edm_frame import NUM_STEPS, edm_diffusion, framed, noise_range, range_told
from vdiff.formats.guided_keys import Layout
from vdiff.formats.guided_settings import EDM
from vdiff.formats.weights import take_exactly
from vdiff.networks.unet import UNet

GROUPS = 32
"""Of every group norm."""

TAKE = "take an undamaged copy"

SIGMA_DATA = 0.5
TIMES_1000 = 250.0
"""EDM's frame in consistency_models: 1000 / 4 is the factor of log(sigma)."""

TOLD_OF = 1000
"""Base steps that a network with `rescale_timesteps` is told of."""

_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ATTENTION = {"norm": "group_norm", "proj_out": "to_out.0"}
_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def model_of(
    layout: Layout, tensors: Mapping[str, Tensor], given: Mapping[str, str], path: Path
) -> ForeignModel:
    """The model.   tensors: of the file.   given: a value for each option that matters, see
    `guided_settings`.

    Errors: ModelFileError that names missing, extra and misshapen tensors; UsageError for heads
    that do not fit.
    """
    # without memory: what a file's shapes ask for is taken only once the weights are found to be
    # there
    with torch.device("meta"):
        network = UNet.from_config(config_of(layout, given))
    wanted = dict(network.state_dict())
    names = dict(_names(layout))
    flat = {name: _flat(name, tensor) for name, tensor in tensors.items()}
    take_exactly(flat, dict(_theirs(layout, names, wanted)), path)
    if not all(tensor.is_floating_point() for tensor in flat.values()):
        raise ModelFileError(f"`{path.name}` has weights that are no real numbers", TAKE, path)
    weights = _ours(layout, flat, names, wanted, given)
    network.load_state_dict(weights, assign=True)
    network.eval().requires_grad_(False)
    if given["schedule"] == EDM:
        return _edm(layout, network, given)
    diffusion = diffusion_of(given)
    section = DiffusionSection.model_validate(diffusion)
    size = int(given["size"])
    sampler = {"kind": "ddim", "clip": 1.0} if section.predicts == "eps" else None
    return ForeignModel(
        denoiser=Denoiser(network, section.schedule.build(), section.predicts),
        network="unet",
        diffusion=diffusion,
        shape=(layout.inputs, size, size),
        num_classes=layout.num_classes,
        num_steps=int(given["steps"]),
        sampler=sampler,
        licence="MIT" if "preset" in given else None,
        facts={"told": dict(given), "learned_variance": layout.has_learned_variance},
    )


def _edm(layout: Layout, network: UNet, given: Mapping[str, str]) -> ForeignModel:
    """The model of a teacher of consistency_models: the network in EDM's frame."""
    ends = noise_range(given)
    diffusion = edm_diffusion(ends, SIGMA_DATA)
    section = DiffusionSection.model_validate(diffusion)
    size = int(given["size"])
    return ForeignModel(
        denoiser=Denoiser(
            framed(network, "unet", SIGMA_DATA, TIMES_1000), section.schedule.build(), "v"
        ),
        network="edm",
        diffusion=diffusion,
        shape=(layout.inputs, size, size),
        num_classes=layout.num_classes,
        num_steps=NUM_STEPS,
        assumed=(range_told(ends),),
        licence="MIT" if "preset" in given else None,
        facts={"told": dict(given), "learned_variance": layout.has_learned_variance},
    )


def config_of(layout: Layout, given: Mapping[str, str]) -> dict[str, object]:
    """The configuration of the U-Net, in diffusers' words where it has them."""
    down, up = [], []
    for attends in layout.attends:
        plain = "ResnetDownsampleBlock2D" if layout.halves_by_block else "DownBlock2D"
        down.append("AttnDownBlock2D" if attends else plain)
        plain = "ResnetUpsampleBlock2D" if layout.doubles_by_block else "UpBlock2D"
        up.append("AttnUpBlock2D" if attends else plain)
    size = int(given["size"])
    halvings = len(layout.widths) - 1
    if size % 2**halvings:
        problem = (
            f"pictures of {size} pixels cannot be halved {halvings} times, as its network does"
        )
        raise ModelFileError(problem, "say another size, as --size 64", "--size")
    return {
        "sample_size": size,
        "in_channels": layout.inputs,
        "out_channels": layout.inputs,
        "down_block_types": down,
        "up_block_types": up[::-1],
        "block_out_channels": list(layout.widths),
        "layers_per_block": layout.blocks,
        "downsample_type": "resnet" if layout.halves_by_block else "conv",
        "upsample_type": "resnet" if layout.doubles_by_block else "conv",
        "time_embedding_dim": 4 * layout.width,
        "time_width": None if layout.width == layout.widths[0] else layout.width,
        "norm_num_groups": GROUPS,
        "attn_norm_num_groups": GROUPS,
        "resnet_time_scale_shift": "scale_shift" if layout.scale_shift else "default",
        "num_class_embeds": layout.num_classes or None,
        **_heads(layout, given),
    }


def _heads(layout: Layout, given: Mapping[str, str]) -> dict[str, int | None]:
    """A width per head where one says it all, as diffusers has it; else the numbers."""
    if "head_dim" in given:
        return {"attention_head_dim": int(given["head_dim"])}
    heads = int(given["heads"])
    up = int(given.get("heads_up", heads))
    widths = set(layout.attended_widths)
    if len(widths) == 1 and up == heads:
        width = widths.pop()
        if width % heads == 0:
            return {"attention_head_dim": width // heads}
    return {
        "attention_head_dim": None,
        "num_attention_heads": heads,
        "num_attention_heads_up": None if up == heads else up,
    }


def diffusion_of(given: Mapping[str, str]) -> dict[str, object]:
    """The section of the noise process, as a recipe has it."""
    steps = int(given["steps"])
    schedule: dict[str, object] = {"kind": "betas", "grid": steps}
    if given["schedule"] == "cosine":
        schedule["table"] = "squaredcos_cap_v2"
    else:
        # as much noise in all, whatever the number of steps
        schedule |= {"table": "linear", "first": 0.1 / steps, "last": 20 / steps}
    if given["rescale"] == "yes":
        schedule["time_scale"] = TOLD_OF / steps
    return {"schedule": schedule, "predicts": given["predicts"]}


def _names(layout: Layout) -> Iterator[tuple[str, str]]:
    """Every part of the file's network that has weights, as (its name, our name)."""
    for theirs, ours in _ENDS.items():
        if theirs != "label_emb" or layout.num_classes:
            yield theirs, ours
    last = len(layout.widths) - 1
    for level, attends in enumerate(layout.attends):
        start = 1 + level * (layout.blocks + 1)
        for j in range(layout.blocks):
            yield from _block(f"input_blocks.{start + j}.0", f"down_blocks.{level}.resnets.{j}")
            if attends:
                theirs = f"input_blocks.{start + j}.1"
                yield from _attention(theirs, f"down_blocks.{level}.attentions.{j}")
        halving = f"input_blocks.{start + layout.blocks}.0"
        if level < last:
            ours = f"down_blocks.{level}.downsamplers.0"
            yield from _resampling(halving, ours, layout.halves_by_block, "op")
    for j in range(2):
        yield from _block(f"middle_block.{2 * j}", f"mid_block.resnets.{j}")
    yield from _attention("middle_block.1", "mid_block.attentions.0")
    for place, attends in enumerate(reversed(layout.attends)):
        start = place * (layout.blocks + 1)
        for j in range(layout.blocks + 1):
            yield from _block(f"output_blocks.{start + j}.0", f"up_blocks.{place}.resnets.{j}")
            if attends:
                theirs = f"output_blocks.{start + j}.1"
                yield from _attention(theirs, f"up_blocks.{place}.attentions.{j}")
        if place < last:
            doubling = f"output_blocks.{start + layout.blocks}.{1 + attends}"
            ours = f"up_blocks.{place}.upsamplers.0"
            yield from _resampling(doubling, ours, layout.doubles_by_block, "conv")


def _block(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    for their_part, our_part in _BLOCK.items():
        yield f"{theirs}.{their_part}", f"{ours}.{our_part}"


def _attention(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    for their_part, our_part in _ATTENTION.items():
        yield f"{theirs}.{their_part}", f"{ours}.{our_part}"
    yield f"{theirs}.qkv", ours


def _resampling(theirs: str, ours: str, by_block: bool, layer: str) -> Iterator[tuple[str, str]]:
    if by_block:
        yield from _block(theirs, ours)
    else:
        yield f"{theirs}.{layer}", f"{ours}.conv"


def _flat(name: str, tensor: Tensor) -> Tensor:
    """The weight of a projection in attention is one of a convolution,
    of one or two dimensions, there.
    """
    is_projection = name.endswith((".qkv.weight", ".proj_out.weight"))
    if is_projection and tensor.ndim > 2 and math.prod(tensor.shape[2:]) == 1:
        return tensor.flatten(1)
    return tensor


def _theirs(
    layout: Layout, names: Mapping[str, str], wanted: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors that the file must have, without values."""
    for theirs, ours in names.items():
        for kind in ("weight", "bias"):
            if theirs.endswith(".qkv"):
                q = wanted[f"{ours}.to_q.{kind}"]
                yield f"{theirs}.{kind}", q.new_empty(3 * q.shape[0], *q.shape[1:])
            elif f"{ours}.{kind}" in wanted:
                tensor = wanted[f"{ours}.{kind}"]
                if theirs == "out.2":
                    tensor = tensor.new_empty(layout.outputs, *tensor.shape[1:])
                yield f"{theirs}.{kind}", tensor


def _ours(
    layout: Layout,
    flat: Mapping[str, Tensor],
    names: Mapping[str, str],
    wanted: Mapping[str, Tensor],
    given: Mapping[str, str],
) -> dict[str, Tensor]:
    """The weights by our names, float32."""
    weights: dict[str, Tensor] = {}
    for theirs, ours in names.items():
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" not in flat:
                continue
            tensor = flat[f"{theirs}.{kind}"].float()
            if theirs.endswith(".qkv"):
                heads = _heads_at(layout, given, theirs, tensor.shape[0] // 3)
                parts = _parted(tensor, heads, given["qkv_order"])
                for name, part in zip(("to_q", "to_k", "to_v"), parts, strict=True):
                    weights[f"{ours}.{name}.{kind}"] = part
            else:
                weights[f"{ours}.{kind}"] = tensor[: wanted[f"{ours}.{kind}"].shape[0]].clone()
    return weights


def _heads_at(layout: Layout, given: Mapping[str, str], theirs: str, width: int) -> int:
    if "head_dim" in given:
        return width // int(given["head_dim"])
    if theirs.startswith("output_blocks.") and "heads_up" in given:
        return int(given["heads_up"])
    return int(given["heads"])


def _parted(qkv: Tensor, heads: int, order: str) -> list[Tensor]:
    """q, k and v, the channels of one head after those of another.   qkv: [3 C, ...].
    Returns three of [C, ...].

    legacy: its rows are (head, q k v, channel); new: (q k v, head, channel).
    """
    if order == "new":
        return [part.clone() for part in qkv.chunk(3)]
    rows = qkv.reshape(heads, 3, qkv.shape[0] // (3 * heads), *qkv.shape[1:])
    return [rows[:, place].flatten(0, 1).clone() for place in range(3)]
