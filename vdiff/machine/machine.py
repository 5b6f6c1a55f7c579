"""The machine a run has: devices, processes and precision, as Accelerate sees them."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from vdiff.choices import Precision as Precision
from vdiff.choices import TrackerKind
from vdiff.machine import accelerate_settings, compiling, graphed, memory, trackers
from vdiff.machine.device import described
from vdiff.machine.device import pick_device as pick_device
from vdiff.machine.precision import Arithmetic, resolve_on
from vdiff.machine.processes import Processes
from vdiff.machine.trackers import Trackers
from vdiff.networks import sharded
from vdiff.networks.fast import fast_on
from vdiff.randomness import exact

_DTYPES: dict[Arithmetic, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


class Machine:
    """One process of a run. rank 0 writes and draws; the others compute."""

    def __init__(
        self,
        precision: Precision = "auto",
        device: str | None = None,
        deterministic: bool = False,
        image_size: int | None = None,
        compile: compiling.Compile = "auto",
        shard: sharded.Shard = "auto",
        cuda_graphs: graphed.CudaGraphs = "off",
        say: Callable[[str], None] = lambda text: None,
        check: Callable[[], None] = lambda: None,
        processes: Processes | None = None,
    ) -> None:
        """Join the other processes, if a launcher started any and none are given in `processes`.

        compile: whether networks that learn are compiled.
        shard: whether networks lie in shares, one in each process.
        cuda_graphs: whether the calls of networks that draw are replayed; `say` is told if that
        does not work.
        say, check: also told for whom this process waits, and called meanwhile; `check` may raise.
        image_size: of the pictures, in pixels; where it is small, `auto` is float32 on a CPU.

        deterministic: the same bits every time, on GPUs too; torch refuses an operation that
        cannot.
        device: "cpu", "cuda", "mps", or None for the GPU where there is one.
        Errors: MachineError for what it cannot do.
        """
        picked = pick_device(device)
        self.precision, self.why_precision = resolve_on(picked, precision, image_size)
        self.compiles, self.why_compile = compiling.resolve(compile, picked)
        if deterministic:
            # cuBLAS reads it when CUDA is first used
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # only where it changes something: setting it imports torch's compiler, which takes a second
        if deterministic != torch.are_deterministic_algorithms_enabled():
            torch.use_deterministic_algorithms(deterministic)
        memory.set_malloc_policy(sparing=False)  # who draws asks for the same memory in every step
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        self.ignored_settings = accelerate_settings.ignored(self.precision)
        self.processes = processes or Processes(picked.type == "cpu", say, check)
        self._accelerator = self.processes.accelerator
        self.device = self._accelerator.device
        self.graphs = graphed.opened(cuda_graphs, self.device, say)
        self.rank = self.processes.rank
        self.world_size = self.processes.world_size
        self.shards, self.why_shard = sharded.resolve(shard, self.world_size)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that reads, writes and draws."""
        return self.processes.is_first

    @property
    def has_fused_step(self) -> bool:
        """Whether AdamW's fused step knows `grad_scale` and `found_inf`;
        that of MPS drops both without a word.
        """
        return bool(self.device.type != "mps")

    def described(self) -> str:
        """What computes, in words: `1 x NVIDIA H100`, `2 cores of AMD EPYC`."""
        return described(self.device, self.world_size)

    def prepare(
        self, network: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, Any]:
        """The network and its optimizer, made ready for all processes."""
        if self.shards:
            return network, optimizer
        with accelerate_settings.hidden():
            network, optimizer = self._accelerator.prepare(network, optimizer)
        return network, optimizer

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` to the weights' gradients."""
        torch.autograd.backward(loss)

    def place(self, network: nn.Module) -> nn.Module:
        """Move a network to the device, with the layers that are fast there.

        One that is to lie in shares stays where it is: `shard` moves it, a block at a time.
        """
        if self.shards:
            return fast_on(network, self.device, is_sharded=True)
        return placed(network, self.device)

    def shard(self, network: nn.Module) -> nn.Module:
        """Have a network lie in shares, if the run's networks do."""
        if not self.shards:
            return network
        return sharded.turn_on(network, self.device)

    def freeze(self, network: nn.Module) -> nn.Module:
        """Make a network that learns nothing more compute in the run's precision:
        its weights are cast once, here.
        """
        if not self.shards:
            return frozen(network, self.device, self.precision)
        placed_here = self.place(network).eval().requires_grad_(False)
        return self.shard(placed_here.to(_DTYPES[self.precision]))

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Within it, networks compute in the run's precision."""
        return torch.autocast(
            self.device.type, _DTYPES[self.precision], enabled=self.precision != "fp32"
        )

    def scaler(self) -> torch.amp.GradScaler:
        """Keeps small gradients from vanishing in fp16; does nothing in other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def unsynchronised(
        self, network: nn.Module, when: bool
    ) -> contextlib.AbstractContextManager[Any]:
        """Within it, gradients stay in their process:
        for all micro-batches of an update but the last.
        """
        if self.shards:
            # FSDP2 gave the network another class, which has this method
            network.set_requires_gradient_sync(not when)  # type: ignore[operator]
            return contextlib.nullcontext()
        if not when:
            return contextlib.nullcontext()
        waiting: contextlib.AbstractContextManager[Any] = self._accelerator.no_sync(network)
        return waiting

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, in every process."""
        if self.world_size == 1:
            return value
        total: Tensor = self._accelerator.reduce(value, "sum")
        return total

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process; every process must ask."""
        if self.world_size == 1:
            return flag
        return bool(self._count(flag) > 0)

    def any_late(self) -> Callable[[bool], bool]:
        """A question for all processes, put again and again:
        whether it was true in any of them the last time.

        So nobody waits for what the device still computes. A process alone hears itself at once.
        """
        asked: Callable[[], bool] = bool  # nobody was asked yet: False

        def put(flag: bool) -> bool:
            nonlocal asked
            if self.world_size == 1:
                return flag
            before = asked
            asked = _on_its_way(self._count(flag))
            return before()

        return put

    def _count(self, flag: bool) -> Tensor:
        # torch.tensor would wait for the device
        return self.sum(torch.full((), float(flag), device=self.device))

    def take(self, tensor: Tensor) -> Tensor:
        """A tensor of the host on the device; the host does not wait until a GPU of CUDA has it."""
        if self.device.type != "cuda":
            # nothing on a CPU, where it is already
            return tensor.to(self.device)
        # only pinned memory is copied while the host goes on
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def take_exact(self, tensor: Tensor) -> Tensor:
        """A tensor of the host where random numbers and times are computed for the device:
        see `exact`.
        """
        if exact(self.device) != self.device:
            return tensor
        return self.take(tensor)

    def least(self, number: int) -> int:
        """The smallest number of any process; every process must ask."""
        if self.world_size == 1:
            return number
        given = torch.tensor([number], device=self.device)
        return int(self._accelerator.gather(given).min())

    def share_out(self, work: Callable[[slice], Tensor], count: int) -> Tensor:
        """`work` on all of `count` items, in every process:
        each does its share, then all are brought together.

        work: the results for a slice of the items, [n, ...] each.
        Returns [count, ...] on the CPU.
        """
        if self.world_size == 1:
            return work(slice(0, count))
        # of every share, so that all are of equal shape; the last may overlap
        size = -(-count // self.world_size)
        start = max(min(self.rank * size, count - size), 0)
        found: Tensor = self._accelerator.gather(
            work(slice(start, start + size)).to(self.device)
        ).cpu()
        starts = [max(min(rank * size, count - size), 0) for rank in range(self.world_size)]
        shares = torch.split(found, min(size, count))
        result = torch.empty(count, *found.shape[1:], dtype=found.dtype)
        for first, share in zip(starts, shares, strict=True):
            result[first : first + len(share)] = share
        return result

    def wait(self) -> None:
        """Until every process is here, which may take hours; see `Processes`."""
        self.processes.wait()

    def release(self) -> None:
        """Forget the networks of a finished stage."""
        self._accelerator.free_memory()

    def available_bytes(self) -> int | None:
        """The share of the memory that this process may still take; None where nobody tells."""
        free = memory.available_bytes(self.device)
        if free is None:
            return None
        if self.device.type == "cpu":
            # all processes of this host take from it
            return free // self.processes.local_size
        return free

    def free_cache(self) -> None:
        """Give memory back that torch keeps for later."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.device.type == "mps":
            torch.mps.empty_cache()

    @contextlib.contextmanager
    def trackers(
        self,
        folder: Path,
        kinds: Sequence[TrackerKind] | None = None,
        name: str = "",
        first_step: int = 0,
        say: Callable[[str], None] = lambda text: None,
    ) -> Iterator[Trackers]:
        """Those of the first process, as `trackers.opened`; the others' tell nobody.

        Errors: MachineError.
        """
        # in all processes, so that none waits for one that has failed
        trackers.check(kinds)
        if not self.is_first:
            yield Trackers()
            return
        with trackers.opened(kinds, folder, name, first_step, say) as opened:
            yield opened

    def close(
        self,
        kind: type[BaseException] | None = None,
        err: BaseException | None = None,
        _: TracebackType | None = None,
    ) -> None:
        """Leave the other processes in good order; with an error or a stop,
        which may be of this one alone, at once.

        kind, err: what is under way, as `ExitStack.push` tells it.
        """
        self.processes.close(kind, err)


def placed(network: nn.Module, device: torch.device) -> nn.Module:
    """The network on a device, with the layers that are fast there,
    in the memory format that convolutions like.
    """
    fast_on(network.to(device), device)
    if device.type == "cuda":
        return network.to(memory_format=torch.channels_last)
    # on CPUs, the fast layers lay out what passes through the network, level by level
    return network


def frozen(network: nn.Module, device: torch.device, precision: Arithmetic) -> nn.Module:
    """A network that learns nothing more, on a device and cast to what it computes in:
    for one process alone.
    """
    return placed(network, device).eval().requires_grad_(False).to(_DTYPES[precision])


def _on_its_way(count: Tensor) -> Callable[[], bool]:
    """Whether a number on the device is above 0, to be asked later."""
    if count.device.type != "cuda":
        return lambda: bool(count > 0)
    there = count.to("cpu", non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()

    def above_zero() -> bool:
        arrived.synchronize()
        return bool(there > 0)

    return above_zero
