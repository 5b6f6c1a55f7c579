"""A network of NVlabs/edm as one of vdiff: names of weights, the order inside attention, the frame,
the noise process.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.process import DiffusionSection
from vdiff.errors import ModelFileError
from vdiff.formats.adapter import ForeignModel
from vdiff.formats.edm_frame import edm_diffusion, framed, range_told
from vdiff.formats.edm_layout import LICENCE, Layout
from vdiff.formats.persistent import Stored
from vdiff.formats.weights import DTYPES, fit_exactly, read_stored
from vdiff.networks.edm_unet import EdmUNet
from vdiff.networks.edm_unet_section import EdmUNetConfig
from vdiff.networks.network import Network

TIME_SCALE = 0.25
"""Of log(sigma), which an EDM network is told."""

FILTER = ".resample_filter"
EVEN = 0.25
"""Of a filter that halves by means and doubles by copies."""

TAKE = "take an undamaged copy"
CLASSES = "time_embedding.classes"

_BLOCK = {
    "norm0": "norm1",
    "conv0": "conv1",
    "affine": "time",
    "norm1": "norm2",
    "conv1": "conv2",
    "skip": "shortcut",
    "norm2": "attention.group_norm",
    "qkv": "attention",
    "proj": "attention.to_out.0",
}


def model_of(
    layout: Layout, stored: Mapping[str, Stored], ends: tuple[float, float], path: Path
) -> ForeignModel:
    """The model.   stored: the tensors of the file.   ends: least and most noise in EDM's frame.

    Errors: ModelFileError that names missing, extra and misshapen tensors; OSError.
    """
    config = EdmUNetConfig.read(layout.config)
    inner = _inner(layout, config, stored, path)
    network: Network = inner
    kind = "edm_unet"
    diffusion = layout.diffusion
    assumed: tuple[str, ...] = ()
    if layout.sigma_data is not None:
        network = framed(inner, kind, layout.sigma_data, TIME_SCALE)
        kind = "edm"
        diffusion = edm_diffusion(ends, layout.sigma_data)
        assumed = (range_told(ends),)
    network.eval().requires_grad_(False)
    try:
        section = DiffusionSection.model_validate(diffusion)
    except ValueError as err:
        problem = f"the noise of `{path.name}` is none that a network can learn: {diffusion}"
        raise ModelFileError(problem, TAKE, path) from err
    size = config.image_size
    return ForeignModel(
        denoiser=Denoiser(network, section.schedule.build(), section.predicts),
        network=kind,
        diffusion=dict(diffusion or {}),
        shape=(config.channels, size, size),
        num_classes=config.num_classes,
        num_steps=layout.steps,
        assumed=assumed,
        sampler={"kind": "ddim", "clip": 1.0} if section.predicts == "eps" else None,
        licence=LICENCE,
        facts=layout.facts(),
    )


def _inner(
    layout: Layout, config: EdmUNetConfig, stored: Mapping[str, Stored], path: Path
) -> EdmUNet:
    """The U-Net with the weights of the file."""
    # without memory: what the settings ask for is taken only once the weights are found to be there
    with torch.device("meta"):
        network = EdmUNet(config)
    inside = {name.removeprefix("model."): place for name, place in stored.items()}
    filters = [name for name in inside if name.endswith(FILTER)]
    expected = dict(_theirs(layout, config, network.state_dict()))
    expected |= dict.fromkeys(filters, (1, 1, 2, 2))
    fit_exactly({name: place.fact.shape for name, place in inside.items()}, expected, path)
    if not all(place.fact.dtype in DTYPES for place in inside.values()):
        raise ModelFileError(f"`{path.name}` has weights that are no real numbers", TAKE, path)
    tensors = read_stored(path, inside)
    if any(not bool((tensors[name] == EVEN).all()) for name in filters):
        problem = f"`{path.name}` changes resolutions with a filter that vdiff does not compute"
        raise ModelFileError(problem, "take a DDPM++ or ADM network", path)
    network.load_state_dict(_ours(layout, config, tensors), assign=True)
    return network


def _names(config: EdmUNetConfig) -> Iterator[tuple[str, str]]:
    """Every part of the file's network that has weights, as (its name, our name); classes apart."""
    yield "map_layer0", "time_embedding.linear_1"
    yield "map_layer1", "time_embedding.linear_2"
    sizes = [config.image_size >> level for level in range(len(config.widths))]
    yield f"enc.{sizes[0]}x{sizes[0]}_conv", "conv_in"
    for level, size in enumerate(sizes):
        if level:
            yield from _block(f"enc.{size}x{size}_down", f"down.{level}.resampling")
        for i in range(config.blocks):
            yield from _block(f"enc.{size}x{size}_block{i}", f"down.{level}.blocks.{i}")
    for i in range(2):
        yield from _block(f"dec.{sizes[-1]}x{sizes[-1]}_in{i}", f"middle.{i}")
    for place, size in enumerate(reversed(sizes)):
        if place:
            yield from _block(f"dec.{size}x{size}_up", f"up.{place}.resampling")
        for i in range(config.blocks + 1):
            yield from _block(f"dec.{size}x{size}_block{i}", f"up.{place}.blocks.{i}")
    if config.family == "adm":
        yield "out_norm", "norm_out"
        yield "out_conv", "conv_out"
    else:
        yield f"dec.{sizes[0]}x{sizes[0]}_aux_norm", "norm_out"
        yield f"dec.{sizes[0]}x{sizes[0]}_aux_conv", "conv_out"


def _block(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    for part, our_part in _BLOCK.items():
        yield f"{theirs}.{part}", f"{ours}.{our_part}"


def _theirs(
    layout: Layout, config: EdmUNetConfig, wanted: Mapping[str, Tensor]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of the tensors that the file must have, but for its filters."""
    for theirs, ours in _names(config):
        for kind in ("weight", "bias"):
            is_qkv = theirs.endswith(".qkv")
            tensor = wanted.get(f"{ours}.to_q.{kind}" if is_qkv else f"{ours}.{kind}")
            if tensor is None:
                continue
            shape = tuple(tensor.shape)
            if is_qkv:
                shape = (3 * shape[0], *shape[1:])
            if ours == "conv_out":
                shape = (layout.outputs, *shape[1:])
            if kind == "weight" and theirs.endswith((".qkv", ".proj")):
                shape = (*shape, 1, 1)
            yield f"{theirs}.{kind}", shape
    if config.num_classes:
        width = wanted[f"{CLASSES}.weight"].shape[1]
        yield "map_label.weight", (width, config.num_classes)
        if config.family == "ddpm++":
            yield "map_label.bias", (width,)
    if layout.augment:
        yield "map_augment.weight", (config.sinusoid, layout.augment)
    if layout.frame == "iDDPMPrecond":
        yield "u", (layout.steps + 1,)


def _ours(
    layout: Layout, config: EdmUNetConfig, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The weights by our names, float32."""
    weights: dict[str, Tensor] = {}
    for theirs, ours in _names(config):
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" not in tensors:
                continue
            tensor = tensors[f"{theirs}.{kind}"].float()
            if theirs.endswith((".qkv", ".proj")):
                tensor = tensor.flatten(1) if kind == "weight" else tensor
            if theirs.endswith(".qkv"):
                heads = config.heads[config.widths.index(tensor.shape[0] // 3)]
                parts = _parted(tensor, heads)
                for name, part in zip(("to_q", "to_k", "to_v"), parts, strict=True):
                    weights[f"{ours}.{name}.{kind}"] = part
            elif ours == "conv_out":
                weights[f"{ours}.{kind}"] = tensor[: config.channels].clone()
            else:
                weights[f"{ours}.{kind}"] = tensor
    if config.num_classes:
        weights[f"{CLASSES}.weight"] = _classes(config, tensors)
    return weights


def _parted(qkv: Tensor, heads: int) -> list[Tensor]:
    """q, k and v, each [C, ...], of [3 C, ...] whose rows are (head, channel, q k v)."""
    rows = qkv.reshape(heads, qkv.shape[0] // (3 * heads), 3, *qkv.shape[1:])
    return [rows[:, :, place].flatten(0, 1).clone() for place in range(3)]


def _classes(config: EdmUNetConfig, tensors: Mapping[str, Tensor]) -> Tensor:
    """A row for each class, [classes, width]: what a linear layer makes of a one at its place."""
    table = tensors["map_label.weight"].float().T
    if config.family == "ddpm++":
        # there, the one is the root of the number of classes
        table = table * config.num_classes**0.5 + tensors["map_label.bias"].float()
    return table.contiguous()
