"""A model folder: written whole or not at all, verified before use; and a diffusers pipeline as it stands."""

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vdiff import __version__, whole_folder
from vdiff.diffusion.denoiser import Denoiser
from vdiff.errors import DivergedError, ModelFileError
from vdiff.networks import NETWORKS
from vdiff.recipe import DiffusionSection

FORMAT = 1
MARK = "vdiff.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
CONFIG = "unet/config.json"


@dataclass(frozen=True)
class ModelCard:
    """What a model folder says about itself, in `vdiff.json`.

    num_steps: the sampler steps it is meant for.   is_distilled: whether it knows the times i / num_steps only.
    shape: (C, H, W) of its pictures.   num_classes: 0 without labels.   parent: the teacher's name, steps and hash.
    recipe: the YAML text.   trajectory: every value that shaped the weights.   files: {path: {size, sha256}}.
    """

    name: str
    stage: int
    num_steps: int
    is_distilled: bool
    updates: int
    shape: tuple[int, int, int]
    num_classes: int
    num_parameters: int
    network: str
    diffusion: dict[str, Any]
    recipe: str
    parent: dict[str, Any] | None = None
    data: dict[str, Any] = field(default_factory=dict)
    trajectory: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def hash(self) -> str:
        """SHA-256 of the weights: what a student records of its teacher, and a picture of its model."""
        return str(self.files[WEIGHTS]["sha256"])

    @property
    def model_steps(self) -> int | None:
        """The grid of times that the model knows, None for all times."""
        return self.num_steps if self.is_distilled else None


@dataclass(frozen=True)
class Checkpoint:
    """A verified model folder, read into memory."""

    folder: Path
    card: ModelCard
    denoiser: Denoiser


def save(folder: Path, card: ModelCard, denoiser: Denoiser, extra: Callable[[Path], None] | None = None) -> ModelCard:
    """Write a model folder whole.

    extra: puts further files (pictures) into it.   Errors: DivergedError for weights that are not finite; MachineError.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in denoiser.network.state_dict().items()}
    bad = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise DivergedError(
            f"the weights of `{card.name}` are not finite (`{bad[0]}` and {len(bad) - 1} more)",
            "lower `learning_rate` and start this stage again with --force",
        )

    def fill(target: Path) -> None:
        (target / "unet").mkdir()
        (target / "scheduler").mkdir()
        _write_json(target / "model_index.json", _MODEL_INDEX)
        _write_json(target / "scheduler/scheduler_config.json", _scheduler_config(denoiser))
        _write_json(target / CONFIG, getattr(denoiser.network, "config"))  # noqa: B009 - every kind of network has it
        save_file(weights, target / WEIGHTS, metadata={"format": "pt"})
        if extra is not None:
            extra(target)

    facts = {**asdict(card), "versions": _versions(), "made_by": f"vdiff {__version__}"}
    facts.pop("files")
    return _card(whole_folder.write(folder, MARK, facts, fill), folder)


def is_model_folder(folder: Path) -> bool:
    """Whether it claims to be a finished model folder; nothing is read out of its name."""
    return (folder / MARK).is_file()


def read_card(folder: Path) -> ModelCard:
    """The card of a model folder, without looking at the weights.   Errors: ModelFileError."""
    return _card(whole_folder.read(folder, MARK), folder)


def damage(folder: Path) -> list[str]:
    """What is wrong with the files of a model folder, a line each; every byte is read."""
    return whole_folder.damage(folder, whole_folder.read(folder, MARK))


def load(folder: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Verify a model folder and read it.   Errors: ModelFileError naming what is damaged."""
    card = read_card(folder)
    found = damage(folder)
    if found:
        raise ModelFileError(
            f"`{folder}` is damaged ({len(found)} of {len(card.files)} files)",
            "copy it again from where it came from, or make this stage again with --force",
            "; ".join(found[:3]),
        )
    diffusion = DiffusionSection.model_validate(card.diffusion)
    network = _network(card, folder).to(device).eval().requires_grad_(False)
    return Checkpoint(folder, card, Denoiser(network, diffusion.schedule.build(), diffusion.predicts))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.   Errors: ModelFileError."""
    try:
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    except (SafetensorError, OSError, ValueError) as err:
        raise ModelFileError(f"`{path}` cannot be read: {err}", "copy it again from where it came from", path) from err


def _network(card: ModelCard, folder: Path) -> nn.Module:
    if card.network not in NETWORKS:
        raise ModelFileError(NETWORKS.unknown(card.network), "install the package that brings this network", folder)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    network: nn.Module = NETWORKS.section(card.network).restore(config)  # type: ignore[attr-defined]
    weights = load_tensors(folder / WEIGHTS)
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if expected != {name: tensor.shape for name, tensor in weights.items()}:
        raise ModelFileError("the weights do not fit the network's configuration", "take another folder", folder)
    network.load_state_dict(weights)  # copies: mapping the file's memory changes the alignment, and so the rounding
    return network


def _card(content: Mapping[str, Any], folder: Path) -> ModelCard:
    made_by, found = content.get("made_by", "?"), content.get("format")
    if not isinstance(found, int) or found > FORMAT:
        raise ModelFileError(
            f"`{folder}` has format {found}, made by {made_by}; this vdiff knows up to {FORMAT}",
            "pip install --upgrade vdiff",
            folder / MARK,
        )
    known = {name: content[name] for name in ModelCard.__dataclass_fields__ if name in content}
    try:
        card = ModelCard(**{**known, "shape": tuple(int(size) for size in content["shape"])})
        if len(card.hash) != 64 or len(card.shape) != 3 or card.num_steps < 1:
            raise ValueError("hash, shape or num_steps is not what it should be")
    except (KeyError, TypeError, ValueError) as err:
        raise ModelFileError(f"`{folder / MARK}` is incomplete: {err}", "take another folder", folder / MARK) from err
    return card


def _scheduler_config(denoiser: Denoiser) -> dict[str, Any]:
    kinds = {"v": "v_prediction", "x": "sample", "eps": "epsilon"}
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": "0.35.0",
        "num_train_timesteps": denoiser.schedule.grid,
        "prediction_type": kinds[denoiser.predicts],
        "timestep_spacing": "trailing",
        "set_alpha_to_one": True,
        "clip_sample": False,
        "thresholding": False,
        "rescale_betas_zero_snr": False,
        "steps_offset": 0,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        **denoiser.schedule.diffusers_config(),
    }


_MODEL_INDEX = {
    "_class_name": "DDIMPipeline",
    "_diffusers_version": "0.35.0",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("torch", "accelerate", "numpy", "safetensors"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
