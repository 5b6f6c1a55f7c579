"""The network in a folder of diffusers, as a model of vdiff:
as its own U-Net, else computed by diffusers itself.
"""

import re
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.process import DiffusionSection
from vdiff.disk.tensor_facts import TensorFact, printable
from vdiff.errors import ModelFileError, UsageError
from vdiff.formats import diffusers_layout as layout
from vdiff.formats import diffusers_readme as readme
from vdiff.formats import diffusers_schedule
from vdiff.formats.adapter import ForeignModel, Outputs
from vdiff.formats.contents import Contents
from vdiff.formats.weights import read_tensors, take_exactly
from vdiff.networks.diffusers_section import CLASSES, DiffusersSection
from vdiff.networks.network import Network
from vdiff.networks.section import NetworkSection
from vdiff.networks.unet_section import UNetSection

_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD = re.compile(r"(.*\battentions\.\d+\.)(query|key|value|proj_attn)(\.(?:weight|bias))")

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_UNDAMAGED = "use an undamaged copy of the folder"


def read(found: Contents, asked: Mapping[str, str]) -> ForeignModel:
    """The model.   asked: see `DiffusersFormat.options`.

    Errors: ModelFileError, UsageError, FormatError, OSError.
    """
    path = found.path
    _refuse_pipelines(found)
    place = layout.place_of(found)
    if place is None:
        raise ModelFileError(f"`{path}` has no network's `config.json`", _UNDAMAGED, path)
    config = config_of(found, place, asked)
    scheduler = layout.scheduler_of(found)
    noise = {**(scheduler or {}), **{name: asked[name] for name in _TOLD if name in asked}}
    diffusion = diffusers_schedule.diffusion(noise, path)
    section = DiffusionSection.model_validate(diffusion)
    schedule = section.schedule.build()
    channels, assumed = _channels(config, noise, path)
    weights = layout.weights_of(path, place)
    kind, network = _network(config, channels, weights, path)
    network.load_state_dict(_tensors(weights, channels, config))
    network.eval().requires_grad_(False)
    own_steps = diffusers_schedule.steps(noise, schedule.grid)
    has_null_class = _has_null_class(config, asked, path)
    # a transformer counts its classes without it
    is_unet = config["_class_name"] == "UNet2DModel"
    return ForeignModel(
        denoiser=Denoiser(network, schedule, section.predicts),
        network=kind,
        diffusion=diffusion,
        shape=(channels, *_size(config, asked, path)),
        num_classes=_num_classes(config) - has_null_class * is_unet,
        null_class=has_null_class,
        num_steps=own_steps or schedule.grid,
        is_distilled=own_steps is not None,
        assumed=(*assumed, *_assumed(config, scheduler, weights, asked)),
        sampler=diffusers_schedule.sampler(noise, section.predicts),
        licence=readme.licence(path),
        facts=_facts(noise),
    )


_TOLD = diffusers_schedule.OPTIONS
_KEPT = (
    *("_class_name", "timestep_spacing", "set_alpha_to_one", "steps_offset", "clip_sample"),
    *("clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value"),
)


def _facts(noise: Mapping[str, object]) -> dict[str, object]:
    """How its own pipeline draws, which vdiff does not repeat."""
    plain = {
        name: printable(value) if isinstance(value, str) else value
        for name, value in noise.items()
        if name in _KEPT and isinstance(value, str | int | float)
    }
    return {"scheduler": plain} if plain else {}


def config_of(found: Contents, place: str, asked: Mapping[str, str]) -> dict[str, object]:
    """The network's configuration in today's words.

    Errors: ModelFileError, FormatError, OSError.
    """
    name = f"{place}config.json"
    layout.refuse_elsewhere(found.path, found.path / name)
    config = found.config(name) or {}
    kind = config.get("_class_name", "UNet2DModel")
    if kind not in CLASSES:
        problem = (
            f"`{found.path}` has a network `{printable(str(kind), 60)}`, "
            "which vdiff does not compute"
        )
        raise ModelFileError(problem, f"it takes: {', '.join(CLASSES)}", found.path)
    config["_class_name"] = kind
    for key in ("down_block_types", "up_block_types"):
        types = config.get(key)
        if isinstance(types, list):
            config[key] = [str(each).removeprefix("UNetRes") for each in types]
    if "head_dim" in asked:
        config["attention_head_dim"] = _head_dim(asked["head_dim"])
    return config


def is_silent_on_heads(config: Mapping[str, object]) -> bool:
    """Whether the width of the heads may be another than diffusers takes today:
    the first versions had one head.
    """
    if config.get("_class_name", "UNet2DModel") != "UNet2DModel" or "attention_head_dim" in config:
        return False
    return re.match(r"0\.[012]\.", str(config.get("_diffusers_version", ""))) is not None


def _head_dim(text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(
            f"`head_dim={text}` is no width", "give a number, or `none` for one head", "--assume"
        )
    return int(text)


def _refuse_pipelines(found: Contents) -> None:
    """Pictures of latents are pictures of nothing without what decodes them."""
    index = found.config("model_index.json") or {}
    decoder = next((name for name in ("vae", "vqvae", "movq") if name in index), None)
    if decoder is not None:
        problem = (
            f"`{found.path}` draws latents, which its `{decoder}` decodes; vdiff draws pixels only"
        )
        raise ModelFileError(problem, "take a model of pixels", found.path)


def _channels(
    config: dict[str, object], noise: Mapping[str, object], path: Path
) -> tuple[int, list[str]]:
    """The channels of the pictures; what was assumed of the others that the network gives."""
    is_dit = config["_class_name"] != "UNet2DModel"
    default = 4 if is_dit else 3
    channels = config.get("in_channels", default)
    given = config.get("out_channels", channels if is_dit else 3)
    given = channels if given is None else given
    if type(channels) is not int or type(given) is not int or channels < 1:
        raise ModelFileError("the network's channels are no numbers", _UNDAMAGED, path)
    config |= {"in_channels": channels, "out_channels": given}
    if given == channels:
        return channels, []
    if given != 2 * channels:
        problem = f"the network takes {channels} channels and gives {given}"
        raise ModelFileError(problem, "take a model that gives what it takes", path)
    config["out_channels"] = channels
    if str(noise.get("variance_type")).startswith("learned"):
        return channels, []
    return channels, ["the second half of what the network gives is a learned variance"]


def _size(config: Mapping[str, object], asked: Mapping[str, str], path: Path) -> tuple[int, int]:
    default = 32 if config["_class_name"] != "UNet2DModel" else None
    size = config.get("sample_size", default)
    if size is None and asked.get("size", "").isdecimal():
        size = int(asked["size"])
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(type(each) is int and 1 <= each <= 1 << 16 for each in sides):
        raise ModelFileError(
            f"the network's `sample_size` is {printable(str(size), 40)}, no size of pictures",
            "tell it with --size, in pixels",
            path,
        )
    height, width = (int(str(each)) for each in sides)
    return height, width


def _num_classes(config: Mapping[str, object]) -> int:
    name = "num_class_embeds" if config["_class_name"] == "UNet2DModel" else "num_embeds_ada_norm"
    count = config.get(name, 1000 if name == "num_embeds_ada_norm" else None)
    return count if type(count) is int else 0


def _network(
    config: Mapping[str, object], channels: int, weights: layout.Weights, path: Path
) -> tuple[str, Network]:
    """The kind of network and the network, after its configuration was compared
    with what the file holds.
    """
    kind: str = "unet"
    section: type[NetworkSection] = UNetSection
    shown = _outlined(weights, channels, config)
    try:
        expected = _expected(section, config)
    except UsageError as err:
        kind, section = "diffusers", DiffusersSection
        try:
            expected = _expected(section, config)
        except UsageError as reason:
            if reason.where != config.get("_class_name"):  # not even diffusers computes it for us
                raise ModelFileError(reason.problem, reason.fix, path) from err
            raise
    except ModelFileError as err:
        raise ModelFileError(err.problem, err.fix, path) from err
    take_exactly(shown, expected, path)
    return kind, section.restore(dict(config))


def _expected(section: type[NetworkSection], config: Mapping[str, object]) -> dict[str, Tensor]:
    """Names and shapes of its weights; nothing is allocated,
    whatever the configuration asks for.
    """
    with torch.device("meta"):
        return dict(section.restore(dict(config)).state_dict())


def _outlined(
    weights: layout.Weights, channels: int, config: Mapping[str, object]
) -> dict[str, Tensor]:
    """The tensors of the files by today's names, with shapes and no memory."""
    outlines = {}
    for name, fact in weights.tensors.items():
        _check_dtype(fact, weights)
        outlines[_today(name)] = torch.empty(fact.shape, device="meta")
    return _without_variance(outlines, channels, config)


def _check_dtype(fact: TensorFact, weights: layout.Weights) -> None:
    if fact.dtype not in _FLOATS:
        name = weights.parts[0].path.name
        problem = f"`{fact.name}` in `{name}` has numbers of the kind {fact.dtype}"
        raise ModelFileError(problem, "take weights in float32 or float16", name)


def _tensors(
    weights: layout.Weights, channels: int, config: Mapping[str, object]
) -> dict[str, Tensor]:
    """The weights in float32 by today's names."""
    tensors: dict[str, Tensor] = {}
    for part in weights.parts:
        for name, tensor in read_tensors(part).items():
            if not tensor.isfinite().all():
                problem = f"`{name}` in `{part.path.name}` is not finite"
                raise ModelFileError(problem, _UNDAMAGED, part.path)
            tensors[_today(name)] = tensor.float()
    return _without_variance(tensors, channels, config)


def _today(name: str) -> str:
    """A tensor's name as diffusers gives it today: before 0.15, attention had other words."""
    found = _OLD.fullmatch(name)
    return name if found is None else f"{found[1]}{_OLD_NAMES[found[2]]}{found[3]}"


def _without_variance(
    tensors: dict[str, Tensor], channels: int, config: Mapping[str, object]
) -> dict[str, Tensor]:
    """Without the outputs of a learned variance, which is the second half of the channels."""
    patch = 1
    layer = "conv_out"
    if config["_class_name"] != "UNet2DModel":
        layer = "proj_out_2"
        told = config.get("patch_size", 2)
        patch = told**2 if type(told) is int and 1 <= told <= 64 else 1
    for name in (f"{layer}.weight", f"{layer}.bias"):
        tensor = tensors.get(name)
        if tensor is not None and tensor.ndim and len(tensor) == 2 * channels * patch:
            # rows: (place in the patch, channel)
            rows = tensor.reshape(patch, 2 * channels, *tensor.shape[1:])[:, :channels]
            tensors[name] = rows.reshape(patch * channels, *tensor.shape[1:]).contiguous()
    return tensors


def _assumed(
    config: Mapping[str, object],
    scheduler: Mapping[str, object] | None,
    weights: layout.Weights,
    asked: Mapping[str, str],
) -> list[str]:
    found = []
    if scheduler is None and not any(name in asked for name in _TOLD):
        found.append("the noise process: the folder has no scheduler, so diffusers' own defaults")
    if is_silent_on_heads(config) and "head_dim" not in asked:
        found.append("heads of 8 channels, as diffusers takes today; `--assume head_dim=none`: one")
    kinds = {fact.dtype for fact in weights.tensors.values()} - {"float32", "float64"}
    if kinds:
        name = weights.parts[0].path.name
        found.append(f"the digits behind {min(kinds)}: `{name}` has no more, kept as float32")
    return found


def _has_null_class(config: Mapping[str, object], asked: Mapping[str, str], path: Path) -> bool:
    """Whether the last class of the network stands for no class.

    A transformer has a row more than classes. The classes of a U-Net do not tell; what vdiff
    exports says it in README.md.
    """
    if config["_class_name"] != "UNet2DModel":
        return True
    count = _num_classes(config)
    told = asked.get("null_class", "")
    if told not in ("", "last", "none") or (told == "last" and count < 2):
        problem = f"`null_class` cannot be `{printable(told, 40)}` for {count} classes"
        raise ModelFileError(problem, "say `last` of a network with classes, or `none`", path)
    if told:
        return told == "last"
    return count > 1 and readme.null_label(path) == count - 1


def outputs(found: Contents, z: Tensor, time: Tensor, label: Tensor | None) -> Outputs | None:
    """What diffusers computes, where it is installed and its own reading of the
    folder is the right one.
    """
    place = layout.place_of(found)
    if find_spec("diffusers") is None or place is None:
        return None
    config = found.config(f"{place}config.json") or {}
    if is_silent_on_heads(config):
        return None
    import diffusers

    name = config.get("_class_name", "UNet2DModel")
    kind = diffusers.DiTTransformer2DModel if name != "UNet2DModel" else diffusers.UNet2DModel
    weights = layout.weights_of(found.path, place)
    diffusers.utils.logging.disable_progress_bar()
    try:
        network = kind.from_pretrained(
            found.path / place,
            variant=weights.variant,
            use_safetensors=weights.parts[0].container == "safetensors",
            torch_dtype=torch.float32,
            local_files_only=True,
        ).eval()
    except KeyError as err:
        # it asks for parts of an index that vdiff does without, and that people left out
        problem = f"diffusers {version('diffusers')} cannot load this folder: it has no {err}"
        fix = "save it again with that program, or prove it with --expected or --data"
        raise ModelFileError(problem, fix, found.path / place) from err
    with torch.no_grad():
        output: Tensor = network(z, time, class_labels=label).sample
    return Outputs(output, f"diffusers {version('diffusers')}")


__all__ = ["config_of", "is_silent_on_heads", "outputs", "read"]
