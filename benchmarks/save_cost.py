"""What does it cost a training to save? Seconds that it waits, seconds until the save is safe,
bytes, share of time.

    python benchmarks/save_cost.py --folder /somewhere/on/the/disk --save-every 1000
    --seconds-per-update 0.5

A U-Net of about 100 million parameters on the CPU in float32: weights, average and Adam's memory
are 16 bytes each. Two updates on one picture fill Adam's memory. A save is under way twice: once
alone, and once while the next update runs, which shows what the thread in the background takes from
it. Needs about 5 GB of memory.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vdiff.diffusion.condition import NOTHING
from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.process import DiffusionSection
from vdiff.machine.machine import Machine
from vdiff.networks.unet import UNetSection
from vdiff.objectives.denoising import DenoisingObjective
from vdiff.runs.savepoint import Saver
from vdiff.training.learner import Learner, RngOf
from vdiff.training.settings import FitSection

SIZE = 32
NETWORK = UNetSection(width=144, multipliers=(1, 2, 3, 4), blocks=2)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where the saves go; the disk counts")
    parser.add_argument("--save-every", type=int, default=1000)
    parser.add_argument(
        "--seconds-per-update",
        type=float,
        help="of the training to compare with [one picture, here]",
    )
    options = parser.parse_args()
    learner = make_learner()
    update(learner)  # makes Adam's memory
    alone = seconds(lambda: update(learner))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        saver = Saver(Path(folder), {})
        waits = seconds(lambda: save(saver, learner))
        safe = waits + seconds(saver.wait)
        also_waits = seconds(lambda: save(saver, learner))
        beside = seconds(lambda: update(learner))
        saver.wait()
        num_bytes = sum(path.stat().st_size for path in max(Path(folder).iterdir()).iterdir())
    wait = max(waits, also_waits)
    per_update = options.seconds_per_update or alone
    count = sum(weight.numel() for weight in learner.result().network.parameters())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{count / 1e6:.0f} M parameters, CPU, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads\n"
    )
    print("| what | |\n|---|---|")
    print(f"| a save on the disk | {num_bytes / 1e9:.2f} GB |")
    print(f"| training waits for the copy | {wait:.2f} s |")
    print(f"| until it is on the disk, read back and verified | {safe:.1f} s |")
    print(f"| an update alone; while a save is under way | {alone:.2f} s; {beside:.2f} s |")
    print(
        f"| share of training time, a save every {options.save_every} updates of "
        f"{per_update:.2f} s | ",
        end="",
    )
    print(f"{wait / (options.save_every * per_update):.3%} |")
    print(
        "| the same if it waited for the disk too | "
        f"{safe / (options.save_every * per_update):.3%} |"
    )
    print(f"| peak memory | {memory:.1f} GB |")


def make_learner() -> Learner:
    """A network of random weights with all that training adds to it."""
    torch.manual_seed(0)
    section = DiffusionSection()
    student = Denoiser(NETWORK.build(SIZE, 3), section.schedule.build(), section.predicts)
    settings = FitSection(updates=1000, batch_size=1, ema=0.999)
    return Learner(student, DenoisingObjective("snr_plus_one"), settings, Machine("fp32", "cpu"))


def update(learner: Learner) -> None:
    learner.step(
        torch.rand(1, 3, SIZE, SIZE) * 2 - 1,
        NOTHING,
        RngOf(0, 0, learner.update, torch.arange(1), 1),
    )


def save(saver: Saver, learner: Learner) -> None:
    saver.save(learner.update, learner.state(), {"rows": torch.zeros(0, 2)})


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
