"""The machine a run has: devices, processes and precision, as Accelerate sees them."""

import contextlib
import os
import platform
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vdiff.errors import MachineError, UsageError

Precision = Literal["auto", "fp32", "bf16"]


class Machine:
    """One process of a run. rank 0 writes and draws; the others compute."""

    def __init__(self, precision: Precision = "auto", device: str | None = None, deterministic: bool = False) -> None:
        """Join the other processes, if a launcher started any.

        deterministic: the same bits every time, on GPUs too; torch refuses an operation that cannot.
        device: "cpu", "cuda", or None for the GPU where there is one.   Errors: MachineError for what it cannot do.
        """
        cpu = pick_device(device).type == "cpu"
        self.precision = _resolve(precision, cpu)
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA is first used
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        self._accelerator = Accelerator(
            cpu=cpu, mixed_precision="bf16" if self.precision == "bf16" else "no", step_scheduler_with_optimizer=False
        )
        self.device = self._accelerator.device
        self.rank = self._accelerator.process_index
        self.world_size = self._accelerator.num_processes

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and draws."""
        return bool(self.rank == 0)

    def described(self) -> str:
        """What computes, in words: `1 x NVIDIA H100`, `2 cores of AMD EPYC`."""
        if self.device.type == "cuda":
            return f"{self.world_size} x {torch.cuda.get_device_name(self.device)}"
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return f"{cores} core{'s' * (cores != 1)} of {_processor()}"

    def prepare(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """The network and its optimizer, made ready for all processes."""
        network, optimizer = self._accelerator.prepare(network, optimizer)
        return network, optimizer

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` to the weights' gradients."""
        self._accelerator.backward(loss)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Within it, networks compute in the run's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def unsynchronised(self, network: nn.Module, when: bool) -> contextlib.AbstractContextManager[Any]:
        """Within it, gradients stay in their process: for all micro-batches of an update but the last."""
        return self._accelerator.no_sync(network) if when else contextlib.nullcontext()

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, in every process."""
        total: Tensor = self._accelerator.reduce(value, "sum") if self.world_size > 1 else value
        return total

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process; every process must ask."""
        return flag if self.world_size == 1 else bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def share_out(self, work: Callable[[slice], Tensor], count: int) -> Tensor:
        """`work` on all of `count` items, in every process: each does its share, then all are brought together.

        work: the results for a slice of the items, [n, ...] each.   Returns [count, ...] on the CPU.
        """
        if self.world_size == 1:
            return work(slice(0, count))
        size = -(-count // self.world_size)  # of every share, so that all are of equal shape; the last may overlap
        start = max(min(self.rank * size, count - size), 0)
        found: Tensor = self._accelerator.gather(work(slice(start, start + size)).to(self.device)).cpu()
        starts = [max(min(rank * size, count - size), 0) for rank in range(self.world_size)]
        shares = torch.split(found, min(size, count))
        result = torch.empty(count, *found.shape[1:], dtype=found.dtype)
        for first, share in zip(starts, shares, strict=True):
            result[first : first + len(share)] = share
        return result

    def wait(self) -> None:
        """Until every process is here."""
        self._accelerator.wait_for_everyone()

    def release(self) -> None:
        """Forget the networks of a finished stage."""
        self._accelerator.free_memory()

    @contextlib.contextmanager
    def trackers(self, folder: Path) -> Iterator[Any]:
        """`log(values, step)`: to TensorBoard in `folder` where that is installed, else nowhere."""
        with contextlib.ExitStack() as stack:
            yield _tensorboard(folder, stack) if self.is_first else lambda values, step: None

    def close(self) -> None:
        """Leave the other processes in good order."""
        self._accelerator.end_training()


def pick_device(name: str | None) -> torch.device:
    """The device with this name, or the GPU where there is one.   Errors: UsageError, MachineError."""
    if name not in (None, "cpu", "cuda"):
        raise UsageError(f"there is no device `{name}`", "choose cpu or cuda", "--device")
    if name == "cuda" and not torch.cuda.is_available():
        raise MachineError("there is no CUDA device", "leave out `--device cuda`, or mend the GPU's driver", "--device")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def _processor() -> str:
    """The name that the processor gives itself."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return " ".join(value.split())
    return platform.processor() or platform.machine()


def _resolve(precision: Precision, cpu: bool) -> Literal["fp32", "bf16"]:
    has_bf16 = not cpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "auto":
        return "bf16" if has_bf16 else "fp32"
    if precision == "bf16" and not cpu and not has_bf16:
        raise MachineError("this GPU does not multiply bf16", "set `precision: fp32`")
    return precision


def _tensorboard(folder: Path, stack: contextlib.ExitStack) -> Any:
    from accelerate.tracking import TensorBoardTracker
    from accelerate.utils import is_tensorboard_available

    if not is_tensorboard_available():
        return lambda values, step: None
    stack.enter_context(_disk_errors_told_once())
    tracker = TensorBoardTracker(folder.name, folder.parent)
    tracker.start()
    stack.callback(tracker.finish)
    return lambda values, step: tracker.log(values, step=step)


@contextlib.contextmanager
def _disk_errors_told_once() -> Iterator[None]:
    """TensorBoard's writing thread raises an OSError again in the main thread: its own traceback is one too many."""
    before = threading.excepthook

    def tell(caught: threading.ExceptHookArgs) -> None:
        if not isinstance(caught.exc_value, OSError):
            before(caught)

    threading.excepthook = tell
    try:
        yield
    finally:
        threading.excepthook = before
