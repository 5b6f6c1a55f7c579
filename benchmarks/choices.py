"""Which settings of a distillation matter? Chains of the digits that differ in one setting, all from the same base.

    python benchmarks/choices.py work-folder --seeds 0,1,2 [--only exact,midpoint]

For every seed: a base network (the recipe `digits`), then chains from 64 steps to 1 with batches of 32 that differ in
one setting each, and `long`, a chain from 1024 steps to 1 with the recipe's batches of 64. Each student is measured at
its own number of steps: fd_pixel on 48 components, swd, and agreement with the original. A chain that is complete is
not made again. The table is printed after each seed, means and standard deviations over the seeds so far.
"""

import argparse
import json
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from vdiff import recipe_text
from vdiff.chain import Chain
from vdiff.checkpoint import read_card
from vdiff.cli.progress import FitLines
from vdiff.data.prepare import prepare
from vdiff.digits import write_folder
from vdiff.evaluation.earlier import Earlier
from vdiff.evaluation.evaluate import Evaluation
from vdiff.evaluation.samples import Wanted
from vdiff.evaluation.subjects import Subject
from vdiff.metrics.agreement import agreement_of
from vdiff.metrics.metric import named
from vdiff.objectives import OBJECTIVES
from vdiff.recipe import Recipe
from vdiff.run_folder import RunFolder
from vdiff.samplers.ddim import Ddim
from vdiff.stage_run import Surroundings
from vdiff.training.machine import Machine

NUM_IMAGES = 2048
MOST_STEPS = 64
"""Students with more steps are not sampled: they take the most time and tell the least."""

SHORT = [
    "distill.start_steps=64",
    "distill.factor=2",
    "distill.updates=300",
    "distill.batch_size=32",
    "distill.overrides={}",
    "distill.learning_rate=5e-4",
]
CHAINS: dict[str, list[str]] = {
    "exact": [],
    "midpoint": ["distill.objective=midpoint"],
    "factor 4": ["distill.factor=4", "distill.updates=600"],
    "snr_plus_one": ["distill.weighting=snr_plus_one"],
    "constant": ["distill.weighting=constant"],
    "100 updates": ["distill.updates=100"],
    "1000 updates": ["distill.updates=1000"],
    "long": ["distill.start_steps=1024", "distill.batch_size=64"],
}
"""What each chain has beside SHORT; `exact` is what the others are compared with."""


def main() -> None:
    """Make what is missing, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default=",".join(CHAINS))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(options.folder)
    torch.set_num_threads(1)  # more only wait for one another in a network this small
    OBJECTIVES._builtin["midpoint"] = "midpoint:MidpointSection"
    if not Path("data/digits").exists():
        write_folder(Path("digits"))
        prepare(Path("digits"), Path("data/digits"), sizes=[8], channels=1)
    for seed in options.seeds.split(","):
        base = RunFolder(Path(f"base-{seed}"))
        chain(base, [f"seed={seed}"]).train()
        for name in options.only.split(","):
            run = RunFolder(Path(f"{name.replace(' ', '-')}-{seed}"))
            chain(run, [f"seed={seed}", *SHORT, *CHAINS[name]]).distill(str(base.model("original")))
            measure(run, base, 1024 if name == "long" else MOST_STEPS)
        show(options.only.split(","))


def chain(run: RunFolder, changes: list[str]) -> Chain:
    """A chain of the recipe `digits` with these changes."""
    text = recipe_text.set_values(recipe_text.read_file(recipe_text.shipped()["digits"]), changes)
    recipe = recipe_text.validate(Recipe, text)
    progress = FitLines(lambda line: print(f"  {run.path.name} {line}", flush=True) if "done" in line else None)
    return Chain(Surroundings(recipe, text.text, run, Machine("fp32", "cpu"), progress, lambda: 0))


def measure(run: RunFolder, base: RunFolder, start_steps: int) -> None:
    """Leave the rows of a chain's students, and of the base undistilled, in rows.json."""
    path = run.path / "rows.json"
    if path.exists():
        return
    recipe = recipe_text.validate(Recipe, recipe_text.read_file(recipe_text.shipped()["digits"]))
    original = Subject(base.model("original"), read_card(base.model("original")), start_steps, "original")
    students = [Subject(run.model(name), read_card(run.model(name)), 0, "student") for name in run.models()]
    students = [Subject(each.folder, each.card, each.card.num_steps, each.role) for each in students]
    subjects = [original, *(each for each in students if each.num_steps <= MOST_STEPS)]
    metrics = named(["agreement", "fd_pixel:48", "swd"])
    wanted = Wanted(Ddim(), NUM_IMAGES, 0, 256)
    evaluation = Evaluation(subjects, metrics, wanted, recipe.data.open(), Path(f"{base.path}-{start_steps}"))
    machine = Machine("fp32", "cpu")
    evaluation.draw(machine, lambda count: None, Earlier())
    samples = evaluation.samples()
    built = evaluation.ready("cpu")
    rows = []
    for subject in subjects:
        own = samples[subject.key]
        found = agreement_of(own, samples[original.key])
        values = {name: metric.value(own).value for name, metric in built.items()}
        rows.append({"steps": subject.num_steps, **values, "psnr": found.psnr, "ssim": found.ssim})
    for subject in subjects[1:]:
        samples[subject.key].forget()
    path.write_text(json.dumps(rows).replace("Infinity", "null"))


def show(names: list[str]) -> None:
    """Mean and standard deviation over the seeds that are there."""
    for metric in ("fd_pixel", "swd", "psnr", "ssim"):
        print(f"\n{metric}, n = {NUM_IMAGES}, mean ± standard deviation over seeds\n")
        print("| chain | seeds | original | 16 | 8 | 4 | 2 | 1 |\n|---|---|---|---|---|---|---|---|")
        for name in names:
            found = list(rows_of(name))
            cells = [cell([rows[0][metric] for rows in found])]
            for steps in (16, 8, 4, 2, 1):
                values = [row[metric] for rows in found for row in rows[1:] if row["steps"] == steps]
                cells.append(cell(values))
            print(f"| {name} | {len(found)} | {' | '.join(cells)} |", flush=True)


def rows_of(name: str) -> Iterator[list[Mapping[str, float]]]:
    for path in sorted(Path().glob(f"{name.replace(' ', '-')}-[0-9]*/rows.json")):
        yield json.loads(path.read_text())


def cell(values: Sequence[float | None]) -> str:
    """`0.166 ± 0.003`."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ± {statistics.stdev(known):.3f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.3f}{spread}"


if __name__ == "__main__":
    main()
