"""What a model file or folder of another program holds, for `vdiff inspect`; nothing in it is executed or believed."""

from pathlib import Path
from typing import Any

from vdiff.errors import ModelFileError
from vdiff.formats.distiller import distiller_facts
from vdiff.formats.facts import ForeignFile
from vdiff.formats.torch_file import TorchFile, legacy_names, read_zip
from vdiff.headers.facts import FormatError, TensorFact, printable
from vdiff.headers.safetensors_header import is_safetensors, read_header
from vdiff.headers.strict_json import parse_object

__all__ = ["ForeignFile", "TensorFact", "describe"]

LARGEST_CONFIG = 2**20
"""Bytes of a configuration file in a diffusers folder."""

MOST_NAMES, MOST_ITEMS = 200, 64
"""Of names and of a list in a configuration that are repeated among the facts."""

NETWORK_FACTS = (
    *("sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block"),
    *("down_block_types", "attention_head_dim", "class_embed_type", "num_class_embeds"),
)
SCHEDULER_FACTS = (
    *("num_train_timesteps", "prediction_type", "timestep_spacing", "beta_schedule", "set_alpha_to_one"),
    *("clip_sample", "rescale_betas_zero_snr"),
)
WEIGHTS = ("*.safetensors", "*.bin")
"""In this order: where a folder has both, the pickles are left alone."""


def describe(path: Path) -> ForeignFile:
    """What the file or diffusers folder at `path` holds; ModelFileError if it is damaged, unsafe or unknown."""
    try:
        return _describe_folder(path) if path.is_dir() else _describe_file(path)
    except FormatError as err:
        raise ModelFileError(f"`{path.name}` {err.reason}", err.fix, path) from err
    except OSError as err:
        raise ModelFileError(f"`{path.name}` cannot be read: {err.strerror}", "check the path", path) from err


def _describe_file(path: Path) -> ForeignFile:
    if not path.is_file():
        raise FormatError("is not a file" if path.exists() else "does not exist", "check the path")
    with path.open("rb") as file:
        head = file.read(16)
    num_bytes = path.stat().st_size
    if is_safetensors(head):
        return _safetensors(path, num_bytes)
    is_zip = head.startswith(b"PK\x03\x04")
    if path.suffix == ".safetensors" and (is_zip or _is_pickle(path)):
        reason = "is a pickle under the name of a safetensors file: loading it could run any program"
        raise FormatError(reason, "do not load it; ask its maker for real safetensors")
    if is_zip:
        return _torch_zip(path, num_bytes)
    if path.suffix == ".safetensors":
        return _safetensors(path, num_bytes)
    return _legacy(path, num_bytes)


def _safetensors(path: Path, num_bytes: int) -> ForeignFile:
    tensors, metadata = read_header(path)
    facts: dict[str, Any] = {"num_bytes": num_bytes, **({"metadata": metadata} if metadata else {})}
    return ForeignFile(path, "safetensors weights", tensors, facts)


def _torch_zip(path: Path, num_bytes: int) -> ForeignFile:
    file = read_zip(path)
    distiller = distiller_facts(file.root, file.tensors)
    facts = {"num_bytes": num_bytes, **(distiller or {}), **_warning(file.names)}
    return ForeignFile(path, _torch_kind(file, distiller is not None), file.tensors, facts)


def _torch_kind(file: TorchFile, is_distiller: bool) -> str:
    if file.has_code:
        return "torchscript program"
    return "diffusion_distiller checkpoint" if is_distiller else "pytorch checkpoint"


def _legacy(path: Path, num_bytes: int) -> ForeignFile:
    try:
        names = legacy_names(path)
    except FormatError as err:
        reason = "is not a model file that vdiff knows, or a damaged one"
        raise FormatError(reason, "name a .pt, .pth, .ckpt or .safetensors file, or a diffusers folder") from err
    advice = "where you trust its maker: `torch.save(torch.load(file, weights_only=True), new_file)`"
    facts = {"num_bytes": num_bytes, "note": "a bare pickle: not read", "fix": advice, **_warning(names)}
    return ForeignFile(path, "legacy pickle", (), facts)


def _is_pickle(path: Path) -> bool:
    try:
        legacy_names(path)
    except FormatError:
        return False
    return True


def _warning(names: tuple[str, ...]) -> dict[str, Any]:
    """The fact that everybody should see, if there is anything to see."""
    if not names:
        return {}
    more = [f"... and {len(names) - MOST_NAMES} more"] if len(names) > MOST_NAMES else []
    return {"names_that_would_be_executed": [*names[:MOST_NAMES], *more]}


def _describe_folder(folder: Path) -> ForeignFile:
    """A diffusers pipeline (`model_index.json` beside its parts) or one network (`config.json` beside its weights)."""
    network = next((part for part in _network_folders(folder) if (part / "config.json").is_file()), None)
    if network is None:
        raise FormatError("is a folder without `model_index.json` or `config.json`", "name a run, a model or a file")
    config = _config(network / "config.json")
    facts = {"network": _class_name(config), **_chosen(config, NETWORK_FACTS), **_pipeline_facts(folder)}
    weights = [_describe_part(path) for path in _weights(network)]
    tensors = tuple(tensor for file in weights for tensor in file.tensors)
    names = [name for file in weights for name in file.facts.get("names_that_would_be_executed", ())]
    facts |= {"num_bytes": sum(file.facts["num_bytes"] for file in weights), **_warning(tuple(names))}
    is_pipeline = (folder / "model_index.json").is_file()
    return ForeignFile(folder, "diffusers pipeline" if is_pipeline else "diffusers network", tensors, facts)


def _describe_part(path: Path) -> ForeignFile:
    try:
        return _describe_file(path)
    except FormatError as err:
        raise FormatError(f"holds a file of weights, `{path.name}`, that {err.reason}", err.fix) from err


def _network_folders(folder: Path) -> tuple[Path, ...]:
    return folder / "unet", folder / "transformer", folder


def _weights(network: Path) -> list[Path]:
    """The weight files to describe: the plain one, else those of one kind (the parts of a large network)."""
    for pattern in WEIGHTS:
        found = sorted(network.glob(pattern))
        plain = [path for path in found if path.stem == "diffusion_pytorch_model"]
        if found:
            return plain or found
    raise FormatError(f"has no weights in `{network.name}`")


def _pipeline_facts(folder: Path) -> dict[str, Any]:
    index, scheduler = folder / "model_index.json", folder / "scheduler" / "scheduler_config.json"
    facts: dict[str, Any] = {}
    if index.is_file():
        facts["pipeline"] = _class_name(_config(index))
    if scheduler.is_file():
        config = _config(scheduler)
        facts |= {"scheduler": _class_name(config), **_chosen(config, SCHEDULER_FACTS)}
    return facts


def _config(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        content = file.read(LARGEST_CONFIG + 1)
    if len(content) > LARGEST_CONFIG:
        raise FormatError(f"has a `{path.name}` of more than {LARGEST_CONFIG} bytes")
    return parse_object(content, f"a `{path.name}`")


def _chosen(config: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: _plain(config[key]) for key in keys if config.get(key) is not None}


def _class_name(config: dict[str, Any]) -> Any:
    return _plain(config.get("_class_name", "unknown"))


def _plain(value: Any) -> Any:
    """A setting of a stranger, safe to show: numbers, short texts and flat lists of them."""
    if isinstance(value, list):
        return [_plain(item) for item in value[:MOST_ITEMS] if not isinstance(item, list)]
    if isinstance(value, str):
        return printable(value)
    return value if isinstance(value, int | float) else "..."
