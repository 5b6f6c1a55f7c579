"""Folders of diffusers: a pipeline (`model_index.json` beside its parts) or one network
(`config.json` and weights).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdiff.disk.tensor_facts import FormatError, printable
from vdiff.formats.adapter import ForeignModel, Format, Outputs
from vdiff.formats.contents import Contents, contents_of
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
PLACES = ("unet/", "transformer/", "")
"""Where the network may lie in the folder."""
WEIGHTS = ("*.safetensors", "*.bin")
"""In this order: where a folder has both, the pickles are left alone."""


class DiffusersFormat(Format):
    """See `Format`."""

    @classmethod
    def recognises(cls, found: Contents) -> bool:
        """Whether a configuration in the folder names a class.

        Without one, formats of other packages come first.
        """
        files = ("model_index.json", *(f"{place}config.json" for place in PLACES))
        return any("_class_name" in (found.config(name) or {}) for name in files)

    def describe(self, found: Contents) -> ForeignFile:
        places = [place for place in PLACES if (found.path / place / "config.json").is_file()]
        if not places:
            problem = "is a folder without `model_index.json` or `config.json`"
            raise FormatError(problem, "name a run, a model or a file")
        place = places[0]
        config = found.config(f"{place}config.json") or {}
        facts = {
            "network": _class_name(config),
            **_chosen(config, NETWORK_FACTS),
            **_pipeline_facts(found),
        }
        weights = [_part(path) for path in _weights(found.path / place)]
        tensors = tuple(tensor for part in weights for tensor in part.tensors)
        names = tuple(name for part in weights for name in part.names)
        facts |= {"num_bytes": sum(part.num_bytes for part in weights), **warning(names)}
        kind = "diffusers network"
        if (found.path / "model_index.json").is_file():
            kind = "diffusers pipeline"
        return ForeignFile(found.path, kind, tensors, facts)

    def read(self, found: Contents, asked: Mapping[str, str]) -> ForeignModel:
        from vdiff.formats.diffusers_network import read

        return read(found)

    def outputs(
        self, found: Contents, z: "Tensor", time: "Tensor", label: "Tensor | None"
    ) -> Outputs | None:
        from vdiff.formats.diffusers_network import outputs

        return outputs(found, z, time, label)


def _part(path: Path) -> Contents:
    """One file of weights.   Errors: FormatError that names it."""
    try:
        part = contents_of(path)
        if part.trouble is not None:
            raise part.trouble
    except FormatError as err:
        raise FormatError(
            f"holds a file of weights, `{path.name}`, that {err.reason}", err.fix
        ) from err
    return part


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
    scheduler = found.config("scheduler/scheduler_config.json")
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
