"""Which settings of a distillation matter? Chains that differ in one setting, all from the same
base.

    python benchmarks/choices.py work-folder --seeds 0,1,2 [--only exact,midpoint]
    python benchmarks/choices.py work-folder --photographs cifar10-train.tar.gz --seeds 0

For every seed: a base network, then chains down to 1 step that differ in one setting each. Digits
(the recipe `digits`) go down from 64 steps with batches of 32, and `long` from 1024 with the
recipe's batches of 64; photographs of 32x32 (photographs.yaml, beside this file) from 16. Each
student is measured at its own number of steps: fd_pixel on 48 components, swd, and agreement with
the original. A chain that is complete is not made again. The table is printed after each seed,
means and standard deviations over the seeds so far. One thread; two of these at once share no
folder.
"""

import argparse
import json
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vdiff.chain.chain import Chain
from vdiff.chain.stage_run import Surroundings
from vdiff.cli.progress import FitLines
from vdiff.data.lmdb_images import LmdbImagesSection
from vdiff.data.prepare import prepare
from vdiff.digits import write_folder
from vdiff.evaluation.evaluate import Evaluation
from vdiff.evaluation.known_rows import KnownRows
from vdiff.evaluation.samples import SampleRequest
from vdiff.evaluation.subjects import Subject
from vdiff.machine.machine import Machine
from vdiff.metrics.agreement import agreement_of
from vdiff.metrics.metric import named
from vdiff.model_folder.checkpoint import read_card
from vdiff.objectives import OBJECTIVES
from vdiff.recipe import text as recipe_text
from vdiff.recipe.recipe import Recipe
from vdiff.runs.folder import RunFolder
from vdiff.samplers.ddim import DdimSection

MOST_STEPS = 64
"""Students with more steps are not sampled: they take the most time and tell the least."""


@dataclass(frozen=True)
class Study:
    """Chains to compare.

    recipe: where base and chains come from.   short: what every chain has beside it.
    chains: what each has beside that; `exact` is what the others are compared with.
    start_steps: of the original that all are compared with.
    """

    recipe: Path
    short: list[str]
    chains: dict[str, list[str]]
    start_steps: int
    num_images: int

    def read(self, changes: Sequence[str] = ()) -> tuple[Recipe, str]:
        """The recipe with these changes, and its text."""
        text = recipe_text.set_values(recipe_text.read_file(self.recipe), changes)
        return recipe_text.validate(Recipe, text), text.text


DIGITS = Study(
    recipe=recipe_text.shipped()["digits"],
    short=[
        "distill.start_steps=64",
        "distill.factor=2",
        "distill.updates=300",
        "distill.batch_size=32",
        "distill.overrides={}",
        "distill.learning_rate=5e-4",
    ],
    chains={
        "exact": [],
        "midpoint": ["distill.objective=midpoint"],
        "factor 4": ["distill.factor=4", "distill.updates=600"],
        "snr_plus_one": ["distill.weighting=snr_plus_one"],
        "constant": ["distill.weighting=constant"],
        "100 updates": ["distill.updates=100"],
        "1000 updates": ["distill.updates=1000"],
        "long": ["distill.start_steps=1024", "distill.batch_size=64"],
    },
    start_steps=64,
    num_images=2048,
)
PHOTOGRAPHS = Study(
    recipe=Path(__file__).resolve().parent / "photographs.yaml",
    short=[],
    chains={
        "exact": [],
        "midpoint": ["distill.objective=midpoint"],
        "factor 4": ["distill.factor=4", "distill.updates=400"],
        "snr_plus_one": ["distill.weighting=snr_plus_one"],
        "constant": ["distill.weighting=constant"],
        "60 updates": ["distill.updates=60"],
        "600 updates": ["distill.updates=600"],
    },
    start_steps=16,
    num_images=1000,
)


def main() -> None:
    """Make what is missing, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only")
    parser.add_argument(
        "--photographs", type=Path, help="the pictures to take in place of the digits"
    )
    options = parser.parse_args()
    study = PHOTOGRAPHS if options.photographs else DIGITS
    names = (options.only or ",".join(study.chains)).split(",")
    source = options.photographs and options.photographs.resolve()
    options.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(options.folder)
    torch.set_num_threads(1)  # more only wait for one another in a network this small
    OBJECTIVES._builtin["midpoint"] = "midpoint:MidpointSection"
    prepare_once(study, source)
    for seed in options.seeds.split(","):
        base = RunFolder(Path(f"base-{seed}"))
        chain(study, base, [f"seed={seed}"]).train()
        for name in names:
            run = RunFolder(Path(f"{name.replace(' ', '-')}-{seed}"))
            chain(study, run, [f"seed={seed}", *study.short, *study.chains[name]]).distill(
                str(base.model("original"))
            )
            measure(study, run, base, 1024 if name == "long" else study.start_steps)
        show(study, names)


def prepare_once(study: Study, source: Path | None) -> None:
    """The image store of the study's recipe."""
    data = study.read()[0].data
    assert isinstance(data, LmdbImagesSection)
    if data.path.exists():
        return
    if source is None:
        source = Path("digits")
        write_folder(source)
    prepare(source, data.path, sizes=[data.size], channels=1 if study is DIGITS else 3)


def chain(study: Study, run: RunFolder, changes: list[str]) -> Chain:
    """A chain of the study's recipe with these changes, in the precision that `auto` comes to."""
    recipe, text = study.read(changes)
    machine = Machine("auto", "cpu", image_size=recipe.data.size)
    progress = FitLines(
        lambda line: print(f"  {run.path.name} {line}", flush=True) if "done" in line else None
    )
    return Chain(Surroundings(recipe, text, run, machine, progress, lambda: 0))


def measure(study: Study, run: RunFolder, base: RunFolder, start_steps: int) -> None:
    """Leave the rows of a chain's students, and of the base undistilled, in rows.json."""
    path = run.path / "rows.json"
    if path.exists():
        return
    recipe, _ = study.read()
    original = Subject(
        base.model("original"), read_card(base.model("original")), start_steps, "original"
    )
    students = [
        Subject(run.model(name), read_card(run.model(name)), 0, "student") for name in run.models()
    ]
    students = [
        Subject(each.folder, each.card, each.card.num_steps, each.role) for each in students
    ]
    subjects = [original, *(each for each in students if each.num_steps <= MOST_STEPS)]
    metrics = named(["agreement", "fd_pixel:48", "swd"])
    wanted = SampleRequest(DdimSection(), study.num_images, 0, 256)
    evaluation = Evaluation(
        subjects, metrics, wanted, recipe.data.open(), Path(f"{base.path}-{start_steps}")
    )
    machine = Machine("fp32", "cpu")
    evaluation.draw(machine, lambda count: None, KnownRows())
    samples = evaluation.samples()
    built = evaluation.ready("cpu")
    rows = []
    for subject in subjects:
        own = samples[subject.key]
        found = agreement_of(own, samples[original.key])
        values = {name: metric.value(own).value for name, metric in built.of_sets.items()}
        rows.append({"steps": subject.num_steps, **values, "psnr": found.psnr, "ssim": found.ssim})
    for subject in subjects[1:]:
        samples[subject.key].forget()
    path.write_text(json.dumps(rows).replace("Infinity", "null"))


def show(study: Study, names: list[str]) -> None:
    """Mean and standard deviation over the seeds that are there."""
    for metric in ("fd_pixel", "swd", "psnr", "ssim"):
        print(f"\n{metric}, n = {study.num_images}, mean ± standard deviation over seeds\n")
        print(
            "| chain | seeds | original | 16 | 8 | 4 | 2 | 1 |\n|---|---|---|---|---|---|---|---|"
        )
        for name in names:
            found = list(rows_of(name))
            cells = [cell([rows[0][metric] for rows in found])]
            for steps in (16, 8, 4, 2, 1):
                values = [
                    row[metric] for rows in found for row in rows[1:] if row["steps"] == steps
                ]
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
