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
        does_not = (
            "a CPU gains nothing by it"
            if device.type == "cpu"
            else "what a GPU gains by it is not measured yet"
        )
        return False, does_not
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
        return "" if find_spec("triton") else "triton is not installed"
    compiler = os.environ.get("CXX") or ("cl" if sys.platform == "win32" else "g++")
    return "" if shutil.which(compiler.split()[0]) else f"there is no C++ compiler `{compiler}`"


def turn_on(network: nn.Module) -> None:
    """Compile every repeated part when it is first used.

    Names and weights stay; copies of the network are eager.
    """
    parts = repeated(network)
    # else torch gives up after eight kinds; there and back count, and a last part
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 4 * len(parts))
    for part in parts:
        part.compile(dynamic=False)
