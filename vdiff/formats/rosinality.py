"""Checkpoints of rosinality's denoising-diffusion-pytorch, the program that diffusion_distiller
grew out of: the same U-Net, which predicts noise there.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from vdiff.errors import ModelFileError
from vdiff.formats.adapter import ForeignModel, Format
from vdiff.formats.contents import Contents
from vdiff.formats.distiller import network_facts
from vdiff.formats.foreign_file import ForeignFile, warning
from vdiff.formats.opcodes import Table

SCHEDULES = ("linear", "cosine")
"""Of its configurations, the usual one first."""


class RosinalityFormat(Format):
    """`{"model": weights, "ema": averaged weights, ...}` of rosinality's
    denoising-diffusion-pytorch, whose time embedding has a buffer `time.0.inv_freq`.
    """

    options: ClassVar[Mapping[str, str]] = {
        "size": "pixels of its pictures",
        "heads": "attention heads at every level (`attn_heads`)",
        "schedule": "linear or cosine (`beta_schedule`)",
        "steps": "entries of its noise table (`n_timestep`); 1000 unless it was changed",
    }
    suffix: ClassVar[str] = ".pt"

    @classmethod
    def recognises(cls, found: Contents) -> bool:
        return found.container == "torch" and _prefix(found) is not None

    def describe(self, found: Contents) -> ForeignFile:
        """What the weights tell; heads, the noise process and dropout leave no trace in them."""
        prefix = _prefix(found) or ""
        shapes = {
            fact.name.removeprefix(prefix): fact.shape
            for fact in found.tensors
            if fact.name.startswith(prefix)
        }
        facts: dict[str, Any] = {
            "num_bytes": found.num_bytes,
            "weights": "averaged" if prefix == "ema." else "as trained",
            "predicts": "eps",
            **network_facts(shapes),
            "not_in_the_file": ["image_size", "attn_heads", "beta_schedule", "dropout"],
            **warning(found.names),
        }
        kind = "checkpoint of rosinality's denoising-diffusion-pytorch"
        return ForeignFile(found.path, kind, found.tensors, facts)

    def candidates(self, found: Contents, asked: Mapping[str, str]) -> Sequence[Mapping[str, str]]:
        from vdiff.formats import distiller_model

        readings = distiller_model.readings(self.describe(found).facts, asked)
        schedules = (asked["schedule"],) if "schedule" in asked else SCHEDULES
        # the likeliest number of heads comes with every schedule first
        return [{**each, "schedule": name} for each in readings for name in schedules]

    def read(self, found: Contents, asked: Mapping[str, str]) -> ForeignModel:
        from vdiff.formats import rosinality_model

        if found.names:
            problem = (
                f"`{found.path.name}` holds its configuration as an object of `{found.names[0]}`, "
                "which nobody can load without running that program"
            )
            fix = (
                "in a clone of it that you trust: `torch.save({'ema': torch.load(FILE, "
                "weights_only=False)['ema']}, 'weights.pt')`"
            )
            raise ModelFileError(problem, fix, found.path)
        prefix = _prefix(found) or ""
        return rosinality_model.read(found, prefix, self.describe(found).facts, asked)

    def write(self, model: ForeignModel, path: Path, asked: Mapping[str, str]) -> None:
        from vdiff.formats import rosinality_model

        rosinality_model.write(model, path)

    def to_read_back(self, model: ForeignModel) -> Mapping[str, str]:
        from vdiff.formats import rosinality_model

        return rosinality_model.told_of(model)


def _prefix(found: Contents) -> str | None:
    """Of the names of the weights to take, the averaged ones first; None where there are none."""
    names = {fact.name for fact in found.tensors}
    for part in ("ema", "model"):
        ours = (f"{part}.time.0.inv_freq", f"{part}.mid.0.attention.qkv.weight")
        if isinstance(found.entries.get(part), Table) and all(name in names for name in ours):
            return f"{part}."
    return None
