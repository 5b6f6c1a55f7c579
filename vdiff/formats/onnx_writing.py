"""The graphs of a model in ONNX, and what ONNX Runtime computes with them."""

import json
import logging
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdiff.errors import ModelFileError
from vdiff.formats.adapter import ForeignModel, Outputs
from vdiff.formats.graphs import (
    Graph,
    check_pictures,
    graphs_of,
    halved,
    hindrance,
    settings_of,
    write_settings,
)
from vdiff.formats.onnx_format import OPSET


def write(model: ForeignModel, folder: Path, half: bool = False) -> None:
    """Write the graphs into the new folder.   half: in half precision.

    Errors: ModelFileError, OSError.
    """
    if half:
        model = halved(model)
    graphs = graphs_of(model)
    folder.mkdir()
    for graph in graphs:
        path = folder / f"{graph.name}.onnx"
        _export(graph, path, settings_of(model))
        if graph.name == "sampler":
            check_pictures(model, graph, partial(_run, path), runtime())
    write_settings(model, folder, "onnx")


def outputs(folder: Path, z: Tensor, time: Tensor, label: Tensor | None) -> Outputs:
    """What ONNX Runtime computes with the network in the folder."""
    inputs = {"z": z, "time": time.float()}
    if label is not None:
        inputs["label"] = label
    return Outputs(_run(folder / "network.onnx", inputs), runtime())


def runtime() -> str:
    """Its name and version."""
    return f"ONNX Runtime {version('onnxruntime')}"


def _export(graph: Graph, path: Path, settings: dict[str, object]) -> None:
    import onnx

    batch = torch.export.Dim("batch")
    names = list(graph.inputs)
    with warnings.catch_warnings():
        # of torch's exporter about itself; there is nothing that a user could do
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            torch.onnx.export(
                graph.module,
                tuple(graph.inputs.values()),
                path,
                input_names=names,
                output_names=[graph.output],
                dynamic_shapes=tuple({0: batch} for _ in names),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        finally:
            logging.disable(before)
    written = onnx.load(path)
    # the exporter notes for every node where in the source it came from, with paths of this machine
    for part in (*written.graph.node, *written.graph.value_info, *written.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    facts = {"vdiff": json.dumps(settings)}
    onnx.helper.set_model_props(written, facts)
    onnx.checker.check_model(written)
    onnx.save(written, path)


Run = Callable[[dict[str, Tensor]], Tensor]
"""Of tensors by the names that a graph gives them."""


def opened(path: Path, num_threads: int = 0) -> Run:
    """What computes a graph on the CPU, again and again.

    num_threads: 0 for as many as ONNX Runtime takes.
    Errors: ModelFileError for a file that it cannot open.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    try:
        session: Any = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
    except Exception as err:  # its errors have no common class
        problem = f"{runtime()} cannot open `{path}`: {str(err).strip().partition(chr(10))[0]}"
        raise ModelFileError(problem, "export it anew", path) from err

    def run(inputs: dict[str, Tensor]) -> Tensor:
        arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
        return torch.from_numpy(session.run(None, arrays)[0])

    return run


def write_sampler(model: ForeignModel, path: Path) -> None:
    """The whole way from noise to pictures as one file, compared with the module that it is of.

    Errors: ModelFileError for a model whose sampler is no graph, or that came out different.
    """
    hinders = hindrance(model)
    if hinders is not None:
        raise ModelFileError(f"`{model.facts['name']}`: {hinders}", "draw with torch")
    graph = next(graph for graph in graphs_of(model) if graph.name == "sampler")
    _export(graph, path, settings_of(model))
    check_pictures(model, graph, opened(path), runtime())


def _run(path: Path, inputs: dict[str, Tensor]) -> Tensor:
    return opened(path)(inputs)
