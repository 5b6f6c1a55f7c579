"""CUDA graphs: what a frozen network does on a GPU is recorded once per shape and replayed,
without Python's delay.
"""

import dataclasses
import threading
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vdiff.choices import CudaGraphs as CudaGraphs
from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.diffusion.denoiser import Denoiser
from vdiff.errors import MachineError
from vdiff.networks.sharded import is_sharded

Given = tuple[Tensor | None, ...]
"""The arguments of a network: z, time, dropout keys and the parts of the condition."""

Replay = Callable[[Given], Tensor]
"""What was recorded, on other arguments of the same shapes; the result is the caller's to keep."""

MOST_SHAPES = 2
"""Recorded per network, as each holds memory: that of full batches and that of the last one."""

_WARM_UPS = 2


class Recorder(Protocol):
    """Whoever can record what a call does on the device."""

    def record(self, call: Callable[..., Tensor], given: Given) -> Replay:
        """Call once or more, and record it.

        Only the shapes of `given` count.   Errors: RuntimeError.
        """


def opened(wanted: CudaGraphs, device: torch.device, say: Callable[[str], None]) -> "Graphs | None":
    """The graphs of a process, None for none.   Errors: MachineError where they are asked for and
    there is no GPU.

    `auto` is off: no GPU has shown yet that they work and pay.
    say: told once if they do not work.
    """
    if wanted == "on" and device.type != "cuda":
        problem = "there is no CUDA device to replay network calls on"
        raise MachineError(
            problem, "set `sample.cuda_graphs: auto`, or leave it out", "sample.cuda_graphs"
        )
    if wanted != "on":
        return None
    return Graphs(CudaRecorder(device), say)


class Graphs:
    """The recorded calls of frozen networks; a recording goes with its network.

    Before a recording is used it must give, bit for bit, what the network gives for arguments that
    it was not made with; if it does not, or cannot be made, nothing is replayed any more in this
    process, and that is said.
    say: told that.
    """

    def __init__(self, recorder: Recorder, say: Callable[[str], None]) -> None:
        self._recorder = recorder
        self._say = say
        self._lock = threading.RLock()
        self._calls: WeakKeyDictionary[nn.Module, _Calls] = WeakKeyDictionary()
        self.is_off = False

    def of(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser, whose network's calls are replayed if it learns nothing."""
        network = denoiser.network
        if (
            self.is_off
            or network.training
            or any(weight.requires_grad for weight in network.parameters())
        ):
            return denoiser
        # gathering the shares is no work of the device alone: a recording cannot hold it
        if any(map(is_sharded, network.parameters())):
            return denoiser
        with self._lock:
            places = _places(network)
            if network not in self._calls or self._calls[network].places != places:
                self._calls[network] = _Calls(places)
        return dataclasses.replace(denoiser, network=_Graphed(network, self))

    def call(self, network: nn.Module, given: Given) -> Tensor:
        """network(*given), replayed if there is a recording."""
        if self.is_off or network.training or torch.is_grad_enabled():
            return _called(network, *given)
        with self._lock:  # a recording works for one caller at a time
            calls = self._calls.get(network, _Calls(()))
            key = _key(given)
            replay = calls.replays.get(key)
            if replay is not None:
                return replay(given)
            if len(calls.replays) < MOST_SHAPES:
                return self._recorded(network, calls, given, key)
        return self._eager(network, given)

    def _recorded(self, network: nn.Module, calls: "_Calls", given: Given, key: Hashable) -> Tensor:
        """The network's own result; from now on it is replayed, if that gives the same."""
        expected = self._eager(network, given)
        if not self.is_off:
            try:
                calls.replays[key] = self._checked(network, given, expected)
            except RuntimeError as err:
                self._give_up(str(err).strip().partition("\n")[0] or type(err).__name__)
        return expected

    def _checked(self, network: nn.Module, given: Given, expected: Tensor) -> Replay:
        """A recording that gives what is expected.

        Errors: RuntimeError that says why there is none.
        """
        other = tuple(None if each is None else torch.zeros_like(each) for each in given)
        with _HostTraffic(expected.device.type) as traffic:
            _called(network, *other)
        if traffic.found:  # recording would fail half-way, and leave torch's memory in disorder
            raise RuntimeError(f"the network's `{traffic.found}` needs the CPU")
        replay = self._recorder.record(partial(_called, network), other)
        if not torch.allclose(replay(given), expected, rtol=0, atol=0, equal_nan=True):
            raise RuntimeError("what is replayed is not what the network computes")
        return replay

    def _eager(self, network: nn.Module, given: Given) -> Tensor:
        """The network's own result; recordings make room for it."""
        try:
            return _called(network, *given)
        except torch.OutOfMemoryError:
            with self._lock:
                if not any(calls.replays for calls in self._calls.values()):
                    raise
        # out of the handler, which holds on to the tensors
        self._give_up("the memory does not suffice")
        return _called(network, *given)

    def _give_up(self, reason: str) -> None:
        with self._lock:
            for calls in self._calls.values():  # a caller may still hold on to them
                calls.replays.clear()
            if not self.is_off:
                self.is_off = True
                self._say(f"no CUDA graphs, network calls are launched one by one: {reason}")


@dataclasses.dataclass
class _Calls:
    """What is known of a network whose weights lie at these addresses."""

    places: tuple[int, ...]
    replays: dict[Hashable, Replay] = dataclasses.field(default_factory=dict)


class _Graphed(nn.Module):
    """A network that is called through `Graphs`."""

    def __init__(self, network: nn.Module, graphs: Graphs) -> None:
        super().__init__()
        self.network = network
        self._graphs = graphs
        self.eval()

    def forward(
        self,
        z: Tensor,
        time: Tensor,
        condition: Condition = NOTHING,
        dropout_keys: Tensor | None = None,
    ) -> Tensor:
        """As the network's."""
        return self._graphs.call(self.network, (z, time, dropout_keys, *condition))


class _HostTraffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what a recording cannot hold: results that Python waits for,
    and tensors elsewhere than on the device.

    found: the first such operation; empty for none.
    """

    def __init__(self, device_type: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device_type = device_type
        self.found = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        waits = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
        used = [args, kwargs]
        # any other result that lies elsewhere does no harm until something uses it: some kernels of
        # attention leave the state of a generator
        if func is torch.ops.aten._to_copy.default:
            used.append(out)
        tensors = (leaf for leaf in tree_leaves(used) if isinstance(leaf, Tensor))
        if waits or any(tensor.device.type != self._device_type for tensor in tensors):
            self.found = self.found or str(func)
        return out


class CudaRecorder:
    """Records with `torch.cuda.graph`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # one of each for all recordings: they share the scratch memory of matrix products, which
        # belongs to the stream
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def record(self, call: Callable[..., Tensor], given: Given) -> Replay:
        """See `Recorder`."""
        here = torch.cuda.current_stream(self._device)
        graph = torch.cuda.CUDAGraph()
        held = tuple(None if each is None else each.clone() for each in given)
        kind = self._device.type
        dtype = torch.get_autocast_dtype(kind)
        is_mixed = torch.is_autocast_enabled(kind)
        self._stream.wait_stream(here)
        # around it all, because torch stays in the recording's stream when a recording fails
        with (
            torch.cuda.stream(self._stream),
            torch.autocast(kind, dtype, is_mixed, cache_enabled=False),
        ):
            for _ in range(_WARM_UPS):  # libraries choose their kernels and take their memory
                call(*held)
            # other threads may go on copying meanwhile
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                out = call(*held)
        here.wait_stream(self._stream)

        def replay(fresh: Given) -> Tensor:
            now = torch.cuda.current_stream(self._device)
            now.wait_event(self._done)
            for place, each in zip(held, fresh, strict=True):
                if place is not None and each is not None:
                    place.copy_(each)
            graph.replay()
            found = out.clone()
            self._done.record(now)
            return found

        return replay


def _called(network: nn.Module, *given: Tensor | None) -> Tensor:
    z, time, dropout_keys, *condition = given
    out: Tensor = network(z, time, Condition(*condition), dropout_keys)
    return out


def _places(network: nn.Module) -> tuple[int, ...]:
    """Where the weights lie: a recording reads there, whatever becomes of the network."""
    return tuple(tensor.data_ptr() for tensor in (*network.parameters(), *network.buffers()))


def _key(given: Given) -> Hashable:
    """What a recording holds for: shapes, dtypes, and the precision that is
    asked for from outside.
    """
    kind = next(each.device.type for each in given if each is not None)
    mixed: torch.dtype | None = None
    if torch.is_autocast_enabled(kind):
        mixed = torch.get_autocast_dtype(kind)
    return mixed, tuple(
        None if each is None else (each.shape, each.dtype, each.device) for each in given
    )
