"""torch.export: the network and the sampler as `.pt2`, for torch without vdiff."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from vdiff.formats.adapter import ForeignModel, Format, Outputs
from vdiff.formats.contents import Contents
from vdiff.formats.foreign_file import ForeignFile
from vdiff.formats.plain_safetensors import HALF, HALF_TOLERANCE, SHOWN, is_half

if TYPE_CHECKING:
    from torch import Tensor


class TorchExportFormat(Format):
    """A folder with `network.pt2`, `sampler.pt2` and what they take; only written."""

    write_options: ClassVar[Mapping[str, str]] = HALF

    @classmethod
    def recognises(cls, found: Contents) -> bool:
        return (found.config("export.json") or {}).get("kind") == "torch_export"

    def describe(self, found: Contents) -> ForeignFile:
        settings = found.config("export.json") or {}
        facts = {name: value for name, value in settings.items() if name in SHOWN}
        facts["num_bytes"] = sum(file.stat().st_size for file in found.path.glob("*.pt2"))
        return ForeignFile(found.path, "programs of torch that vdiff exported", (), facts)

    def write(self, model: ForeignModel, path: Path, asked: Mapping[str, str]) -> None:
        from vdiff.formats.torch_export_writing import write

        write(model, path, is_half(asked))

    def tolerance(self, asked: Mapping[str, str]) -> float | None:
        return HALF_TOLERANCE if is_half(asked) else None

    def outputs(
        self, found: Contents, z: "Tensor", time: "Tensor", label: "Tensor | None"
    ) -> Outputs | None:
        from vdiff.formats.torch_export_writing import outputs

        return outputs(found, z, time, label)
