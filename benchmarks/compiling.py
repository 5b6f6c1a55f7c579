"""Does compiling pay on a CPU? An update of a U-Net of 7.3 M parameters, eager and compiled in
turn.

    python benchmarks/compiling.py [--rounds 7]

One thread and seconds of CPU time, so that other work on the machine counts little; what the C++
compiler takes counts with the first update. Medians of the rounds, fastest and slowest.
"""

import argparse
import copy
import os
import resource
import statistics
import tempfile
import time
import warnings

import torch
from speed import BATCH, SECTION, SIZE, Work, update

from vdiff.machine.compiling import Compile
from vdiff.machine.machine import Machine
from vdiff.machine.precision import Arithmetic
from vdiff.objectives.denoising import DenoisingObjective
from vdiff.training.settings import FitSection

PRECISIONS: tuple[Arithmetic, ...] = ("fp32", "bf16")
MODES: tuple[Compile, ...] = ("off", "on")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as cache:
        os.environ |= {"TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        works = {
            (precision, mode): made(precision, mode) for precision in PRECISIONS for mode in MODES
        }
        first = {key: seconds(work) for key, work in works.items()}
        for work in works.values():
            work()
        taken: dict[tuple[Arithmetic, Compile], list[float]] = {key: [] for key in works}
        for _ in range(rounds):
            for key, work in works.items():
                begun = time.process_time()
                work()
                taken[key].append(time.process_time() - begun)
    print(
        "| precision | compiled | first update, s | an update, s | against eager |\n"
        "|---|---|---|---|---|"
    )
    for (precision, mode), found in taken.items():
        median, eager = statistics.median(found), statistics.median(taken[precision, "off"])
        spread = f"{median:.3f} ({min(found):.3f} - {max(found):.3f})"
        print(
            f"| {precision} | {mode} | {first[precision, mode]:.1f} | {spread} | "
            f"{median / eager:.2f} |"
        )


def made(precision: Arithmetic, mode: Compile) -> Work:
    """An update."""
    torch.manual_seed(0)
    network = copy.deepcopy(SECTION.build(SIZE, 3))
    settings = FitSection(updates=10**6, batch_size=BATCH, ema=0.9999)
    return update(
        network,
        DenoisingObjective("snr_plus_one"),
        settings,
        Machine(precision, "cpu", compile=mode),
        SIZE,
        3,
    )


def seconds(work: Work) -> float:
    """Of CPU time, with that of the programs that it starts."""
    before = spent()
    work()
    return spent() - before


def spent() -> float:
    """CPU time until now."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in found)


if __name__ == "__main__":
    main()
