"""What the classes and settings in a pickle of NVlabs/edm tell of its network, and which vdiff
computes.

The classes are known by name; the source text that the pickle brings for them is not looked at. A
setting that is not known here is refused: it may change what the network computes. That the
settings are true is seen by the names and shapes of all tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdiff.disk.tensor_facts import printable
from vdiff.errors import ModelFileError
from vdiff.formats.edm_frame import NUM_STEPS
from vdiff.formats.persistent import Module
from vdiff.networks.edm_unet_section import MOST_LEVELS, EdmUNetConfig

LICENCE = "CC BY-NC-SA 4.0 (NVlabs/edm, its code and released weights): not for commercial use"

FAMILIES = {"SongUNet": "ddpm++", "DhariwalUNet": "adm"}
HEAD_DIM = 64
"""Channels per head of a DhariwalUNet; below, a level has no attention at all."""

_OF_ALL_FRAMES = {"img_resolution", "img_channels", "label_dim", "use_fp16", "model_type"}
_OF_FRAMES = {
    "EDMPrecond": {"sigma_min", "sigma_max", "sigma_data"},
    "VPPrecond": {"beta_d", "beta_min", "M", "epsilon_t"},
    "iDDPMPrecond": {"C_1", "C_2", "M"},
}
_OF_ALL_NETWORKS = {
    *("img_resolution", "in_channels", "out_channels", "label_dim", "augment_dim"),
    *("model_channels", "channel_mult", "channel_mult_emb", "num_blocks", "attn_resolutions"),
    *("dropout", "label_dropout"),
}
_OF_SONG = {
    *("embedding_type", "channel_mult_noise", "encoder_type", "decoder_type", "resample_filter"),
}
_DDPMPP = {
    "embedding_type": "positional",
    "encoder_type": "standard",
    "decoder_type": "standard",
}
_NCSNPP = "it is an NCSN++ (`{name}` is {value}), which vdiff does not compute"
_TAKE_DDPMPP = "take the DDPM++ network of the same pictures, such as edm-cifar10-32x32-cond-vp.pkl"


@dataclass(frozen=True)
class Layout:
    """A network of NVlabs/edm.

    frame: the class around the network.   config: of a network of the kind `edm_unet`.
    outputs: channels that it gives; those behind the pictures' are a variance.
    augment: numbers that told it of an augmentation, which there is none of in pictures to draw.
    sigma_data: None without EDM's frame.   limits: the noise that the frame was made for.
    diffusion: that section of a recipe, where the frame settles it.
    """

    frame: str
    config: Mapping[str, Any]
    outputs: int
    augment: int
    steps: int
    sigma_data: float | None = None
    limits: tuple[float, float] = (0.0, float("inf"))
    diffusion: Mapping[str, object] | None = None
    dropout: float = 0.0

    def facts(self) -> dict[str, Any]:
        """For `vdiff inspect` and the card."""
        kept = ("family", "image_size", "channels", "widths", "blocks", "num_classes")
        told = {name: self.config[name] for name in kept}
        told["attention_at"] = [
            self.config["image_size"] >> level
            for level, attends in enumerate(self.config["attends"])
            if attends
        ]
        return {
            "frame": self.frame,
            **told,
            "sigma_data": self.sigma_data,
            "augment_dim": self.augment,
            "dropout": self.dropout,
        }


def layout_of(module: Module, path: Path) -> Layout:
    """The network that a pickle stands for.

    Errors: ModelFileError for one that vdiff does not compute, with the reason.
    """
    frame = module.class_name
    if frame == "VEPrecond":
        problem = (
            f"`{path.name}` is a variance-exploding model (VEPrecond), which vdiff cannot draw"
        )
        raise ModelFileError(problem, _TAKE_DDPMPP, path)
    if frame not in _OF_FRAMES:
        problem = f"`{path.name}` is a network of the class `{frame}`, which vdiff does not know"
        fix = "of NVlabs' programs, it reads EDMPrecond, VPPrecond and iDDPMPrecond of NVlabs/edm"
        raise ModelFileError(problem, fix, path)
    inner = module.parts.get("model")
    family = None if inner is None else FAMILIES.get(inner.class_name)
    if inner is None or family is None:
        name = inner.class_name if inner is not None else "none"
        problem = (
            f"the network in `{path.name}` is of the class `{name}`, which vdiff does not know"
        )
        raise ModelFileError(problem, f"it knows {' and '.join(FAMILIES)}", path)
    known = _OF_ALL_NETWORKS | (_OF_SONG if family == "ddpm++" else set())
    _check_known(inner, known, path)
    _check_known(module, _OF_ALL_FRAMES | _OF_FRAMES[frame] | known, path)
    told = _Told(inner.settings, path)
    if family == "ddpm++":
        _refuse_ncsnpp(told, path)
    return _framed(_Told(module.settings, path), frame, told, family)


def _framed(outside: "_Told", frame: str, told: "_Told", family: str) -> Layout:
    common: dict[str, Any] = {
        "frame": frame,
        "config": _config(told, family),
        "outputs": told.count("out_channels"),
        "augment": told.count("augment_dim", 0),
        "dropout": told.number("dropout", 0.1),
    }
    channels = common["config"]["channels"]
    if common["outputs"] != channels * (2 if frame == "iDDPMPrecond" else 1):
        raise told.wrong("out_channels", f"{common['outputs']} for pictures of {channels}")
    if frame == "EDMPrecond":
        endless = float("inf")
        limits = (
            outside.number("sigma_min", 0.0),
            outside.number("sigma_max", endless, most=endless),
        )
        sigma_data = outside.number("sigma_data", 0.5)
        return Layout(**common, steps=NUM_STEPS, sigma_data=sigma_data, limits=limits)
    steps = outside.count("M", 1000)
    schedule: dict[str, object] = {"kind": "cosine", "grid": steps}
    if frame == "VPPrecond":
        schedule = {
            "kind": "vp",
            "grid": steps,
            "beta_min": outside.number("beta_min", 0.1),
            "beta_d": outside.number("beta_d", 19.9),
        }
    elif (outside.number("C_1", 0.001), outside.number("C_2", 0.008)) != (0.001, 0.008):
        raise outside.wrong("C_1", "not that of the cosine schedule")
    diffusion = {"schedule": schedule, "predicts": "eps"}
    return Layout(**common, steps=steps, diffusion=diffusion)


def _config(told: "_Told", family: str) -> dict[str, Any]:
    """The configuration of the U-Net.   Errors: ModelFileError."""
    is_adm = family == "adm"
    width = told.count("model_channels", 192 if is_adm else 128)
    factors = told.counts("channel_mult", [1, 2, 3, 4] if is_adm else [1, 2, 2, 2])
    size = told.count("img_resolution")
    attended = told.counts("attn_resolutions", [32, 16, 8] if is_adm else [16])
    if not 1 <= len(factors) <= MOST_LEVELS:
        raise told.wrong("channel_mult", f"{len(factors)} levels")
    widths = [width * factor for factor in factors]
    config = {
        "family": family,
        "image_size": size,
        "channels": told.count("in_channels"),
        "first": widths[0] if is_adm else width,
        "widths": widths,
        "blocks": told.count("num_blocks", 3 if is_adm else 4),
        "attends": [size >> level in attended for level in range(len(widths))],
        "heads": [each // HEAD_DIM if is_adm else 1 for each in widths],
        "sinusoid": width * (1 if is_adm else told.count("channel_mult_noise", 1)),
        "embedding": width * told.count("channel_mult_emb", 4),
        "num_classes": told.count("label_dim", 0),
    }
    return EdmUNetConfig.read(config).model_dump(mode="json")


def _check_known(module: Module, known: set[str], path: Path) -> None:
    unknown = [printable(name, 40) for name in sorted(module.settings.keys() - known)[:20]]
    if module.positional:
        unknown.append("one without a name")
    if unknown:
        problem = (
            f"`{module.class_name}` in `{path.name}` was made with settings that vdiff does not "
            f"know: {', '.join(unknown)}"
        )
        fix = "it is of a changed program; take a network of NVlabs/edm itself"
        raise ModelFileError(problem, fix, path)


def _refuse_ncsnpp(told: "_Told", path: Path) -> None:
    for name, value in _DDPMPP.items():
        found = told.settings.get(name, value)
        if found != value:
            problem = f"`{path.name}`: {_NCSNPP.format(name=name, value=_shown(found))}"
            raise ModelFileError(problem, _TAKE_DDPMPP, path)
    if told.counts("resample_filter", [1, 1]) != [1, 1]:
        problem = f"`{path.name}` changes resolutions with a filter that vdiff does not compute"
        raise ModelFileError(problem, _TAKE_DDPMPP, path)


@dataclass(frozen=True)
class _Told:
    """Settings of a stranger."""

    settings: Mapping[str, Any]
    path: Path

    def count(self, name: str, default: int | None = None) -> int:
        """A whole number from 0 to 2^24."""
        value = self.settings.get(name, default)
        if type(value) is not int or not 0 <= value <= 1 << 24:
            raise self.wrong(name, _shown(value))
        return value

    def counts(self, name: str, default: list[int]) -> list[int]:
        """Several of them."""
        value = self.settings.get(name, default)
        if not isinstance(value, list | tuple) or len(value) > 64:
            raise self.wrong(name, "no list of whole numbers")
        for each in value:
            if type(each) is not int or not 0 <= each <= 1 << 24:
                raise self.wrong(name, _shown(each))
        return list(value)

    def number(self, name: str, default: float, most: float = 1e6) -> float:
        """A real number from 0 to `most`."""
        value = self.settings.get(name, default)
        is_number = type(value) is float or (type(value) is int and value < 1 << 24)
        if not is_number or not 0 <= value <= most:
            raise self.wrong(name, _shown(value))
        return float(value)

    def wrong(self, name: str, why: str) -> ModelFileError:
        """The error about one."""
        problem = f"`{name}` of the network in `{self.path.name}` is {why}"
        return ModelFileError(problem, "take an undamaged copy", self.path)


def _shown(value: object) -> str:
    """A value for a message: what holds others may be endless, and a number may be very long."""
    if isinstance(value, str):
        return f"`{printable(value, 40)}`"
    if value is None or isinstance(value, float | bool):
        return f"{value}"
    if isinstance(value, int) and abs(value) < 1 << 63:
        return f"{value}"
    return f"a {type(value).__name__}, and should be another"
