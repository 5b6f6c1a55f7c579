"""What does doubling and convolving at once gain on a CPU, against one after the other? In turn.

    python -m benchmarks.doubling [--rounds 6]

One thread, seconds of CPU time, so that it may run beside other work: medians of the rounds. First
by itself, then whole networks; drawing is without gradients and with weights in the dtype, learning
is forward and backward.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.layout import CASES, DTYPES, learn, medians, sample
from vdiff.machine import memory
from vdiff.networks.cpu import doubling, layout
from vdiff.networks.cpu.fast import fast_on_cpu
from vdiff.networks.cpu.prepacked import Conv2d

SHAPES = [
    (1, 256, 16),
    (4, 256, 16),
    (16, 128, 16),
    (4, 32, 64),
    (2, 64, 64),
    (1, 128, 128),
    (1, 512, 16),
]
AFTER, ALWAYS, AS_VDIFF_CHOOSES = 10**9, 0, doubling.PIXELS_PER_CHANNEL


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=6)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    memory.set_malloc_policy(sparing=False)
    show(
        "[B, C, H, W]",
        [(f"{b}, {c}, {s}, {s}", alone(b, c, s)) for b, c, s in SHAPES],
        ALWAYS,
        rounds * 3,
    )
    networks = [
        (f"{size}x{size}, width {width}, batch {batch}", whole(size, batch, each))
        for size, width, batch, each in CASES
    ]
    show("network", networks, AS_VDIFF_CHOOSES, rounds)


def show(
    what: str,
    cases: list[tuple[str, Callable[[torch.dtype], dict[str, Any]]]],
    least: int,
    rounds: int,
) -> None:
    """A row for each: the time at once over the time one after the other, learning and drawing,
    in both dtypes.
    """
    print(
        f"| {what} | "
        + " | ".join(f"{kind}, {name}" for name in DTYPES for kind in ("learning", "drawing"))
        + " |"
    )
    print("|---" * 5 + "|")
    for title, works in cases:
        ratios = []
        for dtype in DTYPES.values():
            for work in works(dtype).values():
                after, at_once = medians(
                    {each: partial(chosen, each, work) for each in (AFTER, least)}, rounds
                ).values()
                ratios.append(f"{at_once / after:.2f}")
        print(f"| {title} | " + " | ".join(ratios) + " |", flush=True)


def chosen(least: int, work: Callable[[], object]) -> None:
    doubling.PIXELS_PER_CHANNEL = least
    work()


def alone(batch: int, channels: int, size: int) -> Callable[[torch.dtype], dict[str, Any]]:
    def works(dtype: torch.dtype) -> dict[str, Any]:
        h = layout.laid_out(torch.randn(batch, channels, size, size).to(dtype))
        conv = Conv2d(channels, channels, 3, padding=1)
        cast = Conv2d(channels, channels, 3, padding=1).to(dtype).requires_grad_(False)

        def learning() -> None:
            mine: Tensor = h.clone().requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                out = doubling.convolved_double(mine, conv)
            torch.autograd.grad(out, [mine, *conv.parameters()], out.detach())

        return {"learning": learning, "drawing": lambda: doubling.convolved_double(h, cast)}

    return works


def whole(size: int, batch: int, section: Any) -> Callable[[torch.dtype], dict[str, Any]]:
    def works(dtype: torch.dtype) -> dict[str, Any]:
        network, cast = fast_on_cpu(section.build(size, 3)), fast_on_cpu(section.build(size, 3))
        for weight in [*network.parameters(), *cast.parameters()]:
            nn.init.normal_(weight, std=0.02)
        given = (
            torch.randn(batch, 3, size, size),
            torch.full((batch,), 500.0),
            dtype,
            layout.LEAST_LARGE_PIXELS,
        )
        return {
            "learning": partial(learn, network, *given),
            "drawing": partial(sample, cast, *given),
        }

    return works


if __name__ == "__main__":
    main()
