"""A model folder: written whole or not at all, verified before use;
and a diffusers pipeline as it stands.
"""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vdiff import __version__
from vdiff.data.codec import Codec, codec_of
from vdiff.diffusion import inside
from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.prediction import Predicts
from vdiff.diffusion.process import DiffusionSection
from vdiff.diffusion.schedule import Schedule
from vdiff.disk import whole_folder
from vdiff.disk.safetensors_header import read_header
from vdiff.disk.tensor_facts import FormatError
from vdiff.errors import DivergedError, ModelFileError, UsageError
from vdiff.formats.weights import write_tensors as save_tensors
from vdiff.model_folder import card as model_card
from vdiff.model_folder import diffusers_files as diffusers_folder
from vdiff.model_folder.card import (
    CONFIG,
    MANIFEST,
    MODEL,
    PIXELS,
    WEIGHTS,
    ModelCard,
    damage,
    is_model_folder,
    read_card,
)
from vdiff.networks import NETWORKS
from vdiff.networks.fast import fast_on
from vdiff.networks.network import Network, NetworkSection, as_network
from vdiff.networks.sharded import on_host
from vdiff.system import distribution

__all__ = [
    "Checkpoint",
    "ModelCard",
    "damage",
    "is_model_folder",
    "load",
    "load_tensors",
    "meta_checkpoint",
    "read_card",
    "save",
    "save_tensors",
]


@dataclass(frozen=True)
class Checkpoint:
    """A verified model folder, read into memory."""

    folder: Path
    card: ModelCard
    denoiser: Denoiser

    @property
    def codec(self) -> Codec:
        """Between its pictures and what its network sees."""
        return codec_of(self.card.codec)


def codec_for(teacher: Checkpoint | None) -> Codec:
    """Between the pictures of a stage and what its network sees: a student has its teacher's."""
    if teacher is None:
        return codec_of(PIXELS)
    return teacher.codec


def save(
    folder: Path,
    card: ModelCard,
    denoiser: Denoiser,
    extra: Callable[[Path], None] | None = None,
    weights: dict[str, Tensor] | None = None,
) -> ModelCard:
    """Write a model folder whole.

    extra: puts further files (pictures) into it.   weights: those of the network, where other
    processes have a share of them.   Errors: DivergedError for weights that are not finite;
    MachineError; UsageError for another thing that is there and was not made by vdiff.
    """
    network = as_network(denoiser.network)
    if weights is None:
        weights = on_host(denoiser.network.state_dict(), copy=False)
    bad = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise DivergedError(
            f"the weights of `{card.name}` are not finite (`{bad[0]}` and {len(bad) - 1} more)",
            "lower `learning_rate` and start this stage again with --force",
        )

    def fill(target: Path) -> None:
        (target / "unet").mkdir()
        (target / "scheduler").mkdir()
        texts = {
            "model_index.json": diffusers_folder.model_index(card, denoiser),
            "scheduler/scheduler_config.json": diffusers_folder.scheduler_config(card, denoiser),
            CONFIG: network.diffusers() or network.config,
        }
        for name, content in texts.items():
            if content is not None:
                (target / name).write_text(
                    diffusers_folder.json_text(content), encoding="utf-8", newline="\n"
                )
        save_tensors(target / WEIGHTS, weights, {"format": "pt"})
        if extra is not None:
            extra(target)
        told = diffusers_folder.readme(
            card, denoiser, has_picture=(target / "samples.png").exists()
        )
        (target / diffusers_folder.README).write_text(told, encoding="utf-8", newline="\n")

    told = replace(card, versions=_versions(), made_by=f"vdiff {__version__}")
    facts = {name: value for name, value in model_card.content(told).items() if name != "files"}
    unlisted = (diffusers_folder.README,)
    return model_card.parse(
        whole_folder.write(folder, MODEL, facts, fill, num_bytes(weights), unlisted), folder
    )


def load(
    folder: Path, device: torch.device | str = "cpu", written: Mapping[str, Tensor] | None = None
) -> Checkpoint:
    """Verify a model folder and read it.   Errors: ModelFileError naming what is damaged.

    written: the weights that were saved there a moment ago, and read back then: they are taken and
    not read again.
    """
    card = read_card(folder)
    found: list[str] = []
    if written is None:
        found = damage(folder)
    if found:
        raise ModelFileError(
            f"`{folder}` is damaged ({len(found)} of {len(card.files)} files)",
            "copy it again from where it came from, or make this stage again with --force",
            "; ".join(found[:3]),
        )
    _check_known(card, folder)
    schedule, predicts = _diffusion(card, folder)
    network = _network(card, folder, written).to(device).eval().requires_grad_(False)
    fast_on(network, device)
    return Checkpoint(folder, card, Denoiser(network, schedule, predicts))


def meta_checkpoint(card: ModelCard, config: Mapping[str, Any], folder: Path) -> Checkpoint:
    """A model as its card and its network's configuration describe it,
    with weights that are still to come.

    folder: what messages call it.   Errors: ModelFileError.
    """
    _check_known(card, folder)
    schedule, predicts = _diffusion(card, folder)
    network = _section(card, folder).restore(config).eval().requires_grad_(False)
    _check_guidance(card, network, folder)
    return Checkpoint(folder, card, Denoiser(network, schedule, predicts))


def load_tensors(
    path: Path, expected: Mapping[str, Sequence[int]] | None = None
) -> dict[str, Tensor]:
    """The tensors of a safetensors file; nothing is allocated before its header has been checked.

    expected: the names and shapes that it must have, all of real numbers.   Errors: ModelFileError.
    """
    _check_header(path, expected)
    try:
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    except (SafetensorError, OSError, ValueError) as err:
        raise ModelFileError(
            f"`{path}` cannot be read: {err}", "copy it again from where it came from", path
        ) from err


def num_bytes(tensors: Mapping[str, Tensor]) -> int:
    """How many bytes of a file they take, but for its header."""
    return sum(tensor.nbytes for tensor in tensors.values())


def _check_header(path: Path, expected: Mapping[str, Sequence[int]] | None) -> None:
    fix = "copy it again from where it came from"
    try:
        facts, _ = read_header(path)
    except FormatError as err:
        raise ModelFileError(f"`{path}` {err.reason}", fix, path) from err
    except OSError as err:
        raise ModelFileError(f"`{path}` cannot be read: {err.strerror or err}", fix, path) from err
    if expected is None:
        return
    is_real = all(fact.dtype in _REAL for fact in facts)
    if not is_real or {fact.name: fact.shape for fact in facts} != expected:
        raise ModelFileError(
            "the weights do not fit the network's configuration", "take another folder", path
        )


_REAL = ("float16", "bfloat16", "float32", "float64")


def _check_known(card: ModelCard, folder: Path) -> None:
    """Refuse a model of which this vdiff would draw something else than it was made for."""
    try:
        codec_of(card.codec)
    except UsageError as err:
        raise ModelFileError(
            f"`{folder}` cannot be drawn with: {err.problem}", err.fix, folder / MANIFEST
        ) from err
    if card.guidance is not None and not inside.is_known(card.guidance):
        problem = (
            f"`{folder}` is meant to be guided (`{card.guidance['kind']}`), "
            "which this vdiff cannot do"
        )
        raise ModelFileError(problem, distribution.UPGRADE, folder / MANIFEST)


def _diffusion(card: ModelCard, folder: Path) -> tuple[Schedule, Predicts]:
    try:
        section = DiffusionSection.model_validate(card.diffusion)
        return section.schedule.build(), section.predicts
    except ValueError as err:
        problem = (
            f"`{folder / MANIFEST}` describes a noise process that this vdiff does not "
            "know or cannot draw from"
        )
        raise ModelFileError(
            problem, "install the package that brings its schedule, or take another folder"
        ) from err


def _section(card: ModelCard, folder: Path) -> type[NetworkSection]:
    if card.network not in NETWORKS:
        raise ModelFileError(
            NETWORKS.unknown(card.network), "install the package that brings this network", folder
        )
    return NETWORKS.section(card.network)


def _network(card: ModelCard, folder: Path, written: Mapping[str, Tensor] | None) -> Network:
    section = _section(card, folder)
    config = whole_folder.read_json(folder / CONFIG)
    try:
        # a configuration that does not fit the weights may ask for any amount of memory
        with torch.device("meta"):
            expected = {
                name: tensor.shape for name, tensor in section.restore(config).state_dict().items()
            }
    except UsageError as err:
        raise ModelFileError(err.problem, err.fix, folder / CONFIG) from err
    wrong = section.misfit(config, codec_of(card.codec).shape(card.shape), card.told_classes)
    if wrong is not None:
        problem = (
            f"`{folder}` contradicts itself: `{wrong}` in {CONFIG} is not what {MANIFEST} says"
        )
        raise ModelFileError(problem, "take another folder", folder / CONFIG)
    weights = written
    if weights is None:
        weights = load_tensors(folder / WEIGHTS, expected)
    network = section.restore(config)
    _check_guidance(card, network, folder)
    # copies: mapping the file's memory changes the alignment, and so the rounding
    network.load_state_dict(weights)
    return network


def _check_guidance(card: ModelCard, network: Network, folder: Path) -> None:
    """ModelFileError where the network takes guidance and the card knows nothing of it,
    or the other way round.
    """
    if network.takes_guidance == (inside.range_of(card.guidance) is not None):
        return
    takes = "takes a guidance" if network.takes_guidance else "takes no guidance"
    problem = f"`{folder}` contradicts itself: its network {takes}, and {MANIFEST} says otherwise"
    raise ModelFileError(problem, "take another folder", folder / CONFIG)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("torch", "accelerate", "numpy", "safetensors"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
