"""Does `--dry-run` tell what a run will cost? It predicts, then the run is made; both again, in
turn.

    python benchmarks/prediction.py [--rounds 2] [--only digits|small] [--scale 1.0] [--folder DIR]
    [--gpus N]

digits is the shipped recipe; small is a U-Net at 32x32 with saves, previews and a trend. --scale
shortens both: the number of updates. Time is that of the whole command, memory the most that its
process had, or one of its processes. --gpus is for several processes, on a CPU; --shard has them
share their networks.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SMALL = """\
name: small
data: {{source: pictures, path: data/small, size: 32}}
network: {{width: 32, multipliers: [1, 2, 2], blocks: 1, attention_at: [8]}}
train: {{updates: {base}, batch_size: 16, save_every: 40, preview_every: 60}}
distill: {{start_steps: 16, end_steps: 4, updates: {stage}, batch_size: 16, save_every: 40}}
sample: {{num_images: 16, batch_size: 16}}
evaluate: {{every: 50, num_images: 96}}
"""


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", choices=("digits", "small"))
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--gpus", type=int)
    parser.add_argument("--shard", action="store_true")
    options = parser.parse_args()
    more = ["--gpus", str(options.gpus), "--device", "cpu"] if options.gpus else []
    more += ["--set", "shard=on"] if options.shard else []
    found: dict[tuple[str, str], list[tuple[float, float, float, float]]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        for name in [options.only] if options.only else ["digits", "small"]:
            prepare(Path(place), name, options.scale)
        for _ in range(options.rounds):
            for name in sorted(path.name for path in Path(place).iterdir()):
                folder = Path(place) / name
                shutil.rmtree(folder / "runs", ignore_errors=True)
                for command in ("train", "distill"):
                    found.setdefault((name, command), []).append(
                        compare(folder, command, options.scale, more)
                    )
    print(
        "| run | command | predicted s | real s | predicted / real | predicted MB | real MB | "
        "predicted / real |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for (name, command), rows in found.items():
        seconds, took, memory, used = (
            statistics.median(column) for column in zip(*rows, strict=True)
        )
        ratios = sorted(row[0] / row[1] for row in rows)
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} - {ratios[-1]:.2f})"
        memory_ratio = statistics.median(row[2] / row[3] for row in rows)
        print(
            f"| {name} | {command} | {seconds:.1f} | {took:.1f} | {spread} | {memory:.0f} | "
            f"{used:.0f} | {memory_ratio:.2f} |"
        )


def prepare(place: Path, name: str, scale: float) -> None:
    folder = place / name
    folder.mkdir()
    if name == "digits":
        vdiff(folder, "init", "digits")
    else:
        text = SMALL.format(base=max(int(150 * scale), 1), stage=max(int(60 * scale), 1))
        (folder / "recipe.yaml").write_text(text, encoding="utf-8")
        (folder / "pictures").mkdir()
        rng = np.random.default_rng(0)
        for number in range(256):
            pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / f"{number:03d}.png")
    vdiff(folder, "prepare")


def compare(
    folder: Path, command: str, scale: float, more: list[str]
) -> tuple[float, float, float, float]:
    """Seconds predicted and real, then megabytes.   more: words for the command."""
    changes = [*more, *shortened(scale)] if folder.name == "digits" else more
    said, _, _ = vdiff(folder, command, *changes, "--dry-run", "--json")
    told = json.loads(said)
    _, seconds, peak = vdiff(folder, command, *changes)
    return told["seconds"], seconds, told["memory_bytes"] / 1e6, peak / 1e6


def shortened(scale: float) -> list[str]:
    updates = {"train.updates": 1700, "distill.updates": 150}
    overrides = {4: 400, 2: 1100, 1: 1500}
    values = [f"{key}={max(int(count * scale), 1)}" for key, count in updates.items()]
    inner = ", ".join(
        f"{steps}: {{updates: {max(int(count * scale), 1)}}}" for steps, count in overrides.items()
    )
    values.append(f"distill.overrides={{{inner}}}")
    return [word for value in values for word in ("--set", value)]


def vdiff(folder: Path, *arguments: str) -> tuple[str, float, int]:
    """What a command said, how long it took, and the most memory that it had, in bytes."""
    begun = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "vdiff", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        said = process.stdout.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"vdiff {' '.join(arguments)} ended with {process.returncode}")
    return (
        said,
        time.monotonic() - begun,
        usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    )


if __name__ == "__main__":
    main()
