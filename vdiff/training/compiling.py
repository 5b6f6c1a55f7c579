"""Compiling the repeated parts of a network: whether the machine can, and whether it pays within a training."""

import contextlib
import copy
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from vdiff.networks.repeated import Repeated, repeated

Compile = Literal["auto", "on", "off"]
Cast = Callable[[], contextlib.AbstractContextManager[Any]]

LEAST_SECONDS, MOST_SAVED = 5.0, 0.3
"""Hopes before anything is tried: seconds to compile one kind of part, and the share of its time that is saved."""


class Verdict(NamedTuple):
    """Whether to compile, and why."""

    is_on: bool
    why: str


class _Kind(NamedTuple):
    """Parts that compile to the same code. given: the arguments of one of them.

    number: of such parts.   seconds: of one, there and back.
    """

    part: Repeated
    given: tuple[Any, ...]
    number: int
    seconds: float


def lacking(device: torch.device) -> str:
    """What this machine lacks to compile; empty where it lacks nothing."""
    if device.type == "cuda":
        return "" if find_spec("triton") else "triton is not installed"
    compiler = os.environ.get("CXX") or ("cl" if sys.platform == "win32" else "g++")
    return "" if shutil.which(compiler.split()[0]) else f"there is no C++ compiler `{compiler}`"


def turn_on(network: nn.Module) -> None:
    """Compile every repeated part when it is first used. Names and weights stay; copies of the network are eager."""
    parts = repeated(network)
    _allow_kinds(len(parts))
    for part in parts:
        part.compile(dynamic=False)


def verdict(network: nn.Module, forward: Callable[[], Tensor], times: float, cast: Cast) -> Verdict:
    """Whether compiling takes less time than it saves; one part is compiled to see, where there is hope.

    forward: the loss of some pictures.   times: how often as many pictures will still be learned from.
    cast: the precision of the run.
    """
    kinds = _kinds(network, forward, cast)
    if not kinds:
        return Verdict(False, "the network does not say which of its parts repeat")
    all_seconds = sum(kind.seconds * kind.number for kind in kinds) * times
    if all_seconds * MOST_SAVED < LEAST_SECONDS * len(kinds):
        return Verdict(
            False, f"{len(kinds)} kinds of blocks, which take {all_seconds:.0f} s in all, are too little work"
        )
    dearest = max(kinds, key=lambda kind: kind.seconds * kind.number)
    part = copy.deepcopy(dearest.part)
    _allow_kinds(len(kinds))
    part.compile(dynamic=False)
    begun = time.monotonic()
    try:
        _there_and_back(part, dearest.given, cast)
    except RuntimeError as err:  # a compiler that is there but does not work, or a part that it cannot do
        return Verdict(False, f"it was tried and failed: {str(err).strip().partition(chr(10))[0]}")
    compiling = (time.monotonic() - begun) * len(kinds)
    saved = all_seconds * (1 - _seconds(part, dearest.given, cast) / dearest.seconds)
    told = f"compiling takes about {compiling:.0f} s and saves about {max(saved, 0):.0f} s"
    return Verdict(saved > compiling, told)


def _allow_kinds(count: int) -> None:
    """Else torch gives up after eight; forward and backward, and a last micro-batch that is smaller, count anew."""
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 4 * count)


def _kinds(network: nn.Module, forward: Callable[[], Tensor], cast: Cast) -> list[_Kind]:
    """The kinds of parts that a forward pass meets."""
    met: dict[object, list[tuple[Repeated, tuple[Any, ...]]]] = {}

    def meet(part: nn.Module, given: tuple[Any, ...]) -> None:
        assert isinstance(part, Repeated)
        weights = tuple((name, weight.shape) for name, weight in part.named_parameters())
        key = (type(part), weights, tuple(_shape(each) for each in given))
        met.setdefault(key, []).append((part, tuple(_detached(each) for each in given)))

    hooks = [part.register_forward_pre_hook(meet) for part in repeated(network)]
    try:
        with torch.no_grad():
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    return [_Kind(*parts[0], len(parts), _seconds(*parts[0], cast)) for parts in met.values()]


def _shape(given: Any) -> object:
    return (given.shape, given.dtype) if isinstance(given, Tensor) else given


def _detached(given: Any) -> Any:
    needs = isinstance(given, Tensor) and given.is_floating_point()
    return given.detach().requires_grad_() if needs else given


def _seconds(part: Repeated, given: Sequence[Any], cast: Cast) -> float:
    """Of the faster of two times there and back, after one to warm up."""
    found = []
    for _ in range(3):
        begun = time.monotonic()
        _there_and_back(part, given, cast)
        found.append(time.monotonic() - begun)
    return min(found[1:])


def _there_and_back(part: Repeated, given: Sequence[Any], cast: Cast) -> None:
    weights = [weight for weight in part.parameters() if weight.requires_grad]
    with cast():
        loss = part(*given).float().sum()
    torch.autograd.grad(loss, weights, allow_unused=True)
    if loss.device.type == "cuda":
        torch.cuda.synchronize(loss.device)
