"""A model of vdiff as a checkpoint of diffusion_distiller."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from vdiff.diffusion.schedule import CosineSchedule, Schedule
from vdiff.errors import ModelFileError
from vdiff.formats.adapter import ForeignModel
from vdiff.formats.distiller_weights import Layout, to_theirs
from vdiff.networks.blocks import Attention
from vdiff.networks.unet import UNet


def write(model: ForeignModel, path: Path) -> None:
    """Write the file.   Errors: ModelFileError that names what the format cannot hold."""
    for problem in _hindrances(model):
        raise ModelFileError(
            f"diffusion_distiller cannot hold this model: {problem}",
            "choose another format, as `--to diffusers`",
            path,
        )
    network = model.denoiser.network
    assert isinstance(network, UNet)
    num_steps = _steps(model)
    first, step = _their_times(model.denoiser.schedule, num_steps)
    theirs = to_theirs(sines_first(network), layout_of(network), shift=first)
    weights = {name: tensor.contiguous().clone() for name, tensor in theirs.items()}
    torch.save({"G": weights, "n_timesteps": num_steps, "time_scale": round(step)}, path)


def sines_first(network: UNet) -> dict[str, Tensor]:
    """The weights in float32, with the sines of the time before its cosines."""
    ours = {name: tensor.detach().float().cpu() for name, tensor in network.state_dict().items()}
    if network.config["flip_sin_to_cos"]:
        weight = ours["time_embedding.linear_1.weight"]
        ours["time_embedding.linear_1.weight"] = torch.cat(weight.chunk(2, dim=1)[::-1], dim=1)
    return ours


def layout_of(network: UNet) -> Layout:
    """Of a network without anything that is in the way, see `hindrances_of_network`."""
    config = network.config
    return Layout(
        attended=tuple(each == "AttnDownBlock2D" for each in config["down_block_types"]),
        blocks=config["layers_per_block"],
        heads=_heads(network)[0] if _heads(network) else 1,
        affine_time=config["resnet_time_scale_shift"] == "scale_shift",
    )


def told_of(model: ForeignModel) -> dict[str, str]:
    """What `read` must be told of a file that `write` made of this model."""
    network = model.denoiser.network
    assert isinstance(network, UNet)
    heads = _heads(network)
    return {"size": str(model.shape[1]), "heads": str(heads[0] if heads else 1)}


def _hindrances(model: ForeignModel) -> Iterator[str]:
    """Every reason why diffusion_distiller cannot hold the model, the first one first."""
    yield from hindrances_of_network(model)
    if model.denoiser.predicts != "v":
        yield f"its network predicts {model.denoiser.predicts}, and it should predict v"
    num_steps = _steps(model)
    schedule = model.denoiser.schedule
    if not _is_their_table(schedule, num_steps):
        yield "its noise schedule is not the cosine one of that program"
    first, step = _their_times(schedule, num_steps)
    if not step.is_integer() or step < 1 or not _is_even(schedule, num_steps):
        yield f"its {num_steps} times cannot be told as whole multiples of a `time_scale`"
    if not first.is_integer() and step.is_integer():
        yield "its first time is between two base steps"


def hindrances_of_network(model: ForeignModel, groups: int | None = None) -> Iterator[str]:
    """Every reason why the U-Net of that program does not compute what the model's network does.

    groups: of its norms; None for a quarter of the first width.
    """
    network = model.denoiser.network
    if not isinstance(network, UNet):
        yield f"its network is of the kind `{model.network}`, and only the U-Net can be written"
        return
    if model.codec != "pixels":
        yield "its network sees no pixels"
    channels = (model.shape[0], network.config["in_channels"], network.config["out_channels"])
    if channels != (3, 3, 3):
        yield f"it has pictures of {model.shape[0]} channel(s), and that program has 3"
    if model.num_classes:
        yield f"it has {model.num_classes} classes, and that program has none"
    yield from _in_the_way(network, groups)


def _in_the_way(network: UNet, groups: int | None) -> Iterator[str]:
    """What in the network that program does not compute."""
    config = network.config
    widths = config["block_out_channels"]
    if groups is None:
        groups = max(1, widths[0] // 4)
    wanted = {
        "norm_num_groups": groups,
        "norm_eps": 1e-5,
        "freq_shift": 0,
        "downsample_padding": 1,
        "downsample_type": "conv",
        "upsample_type": "conv",
    }
    for key, value in wanted.items():
        if config[key] != value:
            yield f"`{key}` is {config[key]}, and that program has {value}"
    middle = network.mid_block.attentions
    norms = [each.group_norm for each in middle if each is not None]
    for norm in norms:
        theirs = isinstance(norm, torch.nn.GroupNorm) and norm.num_groups == groups
        if not theirs:
            yield f"the norm before the middle attention does not have {groups} groups"
    if any(width % widths[0] for width in widths):
        yield f"the widths {widths} are not whole multiples of the first one"
    if network.time_embedding.linear_1.in_features != widths[0] or (
        network.time_embedding.linear_1.out_features != 4 * widths[0]
    ):
        yield "the time embedding is not four times as wide as the first level"
    down = [name.removesuffix("DownBlock2D") for name in config["down_block_types"]]
    up = [name.removesuffix("UpBlock2D") for name in config["up_block_types"]]
    if not set(down) | set(up) <= {"", "Attn"}:
        yield "it has blocks of other kinds than DownBlock2D and AttnDownBlock2D"
    if down != up[::-1]:
        yield "attention is at other levels on the way up than on the way down"
    if len(set(_heads(network))) > 1:
        yield "the number of heads is not the same at all attentions"


def _heads(network: UNet) -> list[int]:
    """Heads of every attention."""
    found = [module for module in network.modules() if isinstance(module, Attention)]
    return [each.to_q.out_features // each.head_dim for each in found]


def _steps(model: ForeignModel) -> int:
    """What is written as `n_timesteps`: a model of continuous time is told of the whole grid."""
    return model.num_steps if model.is_distilled else model.denoiser.schedule.grid


def _times(num_steps: int) -> Tensor:
    return (torch.arange(num_steps, dtype=torch.float64) + 1) / num_steps


def _their_times(schedule: Schedule, num_steps: int) -> tuple[float, float]:
    """(first, step): vdiff's network is fed first + i step where theirs is fed i step."""
    fed = schedule.time_input(_times(num_steps)).tolist()
    if num_steps == 1:
        # one step leaves the scale open: what the network is fed over the whole time
        ends = schedule.time_input(torch.tensor([0.0, 1.0], dtype=torch.float64))
        return round(fed[0], 9), round(float(ends[1] - ends[0]), 9)
    step = round(fed[1] - fed[0], 9)
    return round(fed[0], 9), step


def _is_even(schedule: Schedule, num_steps: int) -> bool:
    first, step = _their_times(schedule, num_steps)
    even = first + step * torch.arange(num_steps, dtype=torch.float64)
    return torch.allclose(schedule.time_input(_times(num_steps)), even, rtol=0, atol=1e-6)


def _is_their_table(schedule: Schedule, num_steps: int) -> bool:
    """Whether alpha is theirs everywhere but at the last entry, which they clamp anew for every
    number of steps.
    """
    times = _times(num_steps)[:-1]
    theirs = CosineSchedule(num_steps).alpha_sigma(times)[0]
    return torch.allclose(schedule.alpha_sigma(times)[0], theirs, rtol=0, atol=1e-6)
