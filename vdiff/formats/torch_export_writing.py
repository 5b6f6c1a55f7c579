"""The graphs of a model as programs of torch.export, and what they compute."""

import json
import warnings
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vdiff.formats.adapter import ForeignModel, Outputs
from vdiff.formats.contents import Contents
from vdiff.formats.graphs import (
    Graph,
    check_pictures,
    graphs_of,
    halved,
    settings_of,
    write_settings,
)

_BY = f"torch.export {torch.__version__}"
_SETTINGS = "vdiff.json"
"""Inside a `.pt2` file."""


def write(model: ForeignModel, folder: Path, half: bool = False) -> None:
    """Write the programs into the new folder.   half: in half precision.

    Errors: ModelFileError, OSError.
    """
    if half:
        model = halved(model)
    graphs = graphs_of(model)
    folder.mkdir()
    for graph in graphs:
        path = folder / f"{graph.name}.pt2"
        _export(graph, path, settings_of(model))
        if graph.name == "sampler":
            check_pictures(model, graph, partial(_run, path), _BY)
    write_settings(model, folder, "torch_export")


def outputs(found: Contents, z: Tensor, time: Tensor, label: Tensor | None) -> Outputs:
    """What torch computes with the network in a folder that was just written.

    Loading a `.pt2` file builds a program, so nothing calls this with a stranger's.
    """
    inputs = {"z": z, "time": time.float()}
    if label is not None:
        inputs["label"] = label
    return Outputs(_run(found.path / "network.pt2", inputs), _BY)


def _export(graph: Graph, path: Path, settings: dict[str, object]) -> None:
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        # of torch's exporter about itself; there is nothing that a user could do
        warnings.simplefilter("ignore")
        program = torch.export.export(
            graph.module,
            tuple(graph.inputs.values()),
            dynamic_shapes=tuple({0: batch} for _ in graph.inputs),
        )
        # where in the source a node came from, with paths of this machine
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)
        torch.export.save(program, path, extra_files={_SETTINGS: json.dumps(settings)})


def _run(path: Path, inputs: dict[str, Tensor]) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(path)
    with torch.no_grad():
        output: Tensor = program.module()(*inputs.values())
    return output
