"""How does the time of an update grow with what it computes? Measured against the arithmetic,
everything in turn.

    python benchmarks/scaling.py [--rounds 3] [--most 256] [--busy]

One base case (32x32, width 32, batch 8); one thing is changed at a time: picture size, width,
batch, processes, and the number of the teacher's steps that a stage replaces. The arithmetic is
counted by torch, forward and backward and the teacher's forwards, convolutions and matrix products
alone. Constant GFLOP/s: time grows as the arithmetic does. Two processes each do half of a batch,
and are started with torchrun. Chains of digits, of several lengths, are the command `vdiff distill`
from its start to its end.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

BASE: dict[str, Any] = {"size": 32, "width": 32, "batch": 8, "processes": 1, "teacher_steps": 0}
CHANGES: list[dict[str, Any]] = [
    {},
    {"size": 64},
    {"size": 128},
    {"size": 256},
    {"width": 16},
    {"width": 64},
    {"batch": 2},
    {"batch": 32},
    {"teacher_steps": 2},
    {"teacher_steps": 4},
    {"processes": 2},
]


def main() -> None:
    """Print a table, or in an inner process the seconds of one case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=int, default=256)
    parser.add_argument(
        "--busy", action="store_true", help="seconds of CPU, for a machine with other work"
    )
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        inner(json.loads(options.case), options.rounds)
        return
    changes = [change for change in CHANGES if change.get("size", 0) <= options.most]
    alone = [change for change in changes if "processes" not in change]
    works = [update({**BASE, **change}) for change in alone]
    clock = time.process_time if options.busy else time.perf_counter
    seconds: list[list[float]] = [[] for _ in works]
    for number in range(options.rounds + 1):
        for work, found in zip(works, seconds, strict=True):
            begun = clock()
            work()
            if number:  # the first one sets up memory
                found.append(clock() - begun)
    flops = [counted(work) for work in works]
    show(alone, seconds, flops)
    for change in changes[len(alone) :]:
        in_processes(options.rounds, change["processes"])
    chains(options.rounds)


def show(changes: list[dict[str, Any]], seconds: list[list[float]], flops: list[int]) -> None:
    base_seconds, base_flops = statistics.median(seconds[0]), flops[0]
    print(
        "| changed | s per update: median (fastest - slowest) | GFLOP | time / base | arithmetic / "
        "base | GFLOP/s |"
    )
    print("|---|---|---|---|---|---|")
    for change, found, count in zip(changes, seconds, flops, strict=True):
        middle = statistics.median(found)
        name = ", ".join(f"{key} {value}" for key, value in change.items()) or f"nothing: {BASE}"
        print(
            f"| {name} | {middle:.3f} ({min(found):.3f} - {max(found):.3f}) | {count / 1e9:.2f} | "
            f"{middle / base_seconds:.2f} | {count / base_flops:.2f} | {count / middle / 1e9:.0f} |"
        )


def update(case: dict[str, Any], machine: Any = None) -> Callable[[], object]:
    """One update of a learner, on this process's share of random pictures."""
    import copy

    import torch

    from vdiff.diffusion.condition import NOTHING
    from vdiff.diffusion.denoiser import Denoiser
    from vdiff.diffusion.process import DiffusionSection
    from vdiff.machine.machine import Machine
    from vdiff.networks.unet import UNetSection
    from vdiff.objectives.denoising import DenoisingObjective
    from vdiff.objectives.progressive import ProgressiveObjective
    from vdiff.training.learner import Learner, RngOf
    from vdiff.training.settings import FitSection

    torch.set_num_threads(1)
    machine, schedule, size = (
        machine or Machine("fp32", "cpu"),
        DiffusionSection().schedule.build(),
        case["size"],
    )
    network = UNetSection(width=case["width"], multipliers=(1, 2, 2), blocks=1).build(size, 3)
    objective: Any = DenoisingObjective("snr_plus_one")
    if case["teacher_steps"]:
        teacher = Denoiser(machine.freeze(copy.deepcopy(network)), schedule, "v")
        objective = ProgressiveObjective("truncated_snr", teacher, 16, case["teacher_steps"])
    settings = FitSection(updates=10**6, batch_size=case["batch"], ema=0.999)
    learner = Learner(Denoiser(network, schedule, "v"), objective, settings, machine)
    places = torch.arange(case["batch"])[machine.rank :: machine.world_size]
    x = torch.rand(len(places), 3, size, size)
    return lambda: learner.step(x, NOTHING, RngOf(0, 0, learner.update, places, case["batch"]))


def counted(work: Callable[[], object]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def in_processes(rounds: int, most: int) -> None:
    """One process and more, in turn: seconds of wall time,
    which other work on the machine disturbs.
    """
    found: dict[int, list[float]] = {1: [], most: []}
    for _ in range(2):
        for count, times in found.items():
            times += inner_seconds(count, rounds)
    print(
        "\n| processes of one thread | s per update: median (fastest - slowest) | speed-up |\n"
        "|---|---|---|"
    )
    for count, times in found.items():
        middle = statistics.median(times)
        gain = statistics.median(found[1]) / middle
        print(f"| {count} | {middle:.3f} ({min(times):.3f} - {max(times):.3f}) | {gain:.2f} |")


CHAIN_UPDATES = 100
"""Of every stage."""


def chains(rounds: int) -> None:
    """Chains of 2, 4 and 6 halvings of the digits from 64 steps, in turn:
    seconds of wall time of the whole command.
    """
    found: dict[int, list[float]] = {16: [], 4: [], 1: []}
    with tempfile.TemporaryDirectory() as place:
        changes = [
            f"distill.updates={CHAIN_UPDATES}",
            "distill.factor=2",
            "distill.overrides={}",
            "train.updates=50",
        ]
        for command in (["init", "digits"], ["prepare"], ["train", "--set", changes.pop()]):
            vdiff(place, command)
        for _ in range(rounds):
            for end, times in found.items():
                more = [*changes, f"distill.end_steps={end}", "train.updates=50"]
                begun = time.perf_counter()
                vdiff(
                    place,
                    [
                        "distill",
                        "--force",
                        *(word for change in more for word in ("--set", change)),
                    ],
                )
                times.append(time.perf_counter() - begun)
    print(
        f"\n| halvings of {CHAIN_UPDATES} updates | s: "
        "median (fastest - slowest) | s per halving |\n|---|---|---|"
    )
    for end, times in found.items():
        count, middle = 7 - end.bit_length(), statistics.median(times)
        print(
            f"| {count} | {middle:.1f} ({min(times):.1f} - {max(times):.1f}) | "
            f"{middle / count:.2f} |"
        )


def vdiff(place: str, command: list[str]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    called = [sys.executable, "-m", "vdiff", *command, "-q"]
    subprocess.run(called, cwd=place, env=environment, check=True)


def inner_seconds(processes: int, rounds: int) -> list[float]:
    case = json.dumps({**BASE, "processes": processes})
    launcher = (
        ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes > 1 else []
    )
    command = [sys.executable, *launcher, __file__, "--case", case, "--rounds", str(rounds)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    said = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    ).stdout
    times: list[float] = json.loads(
        next(line for line in said.decode().splitlines() if line.startswith("["))
    )
    return times


def inner(case: dict[str, Any], rounds: int) -> None:
    from vdiff.machine.machine import Machine

    machine = Machine("fp32", "cpu")
    work, found = update(case, machine), []
    for number in range(rounds + 1):
        machine.wait()
        begun = time.perf_counter()
        work()
        machine.wait()
        if number:
            found.append(time.perf_counter() - begun)
    if machine.is_first:
        print(json.dumps(found), flush=True)
    machine.close()


if __name__ == "__main__":
    main()
