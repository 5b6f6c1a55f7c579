"""Checkpoints of lucidrains' denoising-diffusion-pytorch:
its trainer's files, or the weights of such a network alone.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vdiff.errors import ModelFileError
from vdiff.formats.adapter import ForeignModel, Format, Outputs
from vdiff.formats.contents import Contents
from vdiff.formats.foreign_file import ForeignFile, warning
from vdiff.formats.lucidrains_layout import (
    Layout,
    by_version,
    is_ours,
    layout_of,
    network_config,
)

if TYPE_CHECKING:
    from torch import Tensor


class LucidrainsFormat(Format):
    """A `.pt` of denoising-diffusion-pytorch, versions 0.27 to 2.3:
    of its Trainer, or weights alone.
    """

    options: ClassVar[Mapping[str, str]] = {
        "size": "pixels of its pictures (`image_size`): never in the file",
        "theta": "`sinusoidal_pos_emb_theta` of the network; 10000 unless it was changed",
        "groups": "`resnet_block_groups` before version 2.0; 8 unless it was changed",
        "heads": "attention heads before version 1.9; 4 unless it was changed",
        "predicts": "eps, x or v, where the file has no `loss_weight` (before version 1.5)",
        "version": "version of the program, where a file of 1.7 or before does not say it",
        "table": "linear, cosine or sigmoid, where the file holds the network's weights alone",
        "steps": "`timesteps`, where the file holds the network's weights alone; 1000 is usual",
    }

    def __init__(self) -> None:
        self._told: Mapping[str, str] = {}

    @classmethod
    def recognises(cls, found: Contents) -> bool:
        return is_ours(found)

    def describe(self, found: Contents) -> ForeignFile:
        """What the shapes tell, which is all but the size of the pictures."""
        facts: dict[str, Any] = {"num_bytes": found.num_bytes}
        for name in ("version", "step"):
            value = found.entries.get(name)
            if isinstance(value, str | int):
                facts[name] = value
        try:
            layout = layout_of(found)
            facts |= _facts(layout, found)
            facts["predicts"] = _predicts(found, layout)
        except ModelFileError as err:
            facts["not_supported"] = err.problem
        facts |= warning(found.names)
        return ForeignFile(
            found.path, "denoising-diffusion-pytorch checkpoint", found.tensors, facts
        )

    def candidates(self, found: Contents, asked: Mapping[str, str]) -> Sequence[Mapping[str, str]]:
        from vdiff.formats.lucidrains_model import candidates

        return candidates(found, asked)

    def read(self, found: Contents, asked: Mapping[str, str]) -> ForeignModel:
        from vdiff.formats.lucidrains_model import read

        self._told = asked
        return read(found, asked)

    def outputs(
        self, found: Contents, z: "Tensor", time: "Tensor", label: "Tensor | None"
    ) -> Outputs | None:
        """Of a file of version 2; a `theta` that `read` was told is told that program, too."""
        from vdiff.formats import lucidrains_library
        from vdiff.formats.lucidrains_model import theta_of

        return lucidrains_library.outputs(found, theta_of(self._told), z, time)


def _facts(layout: Layout, found: Contents) -> dict[str, Any]:
    version = layout.version or "0"
    # groups and theta leave no trace, so no number of them is shown
    config = network_config(layout, version, 1.0, None, None)
    facts: dict[str, Any] = {
        "generation": layout.generation,
        "weights": "averaged" if layout.is_average else "as trained",
        "channels": layout.channels,
        **{name: config[name] for name in ("dim", "widths", "attentions", "memory")},
        "self_condition": layout.has_self_condition,
        "learned_variance": layout.has_variance,
        "not_in_the_file": ["image_size", "sinusoidal_pos_emb_theta", "dropout"],
    }
    if layout.generation != "A":
        facts["not_in_the_file"].append("resnet_block_groups")
    if layout.generation == "D":
        facts["traits"] = by_version(layout, version)._asdict() if layout.version else "ask"
    for fact in found.tensors:
        if layout.buffers is not None and fact.name == f"{layout.buffers}alphas_cumprod":
            facts["timesteps"] = fact.num_elements
    return facts


def _predicts(found: Contents, layout: Layout) -> str:
    """What the weights of the loss say that the network predicts; `ask` where they are silent."""
    # values of a table are read for it, and torch with them: only where there is one
    if layout.buffers is None or not any(
        fact.name == f"{layout.buffers}loss_weight" for fact in found.tensors
    ):
        return "ask"
    from vdiff.formats.lucidrains_model import predictions

    fitting = predictions(found, layout)
    return fitting[0] if len(fitting) == 1 else "ask"
