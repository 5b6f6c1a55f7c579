"""A checkpoint of rosinality's denoising-diffusion-pytorch as a model of vdiff, and the other way.

Its U-Net is the one of diffusion_distiller but for the groups of its norms, which are 32, and for
the order of the colours, which is the usual one.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.process import DiffusionSection
from vdiff.diffusion.schedule import Schedule
from vdiff.errors import ModelFileError, UsageError
from vdiff.formats import distiller_model, distiller_writing
from vdiff.formats.adapter import ForeignModel
from vdiff.formats.contents import Contents
from vdiff.formats.distiller_weights import to_ours, to_theirs
from vdiff.formats.rosinality import SCHEDULES
from vdiff.formats.weights import read_tensors, without_prefix
from vdiff.networks.unet import UNet

GROUPS = 32


def read(
    found: Contents, prefix: str, facts: Mapping[str, object], asked: Mapping[str, str]
) -> ForeignModel:
    """The model.   prefix: of the weights.   facts: what they tell.

    Errors: ModelFileError, UsageError, FormatError, OSError.
    """
    config, layout = distiller_model.network_of(found.path, facts, asked, GROUPS)
    theirs = without_prefix(read_tensors(found, lambda name: name.startswith(prefix)), prefix)
    distiller_model.check(theirs, config, layout, found.path)
    network = UNet.from_config(config)
    network.load_state_dict(to_ours(theirs, layout, is_bgr=False))
    network.eval().requires_grad_(False)
    diffusion = _diffusion(asked)
    section = DiffusionSection.model_validate(diffusion)
    schedule = section.schedule.build()
    size = distiller_model.number(asked["size"], "size")
    return ForeignModel(
        denoiser=Denoiser(network, schedule, section.predicts),
        network="unet",
        diffusion=diffusion,
        shape=(3, size, size),
        num_classes=0,
        num_steps=schedule.grid,
        # its own sampler keeps x within these limits
        sampler={"kind": "ddim", "clip": 1.0},
    )


def write(model: ForeignModel, path: Path) -> None:
    """Write the weights as both `model` and `ema`.   Errors: ModelFileError that names what the
    program does not compute.
    """
    for problem in _hindrances(model):
        raise ModelFileError(
            f"rosinality's denoising-diffusion-pytorch cannot hold this model: {problem}",
            "choose another format, as `--to diffusers`",
            path,
        )
    network = model.denoiser.network
    assert isinstance(network, UNet)
    ours = distiller_writing.sines_first(network)
    theirs = to_theirs(ours, distiller_writing.layout_of(network), is_bgr=False)
    weights = {name: tensor.contiguous().clone() for name, tensor in theirs.items()}
    torch.save({"model": weights, "ema": weights}, path)


def told_of(model: ForeignModel) -> dict[str, str]:
    """What `read` must be told of a file that `write` made of this model."""
    name, grid = _named(model.denoiser.schedule)
    return {**distiller_writing.told_of(model), "schedule": name or "", "steps": str(grid)}


def _diffusion(asked: Mapping[str, str]) -> dict[str, object]:
    name = asked.get("schedule", SCHEDULES[0])
    if name not in SCHEDULES:
        problem = f"`{name[:40]}` is no schedule of that program that vdiff knows"
        raise UsageError(problem, f"choose one of: {', '.join(SCHEDULES)}", "--assume")
    steps = distiller_model.number(asked.get("steps", "1000"), "steps")
    return {"schedule": _schedule(name, steps), "predicts": "eps"}


def _schedule(name: str, steps: int) -> dict[str, object]:
    if name == "cosine":
        return {"kind": "cosine", "grid": steps}
    # its first and last beta do not depend on their number
    return {"kind": "betas", "table": "linear", "grid": steps, "first": 1e-4, "last": 0.02}


def _named(schedule: Schedule) -> tuple[str | None, int]:
    """Which of its schedules this is, None for another one; and its number of entries."""
    times = (torch.arange(schedule.grid, dtype=torch.float64) + 1) / schedule.grid
    ours = schedule.alpha_sigma(times)[0]
    fed = schedule.time_input(times)
    if not torch.allclose(fed, torch.arange(schedule.grid).double(), rtol=0, atol=1e-6):
        return None, schedule.grid
    for name in SCHEDULES:
        section = {"schedule": _schedule(name, schedule.grid), "predicts": "eps"}
        theirs = DiffusionSection.model_validate(section).schedule.build().alpha_sigma(times)[0]
        if torch.allclose(ours, theirs, rtol=1e-6, atol=0):
            return name, schedule.grid
    return None, schedule.grid


def _hindrances(model: ForeignModel) -> Iterator[str]:
    """Every reason why that program cannot hold the model, the first one first."""
    yield from distiller_writing.hindrances_of_network(model, GROUPS)
    if model.denoiser.predicts != "eps":
        yield f"its network predicts {model.denoiser.predicts}, and it should predict eps"
    if model.is_distilled:
        yield "it is a student, and that program draws at all times of its table"
    if _named(model.denoiser.schedule)[0] is None:
        yield "its noise schedule is not one of that program, linear or cosine"
