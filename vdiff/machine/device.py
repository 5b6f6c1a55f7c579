"""Which device computes, and what it is called."""

import contextlib
import platform
from pathlib import Path

import torch

from vdiff.errors import MachineError, UsageError
from vdiff.machine import accelerate_settings, world
from vdiff.system.cores import num_cores
from vdiff.system.plural import count


def pick_device(name: str | None) -> torch.device:
    """The device with this name, or the GPU where there is one and ACCELERATE_USE_CPU
    does not say otherwise.

    That of a Mac is for one process alone.   Errors: UsageError, MachineError.
    """
    if name is None:
        return _usual_device()
    if name not in ("cpu", "cuda", "mps"):
        raise UsageError(f"there is no device `{name}`", "choose cpu, cuda or mps", "--device")
    if name == "mps" and not torch.backends.mps.is_available():
        raise MachineError(
            "there is no MPS device", "leave out `--device mps`: only Macs have one", "--device"
        )
    if name == "mps" and not _is_alone():
        raise MachineError(
            "several processes cannot compute on MPS",
            "start one, or use `--device cpu`",
            "--device",
        )
    if name == "cuda" and not torch.cuda.is_available():
        raise MachineError(
            "there is no CUDA device",
            "leave out `--device cuda`, or mend the GPU's driver",
            "--device",
        )
    return torch.device(name)


def _usual_device() -> torch.device:
    if accelerate_settings.wants_cpu():
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available() and _is_alone():
        return torch.device("mps")
    return torch.device("cpu")


def _is_alone() -> bool:
    """Whether no launcher started other processes of this run."""
    return world.read_or_alone().size == 1


def described(device: torch.device, num_devices: int) -> str:
    """What computes, in words: `1 x NVIDIA H100`, `2 cores of AMD EPYC`.

    num_devices: GPUs of the run, one for each process.
    """
    if device.type == "cuda":
        return f"{num_devices} x {torch.cuda.get_device_name(device)}"
    if device.type == "mps":
        return f"the GPU of {_processor()} (MPS)"
    return f"{count(num_cores(), 'core')} of {_processor()}"


def _processor() -> str:
    """The name that the processor gives itself."""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        for line in text.splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return " ".join(value.split())
    return platform.processor() or platform.machine()
