"""What does the memory format of activations cost on a CPU? As vdiff lays them out against
contiguous, in turn.

    python benchmarks/layout.py [--rounds 6]

One thread, seconds of CPU time, so that it may run beside other work: medians of the rounds. First
the group norm by itself, forward and backward: contiguous, channels-last with torch's own gradient,
and channels-last with vdiff's. Then whole networks: an update's forward and backward (under
autocast) and the two calls of a drawing in two steps.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vdiff.machine import memory
from vdiff.networks.cpu import layout
from vdiff.networks.cpu.fast import fast_on_cpu
from vdiff.networks.cpu.norm import GroupNorm
from vdiff.networks.unet import UNet, UNetSection

CASES = [
    (32, 64, 16, UNetSection(width=64, multipliers=(1, 2, 2), blocks=2, attention_at=(16, 8))),
    (32, 32, 16, UNetSection(width=32, multipliers=(1, 2, 2), blocks=1, attention_at=(8,))),
    (32, 128, 8, UNetSection(width=128, multipliers=(1, 2, 2), blocks=1, attention_at=(16,))),
    (64, 64, 4, UNetSection(width=64, multipliers=(1, 2, 2, 2), blocks=2, attention_at=(16,))),
    (128, 32, 2, UNetSection(width=32, multipliers=(1, 1, 2, 2, 4), blocks=1, attention_at=(16,))),
]
NORMS = [(16, 128, 8), (16, 128, 16), (16, 64, 32), (2, 32, 128)]
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
Work = Callable[[], object]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=6)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    memory.set_malloc_policy(sparing=False)
    print(
        "| norm of [B, C, H, W] | contiguous, ms | channels-last, torch | channels-last, vdiff |\n"
        "|---|---|---|---|"
    )
    for shape in NORMS:
        for name, dtype in DTYPES.items():
            first, *others = medians(norms(*shape, dtype), rounds * 3).values()
            ratios = " | ".join(f"{other / first:.1f} x" for other in others)
            batch, channels, size = shape
            print(
                f"| {batch}, {channels}, {size}, {size}, {name} | {first * 1e3:.2f} | {ratios} |",
                flush=True,
            )
    print("\n| network | work | contiguous, ms | as laid out, ms | ratio |\n|---|---|---|---|---|")
    for size, width, batch, section in CASES:
        for name, dtype in DTYPES.items():
            network = fast_on_cpu(section.build(size, 3))
            for weight in network.parameters():
                torch.nn.init.normal_(weight, std=0.02)
            z, when = torch.randn(batch, 3, size, size), torch.full((batch,), 500.0)
            for what, work in (("update", learn), ("drawing", sample)):
                arms = {
                    least: partial(work, network, z, when, dtype, least) for least in (10**9, 1024)
                }
                before, after = (1e3 * seconds for seconds in medians(arms, rounds).values())
                row = f"| {size}x{size}, width {width}, batch {batch}, {name} | {what} "
                print(f"{row}| {before:.1f} | {after:.1f} | {after / before:.3f} |", flush=True)


def norms(batch: int, channels: int, size: int, dtype: torch.dtype) -> dict[str, Work]:
    """Forward and backward of a norm of each kind."""
    norm = GroupNorm(32, channels)
    h = torch.randn(batch, channels, size, size).to(dtype)
    last = h.contiguous(memory_format=torch.channels_last)

    def both(h: Tensor, of: Callable[[Tensor], Tensor]) -> None:
        h = h.detach().requires_grad_()
        torch.autograd.grad(of(h), (h, norm.weight, norm.bias), h.detach())

    torchs = partial(F.group_norm, num_groups=32, weight=norm.weight, bias=norm.bias)
    arms: dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]]
    arms = {"contiguous": (h, torchs), "torch": (last, torchs), "vdiff": (last, norm)}
    return {name: partial(both, *arm) for name, arm in arms.items()}


def learn(network: UNet, z: Tensor, when: Tensor, dtype: torch.dtype, least: int) -> None:
    """Forward and backward; levels of `least` pixels and more lie channels-last."""
    layout.LEAST_LARGE_PIXELS = least
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = network(z, when).float().square().mean()
    loss.backward()
    network.zero_grad()


@torch.no_grad()
def sample(network: UNet, z: Tensor, when: Tensor, dtype: torch.dtype, least: int) -> None:
    """Two calls without gradients, the weights cast before."""
    layout.LEAST_LARGE_PIXELS = least
    network.to(dtype)
    for _ in range(2):
        network(z, when)


def medians(arms: Mapping[Any, Work], rounds: int) -> dict[Any, float]:
    """Seconds of CPU time of each, run in turn after two rounds to warm up."""
    found: dict[Any, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 2):
        for name, work in arms.items():
            begun = time.process_time()
            work()
            if number >= 2:
                found[name].append(time.process_time() - begun)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


if __name__ == "__main__":
    main()
