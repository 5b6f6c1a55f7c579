"""Is a run that was stopped and gone on with the very run that nobody stopped? A table over
processes and workers.

    python benchmarks/resume.py --points 20 --seed 0 --processes 1,2,4 --workers 0,2

A tiny chain (base and two students, 210 updates, on the CPU) is run once without a stop, with a
save after every update that is kept. Then it is stopped at `--points` updates, first and last ones,
saves and borders of stages among them, each time by new processes that go on where the ones before
stopped; several processes hear of a stop one update after the one that was told. Equal means: the
SHA-256 of every part of the save (weights, average, optimizer, ...) at every stop, of every model's
weights (their average) and of the log at the end. The reference of a number of processes has no
data workers, so runs with and without workers are compared too.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vdiff.chain.chain import Chain
from vdiff.chain.stage_run import Surroundings
from vdiff.cli.progress import FitLines
from vdiff.data.loader import batches
from vdiff.data.prepare import prepare
from vdiff.disk.whole_folder import sha256_of
from vdiff.errors import Stopped
from vdiff.images import images
from vdiff.machine.machine import Machine
from vdiff.machine.precision import Arithmetic
from vdiff.recipe import text as recipe_text
from vdiff.recipe.recipe import Recipe
from vdiff.runs import savepoint
from vdiff.runs.folder import STATE, RunFolder

STAGES = {"original": 90, "base_0": 60, "base_1": 60}
SAVE_EVERY = 20
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-3}
SECONDS = 300.0
"""So long may a start take; then it hangs."""

# No weight whose gradient is 0 but for rounding: Adam would move it at random. A batch of 6 makes
# uneven shares of 4.
RECIPE = f"""\
name: resume
seed: 3
data: {{path: STORE, size: 8, flip: true}}
network:
  {{width: 4, multipliers: [1], blocks: 1, norm_groups: 1, mid_attention: false,
    dropout: 0.1, num_classes: 2}}
diffusion: {{schedule: {{kind: cosine, grid: 64}}}}
train:
  {{updates: {STAGES["original"]}, batch_size: 6, warmup_updates: 10, ema: 0.9,
    learning_rate: 1.0e-4, log_every: 7}}
distill:
  {{start_steps: 8, end_steps: 2, updates: {STAGES["base_0"]}, batch_size: 6, ema: 0.9,
    dropout: true, learning_rate: 1.0e-4, log_every: 7}}
sample: {{num_images: 1}}
"""


class Place(NamedTuple):
    """An update of a stage, in the order in which a chain comes to them."""

    stage: int
    update: int

    @property
    def name(self) -> str:
        return list(STAGES)[self.stage]

    @property
    def is_border(self) -> bool:
        return self.update == STAGES[self.name]

    @property
    def is_last(self) -> bool:
        return self.is_border and self.stage == len(STAGES) - 1


def main() -> int:
    """Print the tables; 1 if anything differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=numbers, default=[1, 2, 4])
    parser.add_argument("--workers", type=numbers, default=[0, 2])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(**json.loads(options.worker))
    with tempfile.TemporaryDirectory() as folder:
        return (
            0 if Benchmark(Path(folder), places(options.points, options.seed), options).run() else 1
        )


def numbers(text: str) -> list[int]:
    """`1,2,4` as numbers."""
    return [int(word) for word in text.split(",")]


def places(count: int, seed: int) -> list[Place]:
    """Where the chain is stopped, in order: what is special always, the rest by chance."""
    special = {Place(0, 1), Place(len(STAGES) - 1, STAGES["base_1"])}
    for stage, updates in enumerate(STAGES.values()):
        special |= {
            Place(stage, updates),
            Place(stage, updates - 1),
            Place(stage, SAVE_EVERY * (1 + stage)),
        }
    every = [
        Place(stage, update)
        for stage, name in enumerate(STAGES)
        for update in range(1, STAGES[name] + 1)
    ]
    others = sorted(set(every) - special)
    return sorted([*special, *random.Random(seed).sample(others, max(0, count - len(special)))])


def heard(told: Place, before: Place | None, processes: int) -> Place:
    """Where processes stop of which one is told at a place:
    several let one update pass, or finish the stage.

    before: where they go on from; they are asked after every update.
    """
    asked = (
        max(told.update, before.update + 1)
        if before and before.stage == told.stage
        else told.update
    )
    return told._replace(update=min(asked + (processes > 1), STAGES[told.name]))


class Benchmark:
    """All configurations, one after the other, in a folder of their own."""

    def __init__(self, folder: Path, stops: Sequence[Place], options: argparse.Namespace) -> None:
        self._folder, self._stops, self._options = folder, stops, options
        make_store(folder)
        self._is_good = True

    def run(self) -> bool:
        """Whether everything is equal, and all numbers of processes agree."""
        at_saves = sum(stop.update % SAVE_EVERY == 0 for stop in self._stops)
        at_borders = sum(stop.is_border for stop in self._stops)
        what = (
            f"torch {torch.__version__}, CPU, {self._options.precision}, seed {self._options.seed}"
        )
        print(f"{what}: {sum(STAGES.values())} updates in 3 stages,")
        print(
            f"stopped at {len(self._stops)} updates, "
            f"{at_saves} of them saves and {at_borders} ends of stages\n"
        )
        print(
            "| processes | workers | equal at the stops | equal at the end | losses against 1 "
            "process | minutes |"
        )
        print("|---|---|---|---|---|---|", flush=True)
        for processes in self._options.processes:
            self._start(f"unbroken-{processes}", processes, keep=True)
            for workers in self._options.workers:
                self._row(processes, workers)
        if len(self._options.processes) > 1:
            self._mixed()
        return self._is_good

    def _row(self, processes: int, workers: int) -> None:
        begun, run = time.monotonic(), f"broken-{processes}-{workers}"
        found: list[bool] = []
        before: Place | None = None
        for number, told in enumerate(self._stops):
            stop = heard(told, before, processes)
            if before is None or stop > before:  # else it is there already
                is_right = self._start(
                    run, processes, workers, told, number % processes, ends=stop.is_last
                )
                what, pairs = f"{run} from {before} to {stop}", self._at(run, stop)
                found += [
                    is_right and self._same(f"{what}: {name}", *pair)
                    for name, pair in pairs.items()
                ]
                before = stop
        last = [self._same(f"{run}: {name}", *pair) for name, pair in self._end(run).items()]
        drift = self._drift(f"unbroken-{self._options.processes[0]}", run)
        equal = " | ".join(f"{sum(which)} of {len(which)}" for which in (found, last))
        minutes = (time.monotonic() - begun) / 60
        print(f"| {processes} | {workers} | {equal} | {drift:.1e} | {minutes:.1f} |", flush=True)

    def _at(self, run: str, stop: Place) -> dict[str, tuple[str, str]]:
        """Hashes of all parts of the save at a stop, here and in the unbroken run."""
        if stop.is_border:  # it has become a model
            return {
                "model": self._pair(run, f"{stop.name}/unet/diffusion_pytorch_model.safetensors")
            }
        point = f"saves/{stop.name}/{stop.update:09d}"
        here, there = (files(self._folder / name / point / STATE) for name in (run, reference(run)))
        return {
            name: (here.get(name, "missing here"), there.get(name, "missing there"))
            for name in {**here, **there}
        }

    def _end(self, run: str) -> dict[str, tuple[str, str]]:
        weights = {name: f"{name}/unet/diffusion_pytorch_model.safetensors" for name in STAGES}
        return {
            name: self._pair(run, path) for name, path in {**weights, "log": "log.jsonl"}.items()
        }

    def _pair(self, run: str, path: str) -> tuple[str, str]:
        here, there = (self._folder / name / path for name in (run, reference(run)))
        return (sha256_of(here) if here.is_file() else "missing here", sha256_of(there))

    def _same(self, what: str, here: str, there: str) -> bool:
        if here != there:
            self._is_good = False
            print(f"DIFFERENT {what}: {here} instead of {there}", file=sys.stderr, flush=True)
        return here == there

    def _drift(self, expected: str, run: str) -> float:
        """The largest relative difference of the losses of two logs."""
        one, other = (losses(self._folder / name / "log.jsonl") for name in (expected, run))
        drift = float(np.abs(other / one - 1).max()) if one.shape == other.shape else float("inf")
        self._is_good &= drift <= TOLERANCE[self._options.precision]
        return drift

    def _mixed(self) -> None:
        """Stopped with two processes and gone on with other numbers of them, back and forth."""
        others = [count for count in (1, 4) if count in self._options.processes]
        counts = sorted({2, *others})
        equal = same_batches(self._folder, counts)
        self._is_good &= equal == sum(STAGES.values())
        names = ", ".join(map(str, counts))
        print(
            f"\nthe same batches with {names} processes: {equal} of {sum(STAGES.values())} updates"
        )
        for other in others:
            run = f"broken-2-then-{other}"
            for stop, now in (
                (Place(0, 33), 2),
                (Place(1, 1), other),
                (Place(1, 25), 2),
                (Place(2, 60), other),
            ):
                self._is_good &= self._start(run, now, stop=stop, ends=stop.is_last)
            drift = self._drift(f"unbroken-{self._options.processes[0]}", run)
            print(
                f"2 processes, then {other}, 2 and {other} again: losses within {drift:.1e}",
                flush=True,
            )

    def _start(
        self,
        run: str,
        processes: int,
        workers: int = 0,
        stop: Place | None = None,
        told: int = 0,
        keep: bool = False,
        ends: bool = False,
    ) -> bool:
        """Start the run, or go on with it, until a stop; whether it ended as it should.

        told: the rank of the one process that hears of the stop.
        keep: save after every update, and keep all saves.
        ends: whether the chain is complete before it stops.
        """
        what = {
            "folder": str(self._folder),
            "run": run,
            "workers": workers,
            "stop": stop,
            "told": told,
            "keep": keep,
        }
        what["precision"] = self._options.precision
        port = free_port()
        started = [start(rank, processes, port, json.dumps(what)) for rank in range(processes)]
        codes = finish(started)
        wanted = 0 if stop is None or ends else 128 + signal.SIGTERM
        if codes != [wanted] * processes:
            self._is_good = False
            print(
                f"DIFFERENT {run} to {stop}: exit codes {codes} instead of {wanted}",
                file=sys.stderr,
                flush=True,
            )
        return codes == [wanted] * processes


def start(rank: int, processes: int, port: int, what: str) -> "subprocess.Popen[bytes]":
    """One process of a run, as a launcher starts it."""
    given = {"OMP_NUM_THREADS": 1, "ACCELERATE_USE_CPU": "true"}
    if processes > 1:
        given |= {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": processes,
            "LOCAL_WORLD_SIZE": processes,
        }
        given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = os.environ | {name: str(value) for name, value in given.items()}
    return subprocess.Popen([sys.executable, __file__, "--worker", what], env=environment)


def finish(started: Sequence["subprocess.Popen[bytes]"]) -> list[int | None]:
    """Exit codes; None for what had to be killed."""
    deadline = time.monotonic() + SECONDS
    codes: list[int | None] = []
    for process in started:
        try:
            codes.append(process.wait(max(0.0, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            codes.append(None)
    return codes


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class StopsWhenTold(FitLines):
    """Follows a run, and asks it to stop when it comes to a place."""

    def __init__(self, stop: Sequence[int] | None) -> None:
        super().__init__(lambda text: None)
        self._stop, self._stage, self._update = stop, 0, 0

    def begin(self, stage: str, updates: int, first_update: int) -> None:
        super().begin(stage, updates, first_update)
        self._stage, self._update = list(STAGES).index(stage), first_update

    def update(self, update: int, *measured: float) -> None:
        super().update(update, *measured)
        self._update = update

    def __call__(self) -> int:
        is_there = self._stop is not None and [self._stage, self._update] >= list(self._stop)
        return signal.SIGTERM if is_there else 0


def work(
    folder: str,
    run: str,
    workers: int,
    stop: Sequence[int] | None,
    told: int,
    keep: bool,
    precision: Arithmetic,
) -> int:
    """What one process of a run does: train, then distill; gives the exit code of `vdiff`."""
    torch.set_num_threads(1)
    if keep:
        savepoint.NUM_KEPT, savepoint.clear = sys.maxsize, lambda folder: None
    text = recipe_text.parse(RECIPE.replace("STORE", str(Path(folder) / "store")), "recipe.yaml")
    every = 1 if keep else SAVE_EVERY
    changes = [
        f"data.workers={workers}",
        f"train.save_every={every}",
        f"distill.save_every={every}",
    ]
    recipe = recipe_text.validate(Recipe, recipe_text.set_values(text, changes))
    machine = Machine(precision, "cpu")
    watch = StopsWhenTold(stop if machine.rank == told else None)
    chain = Chain(
        Surroundings(recipe, text.text, RunFolder(Path(folder) / run), machine, watch, watch)
    )
    with left(machine):
        try:
            chain.train()
            if machine.any(bool(watch())):
                return 128 + signal.SIGTERM
            chain.distill()
        except Stopped as news:
            return news.exit_code
    return 0


@contextmanager
def left(machine: Machine) -> Iterator[None]:
    """The other processes are left in good order."""
    try:
        yield
    finally:
        machine.close()


def make_store(folder: Path) -> None:
    """Sixty pictures of noise in two classes."""
    rng = np.random.default_rng(0)
    for index in range(60):
        path = folder / "pictures" / str(index % 2) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images.encode(rng.integers(0, 256, (3, 8, 8), np.uint8), "png"))
    prepare(folder / "pictures", folder / "store", sizes=[8])


def same_batches(folder: Path, counts: Sequence[int]) -> int:
    """In how many updates of the chain any number of processes sees the same pictures,
    in the same places.
    """
    text = recipe_text.parse(RECIPE.replace("STORE", str(folder / "store")), "recipe.yaml")
    recipe = recipe_text.validate(Recipe, text)
    found = recipe.data.open()
    equal = 0
    for stage, updates in enumerate(STAGES.values()):
        fixed: dict[str, Any] = {
            "seed": recipe.seed,
            "stage": stage,
            "batch_size": recipe.train.batch_size,
            "flip": True,
        }
        streams = {
            count: [batches(found, rank=rank, world_size=count, **fixed) for rank in range(count)]
            for count in counts
        }
        for _ in range(updates):
            seen = [torch.cat([next(share).images for share in streams[count]]) for count in counts]
            equal += all(torch.equal(seen[0], other) for other in seen)
    return equal


def reference(run: str) -> str:
    return f"unbroken-{run.split('-')[1]}"


def files(state: Path) -> dict[str, str]:
    """SHA-256 of each file of a save; empty where there is none."""
    if not state.is_file():
        return {}
    return {name: entry["sha256"] for name, entry in json.loads(state.read_text())["files"].items()}


def losses(log: Path) -> np.ndarray:
    return np.array([json.loads(line)["loss"] for line in log.read_text().splitlines()])


if __name__ == "__main__":
    sys.exit(main())
