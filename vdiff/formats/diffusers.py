"""Folders of diffusers: a pipeline (`model_index.json` beside its parts) or one network
(`config.json` and weights).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vdiff.disk.tensor_facts import FormatError, printable
from vdiff.formats.adapter import ForeignModel, Format, Outputs
from vdiff.formats.contents import Contents
from vdiff.formats.diffusers_layout import PLACES, part, place_of, scheduler_of
from vdiff.formats.foreign_file import ForeignFile, warning

if TYPE_CHECKING:
    from torch import Tensor

MOST_ITEMS = 64
"""How many items of a list in a configuration are shown among the facts."""

NETWORK_FACTS = (
    "sample_size",
    "in_channels",
    "out_channels",
    "block_out_channels",
    "layers_per_block",
    "down_block_types",
    "attention_head_dim",
    "class_embed_type",
    "num_class_embeds",
)
SCHEDULER_FACTS = (
    "num_train_timesteps",
    "prediction_type",
    "timestep_spacing",
    "beta_schedule",
    "set_alpha_to_one",
    "clip_sample",
    "rescale_betas_zero_snr",
)
WEIGHTS = ("*.safetensors", "*.bin")
"""In this order: where a folder has both, the pickles are left alone."""


PREDICTIONS = ("epsilon", "v_prediction")
TABLES = ("linear", "squaredcos_cap_v2")
"""What a network without a scheduler is tried with."""


class DiffusersFormat(Format):
    """A folder of diffusers: a pipeline, or a `UNet2DModel` or `DiTTransformer2DModel` alone."""

    options: ClassVar[Mapping[str, str]] = {
        "head_dim": (
            "channels per attention head, where an old configuration is silent; `none`: one head"
        ),
        "size": "pixels of its pictures, where the configuration is silent",
        "prediction_type": "what the network predicts: epsilon, sample or v_prediction",
        "beta_schedule": (
            "the table of betas: linear, scaled_linear, squaredcos_cap_v2, sigmoid or laplace"
        ),
        "beta_start": "the first beta",
        "beta_end": "the last beta",
        "num_train_timesteps": "entries of the table",
        "null_class": "`last` where the last class of a U-Net stands for no class",
    }
    write_options: ClassVar[Mapping[str, str]] = {
        "fp16": "the weights in half precision too, as the variant `fp16`",
    }

    @classmethod
    def recognises(cls, found: Contents) -> bool:
        """Whether a configuration in the folder names a class.

        Without one, formats of other packages come first.
        """
        files = ("model_index.json", *(f"{place}config.json" for place in PLACES))
        return any("_class_name" in (found.config(name) or {}) for name in files)

    def describe(self, found: Contents) -> ForeignFile:
        place = place_of(found)
        if place is None:
            problem = "is a folder without `model_index.json` or `config.json`"
            raise FormatError(problem, "name a run, a model or a file")
        config = found.config(f"{place}config.json") or {}
        facts = {
            "network": _class_name(config),
            **_chosen(config, NETWORK_FACTS),
            **_pipeline_facts(found),
        }
        weights = [part(path) for path in _weights(found.path / place)]
        tensors = tuple(tensor for each in weights for tensor in each.tensors)
        names = tuple(name for each in weights for name in each.names)
        facts |= {"num_bytes": sum(each.num_bytes for each in weights), **warning(names)}
        kind = "diffusers network"
        if (found.path / "model_index.json").is_file():
            kind = "diffusers pipeline"
        return ForeignFile(found.path, kind, tensors, facts)

    def candidates(self, found: Contents, asked: Mapping[str, str]) -> Sequence[Mapping[str, str]]:
        from vdiff.formats.diffusers_network import is_silent_on_heads

        place = place_of(found) or ""
        readings = [dict(asked)]
        if scheduler_of(found) is None and "prediction_type" not in asked:
            readings = [{"prediction_type": each, **asked} for each in PREDICTIONS]
        if scheduler_of(found) is None and "beta_schedule" not in asked:
            readings = [{**each, "beta_schedule": name} for name in TABLES for each in readings]
        if (
            is_silent_on_heads(found.config(f"{place}config.json") or {})
            and "head_dim" not in asked
        ):
            readings = [{**each, "head_dim": width} for width in ("8", "none") for each in readings]
        return readings

    def read(self, found: Contents, asked: Mapping[str, str]) -> ForeignModel:
        from vdiff.formats.diffusers_network import read

        return read(found, asked)

    def write(self, model: ForeignModel, path: Path, asked: Mapping[str, str]) -> None:
        from vdiff.formats.diffusers_writing import write

        write(model, path, fp16=asked.get("fp16") == "true")

    def outputs(
        self, found: Contents, z: "Tensor", time: "Tensor", label: "Tensor | None"
    ) -> Outputs | None:
        from vdiff.formats.diffusers_network import outputs

        return outputs(found, z, time, label)


def _weights(network: Path) -> list[Path]:
    """The weight files to describe: the plain one, else those of one kind (the
    parts of a large network).
    """
    for pattern in WEIGHTS:
        paths = sorted(network.glob(pattern))
        # Beside the plain file may lie variants of the same weights, like
        # `diffusion_pytorch_model.fp16`.
        plain = [path for path in paths if path.stem == "diffusion_pytorch_model"]
        if paths:
            return plain or paths
    raise FormatError(f"has no weights in `{network.name}`")


def _pipeline_facts(found: Contents) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    index = found.config("model_index.json")
    if index is not None:
        facts["pipeline"] = _class_name(index)
    scheduler = scheduler_of(found)
    if scheduler is not None:
        facts |= {"scheduler": _class_name(scheduler), **_chosen(scheduler, SCHEDULER_FACTS)}
    return facts


def _chosen(config: Mapping[str, object], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: _plain(config[key]) for key in keys if config.get(key) is not None}


def _class_name(config: Mapping[str, object]) -> Any:
    return _plain(config.get("_class_name", "unknown"))


def _plain(value: object) -> Any:
    """A setting of a stranger, safe to show: numbers, short texts and flat lists of them."""
    if isinstance(value, list):
        return [_plain(item) for item in value[:MOST_ITEMS] if not isinstance(item, list)]
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, int | float):
        return value
    return "..."
