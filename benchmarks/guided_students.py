"""Guidance inside of students, on the digits: is a student with g as an input nearer to its guided
teacher than to the same teacher without guidance, and does its loss fall?

    python benchmarks/guided_students.py FOLDER [--updates 400]

A class-conditional base of a few hundred updates, a stage one with `distill.guidance: [1, 4]`, and
one halving, on one CPU core in about two minutes. It prints the loss of the first and the last
tenth of each stage, and for every g the distance (root of the mean squared difference of pictures
from the same noise) to the teacher with this guidance and to the teacher without.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from vdiff import digits
from vdiff.chain.chain import Chain
from vdiff.chain.stage_run import Surroundings
from vdiff.cli import main as vdiff
from vdiff.cli.progress import FitLines
from vdiff.drawing.guidance import Guidance
from vdiff.drawing.pictures import draw_with
from vdiff.machine.machine import Machine
from vdiff.model_folder import checkpoint
from vdiff.recipe import text as recipe_text
from vdiff.recipe.recipe import Recipe
from vdiff.runs.folder import RunFolder

STEPS = 16
STRENGTHS = (1.0, 2.0, 3.0, 4.0)


def recipe(folder: Path, updates: int) -> tuple[Recipe, str]:
    """A class-conditional chain on the digits: 16 steps with guidance, then 8."""
    section = {
        "name": "guided",
        "data": {
            "source": str(folder / "pictures"),
            "path": str(folder / "store"),
            "size": 8,
            "channels": 1,
        },
        "network": {"width": 16, "multipliers": [1, 4], "blocks": 1, "num_classes": 10},
        "train": {
            "updates": updates,
            "batch_size": 64,
            "learning_rate": 2e-3,
            "warmup_updates": updates // 10,
            "ema": 0.99,
            "label_drop": 0.1,
            "log_every": 10,
        },
        "distill": {
            "start_steps": STEPS,
            "end_steps": STEPS // 2,
            "guidance": [1, 4],
            "updates": updates,
            "batch_size": 64,
            "learning_rate": 5e-4,
            "log_every": 10,
        },
    }
    text = json.dumps(section)
    return recipe_text.validate(Recipe, recipe_text.parse(text, "recipe")), text


def trained(folder: Path, updates: int) -> RunFolder:
    """The run, made or gone on with."""
    made, text = recipe(folder, updates)
    if not Path(folder, "store").exists():
        digits.write_folder(folder / "pictures")
        (folder / "recipe.yaml").write_text(text)
        prepared = vdiff(["prepare", "--recipe", str(folder / "recipe.yaml")])
        assert prepared == 0
    run = RunFolder(folder / "run")
    surroundings = Surroundings(
        made, text, run, Machine("fp32", "cpu"), FitLines(lambda line: None), lambda: 0
    )
    chain = Chain(surroundings)
    chain.train()
    chain.distill()
    return run


def losses(run: RunFolder, stage: str) -> tuple[float, float]:
    """Means of the first and of the last tenth of a stage's logged losses."""
    lines = [json.loads(line) for line in run.log.read_text().splitlines()]
    found = [line["loss"] for line in lines if line.get("stage") == stage and "loss" in line]
    tenth = max(1, len(found) // 10)
    return sum(found[:tenth]) / tenth, sum(found[-tenth:]) / tenth


def distances(run: RunFolder, student: str, guidance: float, count: int) -> tuple[float, float]:
    """Of the student at g to the teacher at g, and to the teacher without guidance."""
    drawn: list[Tensor] = []
    for name, g in ((student, guidance), ("original", guidance), ("original", 1.0)):
        model = checkpoint.load(run.model(name))
        steps = STEPS if name == "original" else None
        drawn.append(draw_with(model, range(count), steps, guidance=Guidance(g)))
    own, guided, plain = drawn
    return rms(own - guided), rms(own - plain)


def rms(difference: Tensor) -> float:
    return float(difference.square().mean().sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--pictures", type=int, default=256)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    run = trained(asked.folder, asked.updates)
    for stage in ("original", "base_0", "base_1"):
        first, last = losses(run, stage)
        print(f"{stage}: loss {first:.5f} -> {last:.5f}")
    print("student  g    to the guided teacher  to the teacher without")
    for student in ("base_0", "base_1"):
        for g in STRENGTHS:
            guided, plain = distances(run, student, g, asked.pictures)
            print(f"{student}   {g:.1f}  {guided:.4f}                 {plain:.4f}")


if __name__ == "__main__":
    main()
