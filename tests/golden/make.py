"""Writes a golden folder with the vdiff that is installed:
once for every format, and never again for the same one.

    python -m tests.golden.make format_1

An image store, the base model of a run, and its first student, stopped half-way: a save point to go
on from.
"""

import contextlib
import json
import os
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from tests.conftest import noise_picture
from tests.tiny import TinyRun
from vdiff.data.prepare import prepare
from vdiff.diffusion.condition import Condition
from vdiff.errors import Stopped
from vdiff.model_folder.checkpoint import load, read_card, save
from vdiff.randomness import Randomness
from vdiff.samplers.ddim import Ddim

RECIPE = """\
name: golden
seed: 3
data: {path: store, size: 8, flip: true}
network: {width: 4, multipliers: [1], blocks: 1, norm_groups: 1, mid_attention: false,
          num_classes: 2}
diffusion: {schedule: {kind: cosine, grid: 64}}
train: {updates: 30, batch_size: 6, warmup_updates: 2, ema: 0.9, learning_rate: 1.0e-2,
        log_every: 10}
distill: {start_steps: 8, end_steps: 4, updates: 8, batch_size: 6, learning_rate: 1.0e-3,
          log_every: 2}
sample: {num_images: 2, batch_size: 2}
"""


def pictures(folder: Path) -> list[float]:
    """Some values of two pictures of a golden model, from noise that is the same everywhere."""
    model, card = load(folder).denoiser, read_card(folder)
    noise = (
        torch.linspace(-2, 2, 2 * 3 * 8 * 8, dtype=torch.float64).sin().float().reshape(2, 3, 8, 8)
    )
    keys, condition = Randomness.for_images(torch.arange(2)), Condition(torch.tensor([0, 1]))
    found = Ddim()(model, noise, 4, keys, condition, card.times)
    return [round(value, 5) for value in found.flatten()[::16].tolist()]


def use_what_is_new(folder: Path) -> None:
    """Write the card anew with something that format 1 cannot say,
    and that no objective of vdiff's own does.
    """
    found = load(folder)
    picture = (folder / "samples.png").read_bytes()

    def extra(target: Path) -> None:
        (target / "samples.png").write_bytes(picture)

    save(folder, replace(found.card, times=16, is_denoiser=False), found.denoiser, extra)


def main(folder: Path) -> None:
    folder.mkdir()
    os.chdir(folder)
    with tempfile.TemporaryDirectory() as source:
        for index in range(12):
            path = Path(source, "cat" if index % 2 else "dog", f"{index:02d}.png")
            path.parent.mkdir(exist_ok=True)
            noise_picture(8, 8, seed=index).save(path)
        prepare(Path(source), Path("store"), sizes=[8])
    Path("store/preview.png").unlink(missing_ok=True)
    Path("recipe.yaml").write_text(RECIPE, encoding="utf-8")
    run = TinyRun(Path(), RECIPE)
    run.base(run="runs/golden")
    if folder.name != "format_1":
        use_what_is_new(Path("runs/golden/original"))
    with contextlib.suppress(Stopped):
        run.chain(stop_after=4, run="runs/golden").distill()
    shutil.rmtree("runs/golden/tracker")
    shutil.rmtree("runs/golden/saves/original", ignore_errors=True)
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree("runs/golden", copy, dirs_exist_ok=True)
        run.chain(run=copy).distill()
        found = {name: pictures(Path(copy, name)) for name in ("original", "base_0")}
    Path("pictures.json").write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(__file__).parent / sys.argv[1])
