"""Compiling the repeated parts of a network: whether the machine can, whether it pays, and how."""

import os
import shutil
import sys
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from vdiff.choices import Compile as Compile
from vdiff.errors import MachineError
from vdiff.networks.repeated import repeated


def resolve(wanted: Compile, device: torch.device) -> tuple[bool, str]:
    """Whether to compile, and why.   Errors: MachineError where it is asked for and the machine
    cannot.

    `auto` times nothing: the same training must always compute in the same way.
    """
    if wanted == "auto":
        if device.type == "cpu":
            return False, "a CPU gains nothing by it"
        return False, "what a GPU gains by it is not measured yet"
    lacks = lacking(device)
    if wanted == "on" and lacks:
        raise MachineError(
            f"{lacks}: this machine cannot compile",
            "set `compile: off`, or `compile: auto`",
            "compile",
        )
    return wanted == "on", "the recipe says so"


def lacking(device: torch.device) -> str:
    """What this machine lacks to compile; empty where it lacks nothing."""
    if device.type == "mps":
        return "what torch compiles for MPS is a prototype"
    if device.type == "cuda":
        if not find_spec("triton"):
            return "triton is not installed"
        return ""
    compiler = os.environ.get("CXX") or _usual_compiler()
    # CXX may hold options, too
    if not shutil.which(compiler.split()[0]):
        return f"there is no C++ compiler `{compiler}`"
    return ""


def _usual_compiler() -> str:
    """The one that torch calls where CXX names none."""
    if sys.platform == "win32":
        return "cl"
    return "g++"


def turn_on(network: nn.Module) -> None:
    """Compile every repeated part when it is first used.

    Names and weights stay; copies of the network are eager.
    """
    parts = repeated(network)
    # else torch gives up after compiling the same code eight times. Each part is compiled with and
    # without gradients, and each of these for a full and for a last, smaller micro-batch
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 4 * len(parts))
    for part in parts:
        part.compile(dynamic=False)
