"""`--backend`: what computes the pictures of `vdiff sample`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vdiff.errors import UsageError

if TYPE_CHECKING:
    from vdiff.choices import Precision
    from vdiff.drawing.onnx_graph import OnnxSampler
    from vdiff.model_folder.checkpoint import Checkpoint, ModelCard

BackendOption = Annotated[
    str,
    typer.Option(
        "--backend",
        metavar="torch|onnx",
        help="What computes; onnx: ONNX Runtime on the CPU, pictures equal up to 0.001",
    ),
]


def check(backend: str, device: str | None, gpus: int | None, shows_way: bool) -> None:
    """UsageError for a backend that is not there, or that another option asks too much of."""
    from vdiff.cli import launch

    if backend == "torch":
        return
    if backend != "onnx":
        raise UsageError(f"there is no backend `{backend}`", "choose torch or onnx", "--backend")
    if device not in (None, "cpu"):
        fix = "leave out `--device`, or `--backend onnx`"
        raise UsageError("ONNX Runtime draws on the CPU here", fix, "--device")
    if gpus is not None or launch.is_worker():
        fix = "start one process, or leave out `--backend onnx`"
        raise UsageError("ONNX Runtime draws in one process", fix, "--backend")
    if shows_way:
        fix = "leave out `--backend onnx`"
        raise UsageError("a graph shows no steps between noise and picture", fix, "--backend")


def check_model(backend: str, card: "ModelCard", wanted: Mapping[str, Any]) -> None:
    """UsageError for what the backend cannot draw, MachineError for packages that it lacks.

    wanted: sampler, steps and guidance of the `Drawing`.
    """
    if backend == "onnx":
        from vdiff.drawing import onnx_graph

        onnx_graph.check(card, wanted["sampler"], wanted["num_steps"], wanted["guidance"])


def arithmetic(
    backend: str, precision: "Precision", device: str | None
) -> "tuple[Precision, str | None]":
    """The precision and the device that a backend draws with."""
    if backend == "onnx":
        return "fp32", "cpu"
    return precision, device


def graph_of(backend: str, loaded: "Checkpoint", wanted: Mapping[str, Any]) -> "OnnxSampler | None":
    """The graph that draws, from the cache or made now; None where torch draws.

    wanted: sampler and steps of the `Drawing`.   Errors: as of `OnnxSampler`.
    """
    if backend != "onnx":
        return None
    from vdiff.cli import console
    from vdiff.drawing.onnx_graph import OnnxSampler

    console.say("looking for the graph of this model, or exporting it, which takes a while")
    return OnnxSampler(loaded, wanted["sampler"], wanted["num_steps"])
