"""A checkpoint of diffusion_distiller as a model of vdiff."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.process import DiffusionSection
from vdiff.errors import ModelFileError
from vdiff.formats.adapter import ForeignModel
from vdiff.formats.contents import Contents
from vdiff.formats.distiller_weights import INV_FREQ, Layout, frequencies, to_ours, to_theirs
from vdiff.formats.weights import read_tensors, take_exactly, without_prefix
from vdiff.networks.unet import UNet

HEADS = (1, 2, 4, 8)
"""The numbers that are tried where nobody says which it is."""

_LARGEST = 1 << 16


def read(found: Contents, facts: Mapping[str, object], asked: Mapping[str, str]) -> ForeignModel:
    """The model.   facts: what the weights tell, see `DistillerFormat.describe`.

    Errors: ModelFileError, UsageError, FormatError, OSError.
    """
    config, layout = network_of(found.path, facts, asked)
    theirs = without_prefix(read_tensors(found, lambda name: name.startswith("G.")), "G.")
    check(theirs, config, layout, found.path)
    network = UNet.from_config(config)
    network.load_state_dict(to_ours(theirs, layout))
    network.eval().requires_grad_(False)
    num_steps = _count(facts, "n_timesteps")
    time_scale = _count(facts, "time_scale")
    diffusion = _diffusion(num_steps, time_scale)
    section = DiffusionSection.model_validate(diffusion)
    size = number(asked["size"], "size")
    return ForeignModel(
        denoiser=Denoiser(network, section.schedule.build(), section.predicts),
        network="unet",
        diffusion=diffusion,
        shape=(3, size, size),
        num_classes=0,
        num_steps=num_steps,
        is_distilled=time_scale > 1,
        facts={"n_timesteps": num_steps, "time_scale": time_scale},
    )


def readings(facts: Mapping[str, object], asked: Mapping[str, str]) -> Sequence[Mapping[str, str]]:
    """`asked` with every number of heads that the network may have."""
    widths = _attended_widths(facts)
    if "heads" in asked or not widths:
        return [asked]
    fitting = [heads for heads in HEADS if all(width % heads == 0 for width in widths)]
    return [{**asked, "heads": str(heads)} for heads in fitting]


def check(
    theirs: Mapping[str, Tensor], config: dict[str, object], layout: Layout, path: Path
) -> None:
    """ModelFileError that names the tensors which are missing, too many or wrong."""
    with torch.device("meta"):
        outline = UNet.from_config(config)
    take_exactly(theirs, to_theirs(outline.state_dict(), layout), path)
    _check_frequencies(theirs[INV_FREQ], path)


def network_of(
    path: Path, facts: Mapping[str, object], asked: Mapping[str, str], groups: int | None = None
) -> tuple[dict[str, object], Layout]:
    """`config.json` of the U-Net, and its layout.

    groups: of all norms; None for a quarter of the first width.   Errors: ModelFileError.
    """
    widths = _widths(facts)
    if not widths:
        problem = f"the weights in `{path.name}` are not those of diffusion_distiller's U-Net"
        raise ModelFileError(problem, "take an undamaged copy", path)
    if facts["fold"] != 1 or facts["channels"] != 3:
        problem = (
            f"the network in `{path.name}` folds squares of pixels into channels "
            f"(`fold` {facts['fold']}), which no network of vdiff does"
        )
        raise ModelFileError(problem, "train it again with `fold` 1", path)
    if "size" not in asked:
        problem = f"`{path.name}` does not tell the size of its pictures"
        raise ModelFileError(problem, "say it, as `--size 64`", path)
    size = number(asked["size"], "size")
    if size % 2 ** (len(widths) - 1):
        problem = (
            f"pictures of {size} pixels cannot be halved {len(widths) - 1} times, "
            "as this network does"
        )
        raise ModelFileError(problem, "say another size, as `--size 64`", "--size")
    heads = number(asked.get("heads", "1"), "heads")
    attended = _attended_widths(facts)
    if any(width % heads for width in attended):
        problem = f"{heads} heads do not divide the widths with attention, {attended}"
        raise ModelFileError(problem, "say another number of heads, as `--heads 1`", "--heads")
    levels = _levels(facts)
    layout = Layout(levels, _count(facts, "blocks"), heads, bool(facts["affine_time"]))
    down = ["AttnDownBlock2D" if attends else "DownBlock2D" for attends in levels]
    up = ["AttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(levels)]
    if groups is None:
        groups = widths[0] // 4
    return {
        "sample_size": size,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": widths,
        "layers_per_block": layout.blocks,
        "down_block_types": down,
        "up_block_types": up,
        "norm_num_groups": groups,
        "attn_norm_num_groups": groups,
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "scale_shift" if layout.affine_time else "default",
        "flip_sin_to_cos": False,
        "freq_shift": 0,
        "downsample_padding": 1,
        **_head_settings(heads, attended),
    }, layout


def _head_settings(heads: int, attended: Sequence[int]) -> dict[str, object]:
    """A width per head where one says it all, as diffusers has it; else their number."""
    if heads == 1:
        return {"attention_head_dim": None}
    if len(set(attended)) == 1:
        return {"attention_head_dim": attended[0] // heads}
    return {"attention_head_dim": None, "num_attention_heads": heads}


def _diffusion(num_steps: int, time_scale: int) -> dict[str, object]:
    """Its own table of N steps, whose last entry is clamped, and times i * time_scale."""
    if time_scale == 1:
        return {"schedule": {"kind": "cosine", "grid": num_steps}, "predicts": "v"}
    schedule = {
        "kind": "betas",
        "table": "squaredcos_cap_v2",
        "grid": num_steps,
        "time_scale": float(time_scale),
    }
    return {"schedule": schedule, "predicts": "v"}


def _check_frequencies(found: Tensor, path: Path) -> None:
    expected = frequencies(2 * len(found))
    if not torch.allclose(found.float(), expected, rtol=1e-5, atol=0):
        problem = f"`{INV_FREQ}` in `{path.name}` has other frequencies than that program makes"
        raise ModelFileError(problem, "take an undamaged copy", path)


def _widths(facts: Mapping[str, object]) -> list[int]:
    """Of the levels; empty where the weights are of no such network."""
    multipliers = facts.get("multipliers")
    width = facts.get("width")
    if not isinstance(multipliers, list) or not isinstance(width, int):
        return []
    return [round(width * multiplier) for multiplier in multipliers]


def _levels(facts: Mapping[str, object]) -> tuple[bool, ...]:
    """For each level, whether it has attention."""
    strides = facts.get("attention_strides")
    assert isinstance(strides, list)
    return tuple(2**level in strides for level in range(len(_widths(facts))))


def _attended_widths(facts: Mapping[str, object]) -> list[int]:
    """The widths at which attention sits, the middle's too."""
    widths = _widths(facts)
    if not widths:
        return []
    found = [width for width, attends in zip(widths, _levels(facts), strict=True) if attends]
    return [*found, widths[-1]]


def _count(facts: Mapping[str, object], name: str) -> int:
    value = facts[name]
    if not isinstance(value, int) or not 1 <= value <= _LARGEST:
        problem = f"`{name}` is {value}"
        raise ModelFileError(problem, f"it should be from 1 to {_LARGEST}", name)
    return value


def number(text: str, option: str) -> int:
    """What an option says.   Errors: ModelFileError."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= _LARGEST:
        problem = f"`{option}` is `{text[:40]}`"
        raise ModelFileError(problem, f"give a number from 1 to {_LARGEST}", f"--{option}")
    return int(text)
