"""Students of models that other programs trained, beside what their teachers draw in four steps.

    python benchmarks/strangers.py WORK --foreign FOLDER

Three teachers: `digits`, a DDPM pipeline that diffusers makes and trains here; `guided_1` and
`lucid_1`, files of guided-diffusion and denoising-diffusion-pytorch (small networks of 16 x 16
pixels, trained for 300 and 125 updates). Each goes through `vdiff import` and `vdiff distill --from
FILE --to 4`. The files come without pictures like theirs, so they are distilled on pictures that
they draw themselves.

What is compared: pictures from the same noise, mean square of their difference in [-1, 1]. The
truth is what the teacher draws in 100 steps, its picture kept within [-1, 1], as its own samplers
do. The student has four network calls, and so has the teacher, with every solver of `SOLVERS`.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdiff import cli, digits
from vdiff.images.images import grid, to_float, to_uint8, write_png
from vdiff.model_folder import checkpoint
from vdiff.model_folder.checkpoint import Checkpoint
from vdiff.randomness import Randomness
from vdiff.samplers.advised import sampler_for
from vdiff.samplers.ancestral import Ancestral
from vdiff.samplers.ddim import Ddim
from vdiff.samplers.dpmpp import Dpmpp
from vdiff.samplers.draw import draw
from vdiff.samplers.ipndm import Ipndm
from vdiff.samplers.sampler import Point, Predict, Sampler
from vdiff.samplers.solver import moved_towards
from vdiff.samplers.unipc import UniPc

NUM_STEPS = 4
MANY_STEPS = 100
NUM_PICTURES = 64
FIRST_SEED = 100_000
TEACHER_UPDATES = 600


@dataclass(frozen=True)
class Stranger:
    """A model of another program, and how it is distilled.

    file: below the folder of foreign files; None for the one that is made here.
    told: what `vdiff import` is told.   size: of its pictures.   settings: for `--set`.
    num_drawn: how many pictures of its own it is distilled on; 0 for the digits.
    """

    file: str | None
    told: tuple[str, ...]
    size: int
    settings: tuple[str, ...]
    num_drawn: int = 0


START = ("distill.start_steps=16", "distill.factor=4", "distill.warmup_updates=10")
"""One stage from 16 steps to 4: what a teacher draws in 16 is within 0.001 of the truth."""

EPS = ("distill.predicts=eps", "distill.weighting=snr")
"""The student begins as its teacher is; to learn v instead takes it many more updates."""


STRANGERS = {
    "digits": Stranger(
        None,
        (),
        8,
        (
            *(*START, *EPS, "distill.updates=400"),
            *("distill.batch_size=32", "distill.learning_rate=1e-3"),
        ),
    ),
    "guided_1": Stranger(
        "guided_1/ema_0.99_000300.pt",
        ("--size", "16", "--head-dim", "16", "--qkv-order", "legacy"),
        16,
        (
            *(*START, *EPS, "distill.updates=300"),
            *("distill.batch_size=16", "distill.learning_rate=3e-4"),
        ),
        num_drawn=512,
    ),
    "lucid_1": Stranger(
        "lucid_1/model-1.pt",
        ("--size", "16"),
        16,
        (
            *(*START, "distill.updates=200"),
            *("distill.batch_size=16", "distill.learning_rate=3e-4"),
        ),
        num_drawn=512,
    ),
}


# --- solvers of four network calls


class Later(Ddim):
    """DDIM from t = 0.751 on, as OpenAI's `ddim4` and diffusers' `leading` place the steps."""

    def __str__(self) -> str:
        return f"{super().__str__()}, leading"

    def times(self, num_steps: int, schedule: Any, model_steps: int | None = None) -> list[float]:
        grid = schedule.grid
        return [(i * (grid // num_steps) + 1) / grid for i in reversed(range(num_steps))] + [0.0]


class Even(Dpmpp):
    """DPM-Solver++ 2M at times that are even in logsnr, from end to end of the table."""

    def __init__(self, clip: float | None) -> None:
        super().__init__(2, "logsnr", clip)

    def __str__(self) -> str:
        return f"{super().__str__()} of the whole table"

    def times(self, num_steps: int, schedule: Any, model_steps: int | None = None) -> list[float]:
        known = (torch.arange(schedule.grid, dtype=torch.float64) + 1) / schedule.grid
        logsnr = schedule.logsnr(known)
        wanted = torch.linspace(float(logsnr[-1]), float(logsnr[0]), num_steps + 1)[:-1]
        return [float(known[(logsnr - each).abs().argmin()]) for each in wanted] + [0.0]


class Heun(Sampler):
    """Two calls a step: x is the mean of the predictions at both ends; the last step has one."""

    calls_per_step = 2

    def __init__(self, clip: float | None) -> None:
        self.clip = clip

    def __str__(self) -> str:
        return f"heun clip_x={self.clip}"

    def step(
        self, here: Point, s: float, before: Sequence[Point], predict: Predict, rng: Randomness
    ) -> Tensor:
        x = here.prediction.x
        if s == 0:
            return x
        after = predict(moved_towards(x, here.z, here.t, s, predict.schedule), s).x
        return moved_towards((x + after) / 2, here.z, here.t, s, predict.schedule)


SOLVERS: tuple[tuple[Sampler, int], ...] = (
    *((Ddim(clip=limit), NUM_STEPS) for limit in (None, 1.0, 1.2)),
    *((Later(clip=limit), NUM_STEPS) for limit in (None, 1.0)),
    *((Even(limit), NUM_STEPS) for limit in (None, 1.0)),
    *((Dpmpp(2, "uniform", limit), NUM_STEPS) for limit in (None, 1.0)),
    *((UniPc("uniform", limit), NUM_STEPS) for limit in (None, 1.0)),
    *((Ipndm("uniform", limit), NUM_STEPS) for limit in (None, 1.0)),
    # of three steps, five calls: a step too many, and none too few
    *((Heun(limit), 3) for limit in (None, 1.0)),
    (Ddim(clip=1.0, clip_noise=1.2), NUM_STEPS),
    (Ancestral(0.0, 1.0), NUM_STEPS),
)


# --- the teacher that is made here


def make_pipeline(folder: Path, updates: int, widths: tuple[int, int] = (16, 32)) -> None:
    """A DDPMPipeline of diffusers, trained on the digits by diffusers' own scheduler."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    x = to_float(torch.from_numpy(digits.load()[0]))
    network = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    average = deepcopy(network)
    for update in range(updates):
        chosen = x[torch.randint(len(x), (64,))]
        eps = torch.randn_like(chosen)
        index = torch.randint(1000, (64,))
        output = network(scheduler.add_noise(chosen, eps, index), index).sample
        optimizer.zero_grad()
        (output - eps).square().mean().backward()
        optimizer.step()
        decay.step()
        with torch.no_grad():
            pairs = zip(average.parameters(), network.parameters(), strict=True)
            for kept, weight in pairs:
                kept.lerp_(weight, 0.005 if update else 1.0)
    DDPMPipeline(average.eval(), scheduler).save_pretrained(folder)


# --- the measurement


def distance(drawn: Tensor, truth: Tensor) -> float:
    """Mean square of the difference, of pictures as they are shown."""
    return float((drawn.clamp(-1, 1) - truth.clamp(-1, 1)).square().mean())


def compare(
    teacher: Checkpoint,
    student: Checkpoint,
    picture: Path,
    count: int = NUM_PICTURES,
    many_steps: int = MANY_STEPS,
) -> tuple[float, float]:
    """(student, the best of the teacher's solvers); prints a table, and writes rows of pictures:
    the truth, the student's, and the teacher's best.
    """
    seeds, shape = range(count), teacher.card.shape
    truth = draw(teacher.denoiser, Ddim(clip=1.0), seeds, shape, many_steps)
    spread = float(truth.clamp(-1, 1).var(dim=0).mean())
    print(f"variance of the truth over its pictures: {spread:.4f}")
    found = {}
    best = truth
    for solver, steps in SOLVERS:
        drawn = draw(teacher.denoiser, solver, seeds, shape, steps)
        found[str(solver)] = distance(drawn, truth)
        if found[str(solver)] == min(found.values()):
            best = drawn
    for name, value in sorted(found.items(), key=lambda item: item[1]):
        print(f"| teacher, {name} | {value:.4f} |")
    # with the sampler that its card advises, as `vdiff sample` draws
    card = student.card
    section = sampler_for(None, card.sampler, card.name, is_solvable=card.is_solvable)
    sampler = section.build()
    own = draw(student.denoiser, sampler, seeds, shape, NUM_STEPS, model_steps=student.card.times)
    print(f"| student | {distance(own, truth):.4f} |", flush=True)
    rows = [row for each in (truth, own, best) for row in each[:16]]
    write_png(picture, grid(to_uint8(torch.stack(rows)), columns=min(16, count), scale=3))
    return distance(own, truth), min(found.values())


def distilled(name: str, foreign: Path) -> tuple[Checkpoint, Checkpoint]:
    """(teacher, student of four steps) of a stranger, by vdiff's own commands, in the folder where
    this runs.
    """
    stranger = STRANGERS[name]
    if stranger.file is None:
        source = Path("digits_pipeline")
        if not source.exists():
            timed(f"{name}: diffusers trains", lambda: make_pipeline(source, TEACHER_UPDATES))
    else:
        source = foreign / stranger.file
    run = Path("runs") / (source.name if source.is_dir() else source.stem)
    if not (run / "original").exists():
        timed(f"{name}: import", lambda: vdiff("import", str(source), *stranger.told))
    store = Path(f"pictures_{name}")
    if not store.exists():
        timed(f"{name}: pictures", lambda: prepare(stranger, run / "original", store))
    settings = [part for each in stranger.settings for part in ("--set", each)]
    settings += ["--set", f"data.path={store.resolve()}"]
    arguments = ("distill", "--from", str(source), "--to", str(NUM_STEPS), *settings)
    timed(f"{name}: {' '.join(arguments)}", lambda: vdiff(*arguments))
    students = [checkpoint.load(folder) for folder in sorted(run.glob("base_*"))]
    last = next(each for each in students if each.card.num_steps == NUM_STEPS)
    return checkpoint.load(run / "original"), last


def prepare(stranger: Stranger, teacher: Path, store: Path) -> None:
    """The pictures to distill on: the digits, or those that the teacher draws in 16 steps, of other
    seeds than what is measured.
    """
    source = Path("digits")
    if stranger.num_drawn:
        source = store.with_suffix(".zip")
        seeds = f"{FIRST_SEED}-{FIRST_SEED + stranger.num_drawn - 1}"
        drawn = ("--steps", "16", "--seeds", seeds, "--out", str(source))
        vdiff("sample", "--checkpoint", str(teacher), *drawn)
    else:
        digits.write_folder(source)
    vdiff("prepare", str(source), "--out", str(store), "--size", str(stranger.size))


def vdiff(*arguments: str) -> None:
    """One command, as on a command line; the benchmark ends where it fails."""
    code = cli.main(["--quiet", *arguments])
    if code:
        sys.exit(code)


def timed(what: str, work: Callable[[], None]) -> None:
    """Do it, and print the seconds of CPU time that it took."""
    begun = time.process_time()
    work()
    print(f"{what}: {time.process_time() - begun:.0f} s of CPU time", flush=True)


def main() -> None:
    """Distill what is asked for and print the tables; exit code 1 where a student is further."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--foreign", type=Path, required=True)
    parser.add_argument("--only", choices=STRANGERS, nargs="*", default=list(STRANGERS))
    given = parser.parse_args()
    foreign = given.foreign.resolve()
    given.work.mkdir(parents=True, exist_ok=True)
    os.chdir(given.work)
    is_closer = True
    for name in given.only:
        print(f"\n{name}")
        own, best = compare(*distilled(name, foreign), Path(f"{name}.png"))
        print(f"{name}: student {own:.4f}, teacher's best {best:.4f}: {best / own:.2f} x closer")
        is_closer &= own < best
    sys.exit(0 if is_closer else 1)


if __name__ == "__main__":
    main()
