"""Files that other programs wrote: what they hold, found out without running anything from them."""

from typing import TYPE_CHECKING

from vdiff.config import Table

if TYPE_CHECKING:
    from vdiff.formats.adapter import Format

FORMATS: "Table[Format]" = Table(
    "format",
    {
        "diffusion_distiller": "vdiff.formats.distiller:DistillerFormat",
        "rosinality": "vdiff.formats.rosinality:RosinalityFormat",
        "diffusers": "vdiff.formats.diffusers:DiffusersFormat",
        "guided_diffusion": "vdiff.formats.guided:GuidedFormat",
        "lucidrains": "vdiff.formats.lucidrains:LucidrainsFormat",
        "edm": "vdiff.formats.edm:EdmFormat",
        "onnx": "vdiff.formats.onnx_format:OnnxFormat",
        "torch_export": "vdiff.formats.torch_export_format:TorchExportFormat",
        "safetensors": "vdiff.formats.plain_safetensors:SafetensorsFormat",
    },
    group="vdiff.formats",
    contract="vdiff.formats.adapter:Format",
)
"""Whose model a file may be, in the order in which they are asked; see `formats.foreign`."""
