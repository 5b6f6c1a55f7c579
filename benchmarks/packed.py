"""What do weights that are reordered once gain on a CPU, where nothing is learned? With and without
them, in turn.

    python -m benchmarks.packed [--rounds 15]

One thread, seconds of CPU time, so that it may run beside other work: medians of the rounds of one
call of a network.
"""

import argparse
from functools import partial

import torch
from torch import Tensor

from benchmarks.layout import CASES, DTYPES, medians
from vdiff.diffusion.condition import Condition, of_seeds
from vdiff.machine import memory
from vdiff.networks.cpu.fast import fast_on_cpu
from vdiff.networks.network import Network
from vdiff.networks.unet import UNet
from vdiff.recipe import text as recipe_text
from vdiff.recipe.recipe import Recipe


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    memory.set_malloc_policy(sparing=False)
    digits = recipe_text.validate(Recipe, recipe_text.find("digits"))
    cases = [
        (
            "digits",
            digits.data.size,
            64,
            digits.network.build(digits.data.size, digits.data.channels),
        )
    ]
    for size, width, batch, section in CASES:
        cases.append((f"{size}x{size}, width {width}", size, batch, section.build(size, 3)))
    print(
        "| network | pictures | "
        + " | ".join(f"{name}, ms | with | ratio" for name in DTYPES)
        + " |"
    )
    print("|---" * (2 + 3 * len(DTYPES)) + "|")
    for name, size, batch, network in cases:
        for count in (1, batch):
            cells = [
                cell
                for dtype in DTYPES.values()
                for cell in compared(network, size, count, dtype, rounds)
            ]
            print(f"| {name} | {count} | " + " | ".join(cells) + " |", flush=True)


def compared(network: Network, size: int, count: int, dtype: torch.dtype, rounds: int) -> list[str]:
    """Milliseconds of a call without and with, and their ratio."""
    assert isinstance(network, UNet)
    z = torch.randn(count, network.conv_in.in_channels, size, size)
    classes = network.class_embedding.num_embeddings if network.class_embedding is not None else 0
    condition = of_seeds(range(count), classes)
    without, within = (fast_on_cpu(frozen(network, dtype), prepacks) for prepacks in (False, True))
    works = {each: partial(call, each, z, condition) for each in (without, within)}
    before, after = (1e3 * seconds for seconds in medians(works, rounds).values())
    return [f"{before:.1f}", f"{after:.1f}", f"{after / before:.2f}"]


def frozen(network: UNet, dtype: torch.dtype) -> UNet:
    found = UNet.from_config(network.config)
    for weight in found.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    return found.to(dtype).eval().requires_grad_(False)


@torch.no_grad()
def call(network: UNet, z: Tensor, condition: Condition) -> None:
    network(z, torch.full((len(z),), 500.0), condition)


if __name__ == "__main__":
    main()
