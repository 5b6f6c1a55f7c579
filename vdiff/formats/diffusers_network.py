"""The network and the noise process in a folder of diffusers, as a model of vdiff."""

import importlib.util
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.process import DiffusionSection
from vdiff.errors import ModelFileError
from vdiff.formats.adapter import ForeignModel, Outputs
from vdiff.formats.contents import Contents
from vdiff.formats.weights import take_exactly, tensors_in
from vdiff.networks.unet import UNetSection

PREDICTS = {"epsilon": "eps", "sample": "x", "v_prediction": "v"}
"""What diffusers calls the predictions."""


def read(found: Contents) -> ForeignModel:
    """The model.   Errors: ModelFileError, UsageError, FormatError, OSError."""
    config = found.config("unet/config.json") or {}
    scheduler = found.config("scheduler/scheduler_config.json") or {}
    network = UNetSection.restore(config)
    path = found.path / "unet/diffusion_pytorch_model.safetensors"
    tensors = tensors_in(path)
    take_exactly(tensors, network.state_dict(), path)
    network.load_state_dict(tensors)
    network.eval().requires_grad_(False)
    diffusion = _diffusion(scheduler, found.path)
    section = DiffusionSection.model_validate(diffusion)
    size: Any = config.get("sample_size")
    height, width = size if isinstance(size, list) else (size, size)
    return ForeignModel(
        denoiser=Denoiser(network, section.schedule.build(), section.predicts),
        network="unet",
        diffusion=diffusion,
        shape=(int(config["in_channels"]), height, width),  # type: ignore[call-overload]
        num_classes=int(config.get("num_class_embeds") or 0),  # type: ignore[call-overload]
        num_steps=section.schedule.build().grid,
        sampler={"kind": "ddim", "clip": 1.0} if section.predicts == "eps" else None,
    )


def _diffusion(scheduler: dict[str, Any], path: Path) -> dict[str, object]:
    predicts = PREDICTS.get(str(scheduler.get("prediction_type", "epsilon")))
    if predicts is None:
        problem = f"`{path}` predicts `{scheduler['prediction_type']}`, which vdiff does not know"
        raise ModelFileError(problem, "take another model", path)
    schedule: dict[str, object] = {
        "kind": "betas",
        "table": scheduler["beta_schedule"],
        "grid": scheduler["num_train_timesteps"],
        "first": scheduler["beta_start"],
        "last": scheduler["beta_end"],
        "zero_terminal": bool(scheduler.get("rescale_betas_zero_snr", False)),
    }
    return {"schedule": schedule, "predicts": predicts}


def outputs(found: Contents, z: Tensor, time: Tensor, label: Tensor | None) -> Outputs | None:
    """What diffusers computes, where it is installed."""
    if importlib.util.find_spec("diffusers") is None:
        return None
    from diffusers import UNet2DModel

    network = UNet2DModel.from_pretrained(found.path / "unet").eval()
    with torch.no_grad():
        output: Tensor = network(z, time, label).sample
    return Outputs(output, f"diffusers {version('diffusers')}")
