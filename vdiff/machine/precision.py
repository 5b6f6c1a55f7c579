"""What a machine computes in: what the recipe asks for, and what the hardware multiplies."""

from typing import Literal

import torch

from vdiff.choices import Precision
from vdiff.errors import MachineError

Arithmetic = Literal["fp32", "bf16", "fp16"]

SMALLEST_BF16_PICTURE = 16
"""Pixels: below it, casting costs a CPU about what bf16 gains (docs/benchmarks.md)."""


def resolve_on(
    device: torch.device, precision: Precision, image_size: int | None = None
) -> tuple[Arithmetic, str]:
    """What to compute in on a device, and why.

    image_size: of the pictures, in pixels.   Errors: MachineError.
    """
    if device.type == "mps":
        return resolve_on_mps(precision)
    found, why = resolve(precision, device.type == "cpu", image_size)
    if device.type == "cpu":
        return found, why
    return found, f"{why}; what stays float32 is multiplied in TF32"


def resolve(
    precision: Precision, cpu: bool, image_size: int | None = None
) -> tuple[Arithmetic, str]:
    """What to compute in, and why.   Errors: MachineError for what the machine cannot do."""
    if cpu:
        unit = "CPU"
        has_bf16 = cpu_multiplies_bf16()
        has_fp16 = cpu_multiplies_fp16()
    else:
        unit = "GPU"
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        has_fp16 = True
    if precision == "auto":
        if not has_bf16:
            return "fp32", f"this {unit} does not multiply bf16"
        if cpu and image_size and image_size < SMALLEST_BF16_PICTURE:
            return "fp32", f"bf16 does not pay on a CPU for pictures of {image_size} pixels"
        return "bf16", f"this {unit} multiplies it"
    is_lacking = {"fp32": False, "bf16": not has_bf16, "fp16": not has_fp16}
    if is_lacking[precision]:
        other = "bf16" if has_bf16 else "fp32"
        fix = f"set `precision: {other}`, which it can do, or `precision: auto`"
        raise MachineError(f"this {unit} does not multiply {precision}", fix, "precision")
    return precision, "the recipe says so"


def resolve_on_mps(precision: Precision) -> tuple[Arithmetic, str]:
    """The same for the GPU of a Mac.   Errors: MachineError."""
    if precision == "auto":
        return "fp32", "what bf16 gains on MPS is not measured yet"
    if precision == "fp16":  # it needs a scaled loss, which nobody has seen work there
        raise MachineError(
            "vdiff does not compute in fp16 on MPS", "set `precision: auto`, or bf16", "precision"
        )
    if precision == "bf16" and not torch.backends.mps.is_macos_or_newer(14, 0):
        problem = "before macOS 14, MPS does not multiply bf16"
        raise MachineError(problem, "set `precision: fp32`, or `precision: auto`", "precision")
    return precision, "the recipe says so"


def cpu_multiplies_bf16() -> bool:
    """Whether the CPU has instructions for it (AVX-512 BF16 or AMX) and torch uses them;
    emulation is slow.
    """
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    has_instructions = any(getattr(torch.cpu, name, bool)() for name in asked)
    return has_instructions and bool(torch.backends.mkldnn.enabled)


def cpu_multiplies_fp16() -> bool:
    """Whether the CPU has instructions for it (AMX FP16) and torch uses them; emulation is slow."""
    return bool(getattr(torch.cpu, "_is_amx_fp16_supported", bool)()) and bool(
        torch.backends.mkldnn.enabled
    )
