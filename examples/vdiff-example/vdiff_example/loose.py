"""A format of models: the weights of a `dit` in one .safetensors file,
and its settings in the header of that.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vdiff.errors import ModelFileError
from vdiff.formats.adapter import ForeignModel, Format
from vdiff.formats.contents import Contents
from vdiff.formats.foreign_file import ForeignFile

MAKER = "vdiff-example"


class LooseFormat(Format):
    """See `vdiff.formats.adapter.Format`."""

    @classmethod
    def recognises(cls, found: Contents) -> bool:
        return found.container == "safetensors" and found.entries.get("made_by") == MAKER

    def describe(self, found: Contents) -> ForeignFile:
        facts = {"num_bytes": found.num_bytes, "network": settings(found)}
        return ForeignFile(found.path, "weights of vdiff-example", found.tensors, facts)

    def read(self, found: Contents, asked: Mapping[str, str]) -> ForeignModel:
        from safetensors.torch import load_file  # here, so that files are described without torch

        from vdiff.diffusion.denoiser import Denoiser
        from vdiff_example.dit import DiTSection
        from vdiff_example.straight import StraightSection

        config = settings(found)
        network = DiTSection.restore(config)
        try:
            network.load_state_dict(load_file(found.path))
        except RuntimeError as err:
            raise ModelFileError(
                "the weights do not fit the settings", "take another file", found.path
            ) from err
        network.eval().requires_grad_(False)
        size = config["image_size"]
        return ForeignModel(
            denoiser=Denoiser(network, StraightSection().build(), "v"),
            network="dit",
            diffusion={"schedule": "straight", "predicts": "v"},
            shape=(config["channels"], size, size),
            num_classes=config["num_classes"] or 0,
            num_steps=1024,
            assumed=("the schedule is `straight`, with 1024 steps, and the network predicts v",),
        )

    def write(self, model: ForeignModel, path: Path, asked: Mapping[str, str]) -> None:
        from safetensors.torch import save_file

        from vdiff_example.dit import DiT

        network = model.denoiser.network
        is_straight = dict(model.diffusion) == {"schedule": "straight", "predicts": "v"}
        if not (isinstance(network, DiT) and is_straight):
            raise ModelFileError(
                "only a `dit` with the schedule `straight` fits in", "choose another format", path
            )
        about = {name: json.dumps(value) for name, value in network.config.items()}
        save_file(network.state_dict(), path, metadata={"made_by": MAKER, **about})


def settings(found: Contents) -> dict[str, Any]:
    """What the header says of the network.   Errors: ModelFileError."""
    try:
        return {
            name: json.loads(str(text)) for name, text in found.entries.items() if name != "made_by"
        }
    except ValueError as err:
        raise ModelFileError(
            "the settings in the header are damaged", "take another file", found.path
        ) from err
