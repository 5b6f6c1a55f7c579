"""A model in one file of safetensors: the weights, and in the metadata what they mean."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from vdiff.diffusion import inside
from vdiff.disk.safetensors_header import read_metadata
from vdiff.disk.strict_json import parse_object
from vdiff.disk.tensor_facts import FormatError, printable
from vdiff.errors import ModelFileError
from vdiff.formats.adapter import ForeignModel, Format
from vdiff.formats.contents import Contents
from vdiff.formats.foreign_file import ForeignFile

KEY = "vdiff"
"""Of the metadata: a JSON object with the settings of the network and of the noise process."""

SHOWN = ("network", "shape", "num_classes", "num_steps", "is_distilled", "licence")

HALF: Mapping[str, str] = {"fp16": "the weights in half precision"}
"""What formats with one set of weights can be asked for."""
HALF_TOLERANCE = 5e-3
"""Of outputs of about 1, with weights in half precision: 11 bits of each number are kept."""


class SafetensorsFormat(Format):
    """One file of safetensors that vdiff wrote: weights, settings, schedule and steps."""

    write_options: ClassVar[Mapping[str, str]] = HALF
    suffix: ClassVar[str] = ".safetensors"

    @classmethod
    def recognises(cls, found: Contents) -> bool:
        return found.container == "safetensors" and KEY in found.entries

    def describe(self, found: Contents) -> ForeignFile:
        settings = {key: _shown(value) for key, value in _settings(found).items() if key in SHOWN}
        facts = {"num_bytes": found.num_bytes, **settings}
        return ForeignFile(found.path, "weights that vdiff exported", found.tensors, facts)

    def read(self, found: Contents, asked: Mapping[str, str]) -> ForeignModel:
        import torch

        from vdiff.diffusion.denoiser import Denoiser
        from vdiff.diffusion.process import DiffusionSection
        from vdiff.formats.weights import read_tensors, take_exactly
        from vdiff.networks import NETWORKS

        settings = _settings(found)
        kind = settings.get("network")
        if not isinstance(kind, str) or kind not in NETWORKS:
            problem = f"`{found.path.name}` has a network of the kind `{kind}`, unknown here"
            raise ModelFileError(problem, "install the package that it is of", found.path)
        config = _table(settings, "config")
        section_of_network = NETWORKS.section(kind)
        tensors = {name: tensor.float() for name, tensor in read_tensors(found).items()}
        # without memory first: a stranger's settings may ask for any amount
        with torch.device("meta"):
            outline = section_of_network.restore(config).state_dict()
        take_exactly(tensors, outline, found.path)
        network = section_of_network.restore(config)
        network.load_state_dict(tensors)
        network.eval().requires_grad_(False)
        diffusion = _table(settings, "diffusion")
        try:
            section = DiffusionSection.model_validate(diffusion)
        except ValueError as err:
            reason = f"has metadata `{KEY}` whose `diffusion` is none that vdiff knows"
            raise FormatError(reason, "export it again") from err
        sampler = settings.get("sampler")
        return ForeignModel(
            denoiser=Denoiser(network, section.schedule.build(), section.predicts),
            network=kind,
            diffusion=diffusion,
            shape=_shape(settings),
            num_classes=_count(settings, "num_classes", 0),
            null_class=settings.get("null_class") is True,
            num_steps=_count(settings, "num_steps", 1),
            is_distilled=settings.get("is_distilled") is True,
            sampler=sampler if isinstance(sampler, dict) else None,
            guidance=_guidance(settings),
        )

    def write(self, model: ForeignModel, path: Path, asked: Mapping[str, str]) -> None:
        from vdiff.formats.weights import write_tensors
        from vdiff.networks.network import as_network

        if model.codec != "pixels":
            problem = "its network sees no pixels, and the file could not say what it sees"
            raise ModelFileError(problem, "choose another format", path)
        network = as_network(model.denoiser.network)
        settings = {
            "network": model.network,
            "config": network.config,
            "diffusion": dict(model.diffusion),
            "shape": list(model.shape),
            "num_classes": model.num_classes,
            "null_class": model.null_class,
            "num_steps": model.num_steps,
            "is_distilled": model.is_distilled,
            "sampler": None if model.sampler is None else dict(model.sampler),
            "licence": model.licence,
        }
        if model.guidance is not None:
            settings["guidance"] = dict(model.guidance)
        weights = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
        if is_half(asked):
            weights = {
                name: tensor.half() if tensor.is_floating_point() else tensor
                for name, tensor in weights.items()
            }
        write_tensors(path, weights, {"format": "pt", KEY: json.dumps(settings)})

    def tolerance(self, asked: Mapping[str, str]) -> float | None:
        return HALF_TOLERANCE if is_half(asked) else None


def is_half(asked: Mapping[str, str]) -> bool:
    """Whether the weights are to be in half precision."""
    return asked.get("fp16") == "true"


def _shown(value: object) -> object:
    """A setting of a stranger, safe to show: a number, or its text in short."""
    if value is None or isinstance(value, int):
        return value
    return printable(str(value))


def _settings(found: Contents) -> dict[str, object]:
    """What the metadata says.   Errors: FormatError."""
    text = read_metadata(found.path).get(KEY, "")
    return parse_object(text.encode(), f"metadata `{KEY}`")


def _table(settings: Mapping[str, object], name: str) -> dict[str, object]:
    value = settings.get(name)
    if not isinstance(value, dict):
        raise FormatError(f"has metadata `{KEY}` without `{name}`", "export it again")
    return value


def _count(settings: Mapping[str, object], name: str, least: int) -> int:
    value = settings.get(name)
    if not isinstance(value, int) or not least <= value <= 1 << 24:
        raise FormatError(f"has metadata `{KEY}` whose `{name}` is no count", "export it again")
    return value


def _guidance(settings: dict[str, object]) -> dict[str, object] | None:
    """What the model has inside: nothing, or one g."""
    value = settings.get("guidance")
    if value is None:
        return None
    try:
        found = inside.checked(_table(settings, "guidance"))
    except ValueError as err:
        reason = f"has metadata `{KEY}` whose `guidance` is none"
        raise FormatError(reason, "export it again") from err
    if found.get("kind") != "baked":
        raise FormatError(f"has metadata `{KEY}` whose `guidance` is unknown", "export it again")
    return found


def _shape(settings: Mapping[str, object]) -> tuple[int, int, int]:
    match settings.get("shape"):
        case [int(channels), int(height), int(width)] if min(channels, height, width) > 0:
            return channels, height, width
    raise FormatError(f"has metadata `{KEY}` whose `shape` is not [C, H, W]", "export it again")
