"""What a model folder says of a network that diffusers computes:
which are taken, and which are refused. No torch.
"""

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from vdiff.config import shapes_weights
from vdiff.errors import MachineError, ModelFileError, UsageError
from vdiff.networks.taken_in import TakenInSection
from vdiff.system import distribution

if TYPE_CHECKING:
    from vdiff.networks.network import Network

CLASSES = ("UNet2DModel", "DiTTransformer2DModel")

MOST = {
    "layers_per_block": 16,
    "num_layers": 400,
    "patch_size": 64,
    "sample_size": 1 << 12,
}
"""More than any published network needs; a stranger's file could ask for
hours of building otherwise.
"""

_MOST_LEVELS = 12
_MOST_POSITIONS = 1 << 28
"""Numbers in the table of a transformer's positions, which is computed and in no file."""


class DiffusersSection(TakenInSection):
    """A network that diffusers computes and vdiff does not:
    of an imported base, students are copies of it.
    """

    kind: Literal["diffusers"] = shapes_weights("diffusers")
    """Which network this is."""

    @classmethod
    def restore(cls, config: Mapping[str, Any]) -> "Network":
        """As the contract says.   Errors: also MachineError where diffusers is not installed."""
        _check(config)
        if importlib.util.find_spec("diffusers") is None:
            problem = "this network is computed by diffusers, which is not installed"
            raise MachineError(problem, distribution.with_extra("diffusers"), config["_class_name"])
        from vdiff.networks.diffusers_network import built

        return built(config)

    @classmethod
    def misfit(
        cls, config: Mapping[str, Any], shape: tuple[int, int, int], num_classes: int
    ) -> str | None:
        channels, *size = shape
        is_unet = config.get("_class_name") == "UNet2DModel"
        expected = {"in_channels": channels, "out_channels": channels}
        for name, value in expected.items():
            if config.get(name) != value:
                return name
        classes = "num_class_embeds" if is_unet else "num_embeds_ada_norm"
        known = config.get(classes, None if is_unet else 1000) or 0
        # a transformer has a null class beside them, of which older folders do not tell
        if num_classes != known and (is_unet or num_classes != known + 1):
            return classes
        sizes: list[object] = [None, size, tuple(size)] if is_unet else []
        if size[0] == size[1]:
            sizes.append(size[0])
        return (
            None if config.get("sample_size", None if is_unet else 32) in sizes else "sample_size"
        )


def _check(config: Mapping[str, Any]) -> None:
    """Refuse what would take hours to build, or what is computed at whole times or for other
    conditions only.
    """
    if not isinstance(config, Mapping) or config.get("_class_name") not in CLASSES:
        raise ModelFileError(
            "the network's configuration names no class of diffusers that vdiff takes",
            f"it takes: {', '.join(CLASSES)}",
        )
    time = config.get("time_embedding_type", "positional")
    reasons = {
        "time_embedding_type": None
        if time == "positional"
        else "its time is no index on a table: time 0 is outside its domain",
        "class_embed_type": None
        if config.get("class_embed_type") is None
        else "it is told of no classes by number",
        "norm_type": None
        if config.get("norm_type", "ada_norm_zero") == "ada_norm_zero"
        else "diffusers does not compute it",
    }
    for name, reason in reasons.items():
        if reason is not None:
            problem = f"a network with `{name}` `{str(config[name])[:40]}` is not taken: {reason}"
            raise UsageError(problem, "use a model without this setting", name)
    for name, most in MOST.items():
        values = config.get(name)
        for value in values if isinstance(values, list | tuple) else [values]:
            if value is not None and not (type(value) is int and 1 <= value <= most):
                raise _impossible(name, f"{str(value)[:40]}, not a number from 1 to {most}")
    for name in ("block_out_channels", "down_block_types", "up_block_types"):
        if len(config.get(name) or ()) > _MOST_LEVELS:
            raise _impossible(name, f"of more than {_MOST_LEVELS} levels")
    _check_positions(config)


def _check_positions(config: Mapping[str, Any]) -> None:
    if config["_class_name"] == "UNet2DModel":
        return
    heads = config.get("num_attention_heads", 16)
    width = config.get("attention_head_dim", 72)
    size = config.get("sample_size", 32)
    if not all(type(each) is int and each > 0 for each in (heads, width, size)):
        raise _impossible("attention_head_dim", "no width")
    side = size // int(config.get("patch_size") or 2)
    if side < 1 or side**2 * heads * width > _MOST_POSITIONS:
        raise _impossible("sample_size", f"{size}, and needs too many positions, or none")


def _impossible(key: str, why: str) -> ModelFileError:
    return ModelFileError(
        f"`{key}` is {why}",
        "use an undamaged copy of the model",
        f"`{key}` in the network's config.json",
    )
