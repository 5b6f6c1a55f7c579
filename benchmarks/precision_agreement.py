"""Does the precision change what is learned? Students of one teacher, distilled in float32 and in
bf16.

    python -m benchmarks.precision_agreement vdiff-demo/runs/digits --out /tmp/agreement
    [--seeds 0,1,2] [--set ...]

Needs a trained digits run in whose folder `original` and a store lie as the demo leaves them. The
whole chain is distilled from that teacher once per precision and seed; a row per number of steps
and seed has the Frechet distances of both students to the digits (the protocol of
digits_quality.py; both are sampled in float32) and their ratio. bf16 needs a processor that
multiplies it.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.digits_quality import NUM_COMPONENTS, NUM_SAMPLES, distance
from vdiff import digits
from vdiff.images.images import to_float
from vdiff.metrics.frechet import PixelFrechet
from vdiff.model_folder import checkpoint
from vdiff.runs.folder import RunFolder


def main() -> None:
    """Distill where that is not done yet, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    options = parser.parse_args()
    measure = PixelFrechet(to_float(torch.from_numpy(digits.load()[0])), NUM_COMPONENTS)
    print(
        f"fd_pixel, {NUM_COMPONENTS} components, n = {NUM_SAMPLES}, reference 1,797 digits; "
        f"{options.changes or ''}\n"
    )
    print("| seed | steps | fp32 | bf16 | bf16 / fp32 |\n|---|---|---|---|---|")
    for seed in options.seeds.split(","):
        runs = [distilled(options, seed, precision) for precision in ("fp32", "bf16")]
        for names in zip(*(run.models() for run in runs), strict=True):
            exact, fast = (
                checkpoint.load(run.model(name)) for run, name in zip(runs, names, strict=True)
            )
            steps = exact.card.num_steps
            found = [distance(measure, each, steps) for each in (exact, fast)]
            print(
                f"| {seed} | {steps} | {found[0]:.4f} | {found[1]:.4f} | "
                f"{found[1] / found[0]:.3f} |",
                flush=True,
            )


def distilled(options: argparse.Namespace, seed: str, precision: str) -> RunFolder:
    """The run with the students of this seed and precision;
    the same command again goes on where it stopped.
    """
    folder = options.out.absolute() / f"{precision}-{seed}"
    command = [
        sys.executable,
        "-m",
        "vdiff",
        "distill",
        "-q",
        "--device",
        "cpu",
        "--run",
        str(folder),
    ]
    command += [
        "--from",
        str((options.run / "original").absolute()),
        "--recipe",
        str((options.run / "recipe.yaml").absolute()),
    ]
    for change in (f"seed={seed}", f"precision={precision}", *options.changes):
        command += ["--set", change]
    # the store's path counts from there
    subprocess.run(command, check=True, cwd=options.run.parent.parent)
    return RunFolder(folder)


if __name__ == "__main__":
    main()
