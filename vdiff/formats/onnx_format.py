"""ONNX: the network and the sampler for ONNX Runtime, and whatever else reads the format."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from vdiff.errors import MachineError
from vdiff.formats.adapter import ForeignModel, Format, Outputs
from vdiff.formats.contents import Contents
from vdiff.formats.foreign_file import ForeignFile
from vdiff.formats.plain_safetensors import HALF, HALF_TOLERANCE, SHOWN, is_half
from vdiff.system.distribution import with_extra

if TYPE_CHECKING:
    from torch import Tensor

NEEDED = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18
"""ONNX Runtime is quickest with its form of the group norm."""


class OnnxFormat(Format):
    """A folder with `network.onnx`, `sampler.onnx` and what they take; only written."""

    write_options: ClassVar[Mapping[str, str]] = HALF

    @classmethod
    def recognises(cls, found: Contents) -> bool:
        return (found.config("export.json") or {}).get("kind") == "onnx"

    def describe(self, found: Contents) -> ForeignFile:
        settings = found.config("export.json") or {}
        facts = {name: value for name, value in settings.items() if name in SHOWN}
        facts["num_bytes"] = sum(file.stat().st_size for file in found.path.glob("*.onnx"))
        return ForeignFile(found.path, "ONNX graphs that vdiff exported", (), facts)

    def write(self, model: ForeignModel, path: Path, asked: Mapping[str, str]) -> None:
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise MachineError(
                f"to write ONNX, vdiff needs {', '.join(missing)}", with_extra("onnx")
            )
        from vdiff.formats.onnx_writing import write

        write(model, path, is_half(asked))

    def tolerance(self, asked: Mapping[str, str]) -> float | None:
        return HALF_TOLERANCE if is_half(asked) else None

    def outputs(
        self, found: Contents, z: "Tensor", time: "Tensor", label: "Tensor | None"
    ) -> Outputs | None:
        from vdiff.formats.onnx_writing import outputs

        return outputs(found.path, z, time, label)
