"""What does each signal do to a training, and do signals that follow one
another quickly count once?

    python benchmarks/signals.py --folder /somewhere/on/the/disk
    python benchmarks/signals.py --folder /somewhere/on/the/disk --bursts 12 --forms
    alone,gpus,torchrun

The first prints a row per signal number, all sent to one run that goes on each time; in the end its
weights and its log have to be those of a run that nobody disturbed. The second prints in how many
of so many trainings nothing was lost when two or three TERMs came some milliseconds apart: to a
training alone, to `--gpus 2` and to torchrun with two processes, where each of the processes gets
its own and the launcher passes one on, as it happens in Slurm. Needs Linux. On two cores, the first
takes about two minutes, and each form of the second ten to forty.
"""

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from vdiff import cli
from vdiff.data.prepare import prepare
from vdiff.errors import ASKING
from vdiff.images import images
from vdiff.reporting import inspection
from vdiff.runs import status
from vdiff.runs.folder import RunFolder

RECIPE = """\
name: run
data: {path: store, size: 8, channels: 1}
network: {width: 4, multipliers: [1], blocks: 1, norm_groups: 1, mid_attention: false}
train: {updates: UPDATES, batch_size: 4, learning_rate: 1.0e-3, ema: 0.9,
        log_every: 1, save_every: 50}
distill: {start_steps: 2, end_steps: 1, updates: 1}
sample: {num_images: 1}
"""
UPDATES, FOREVER = 1500, 1_000_000
SECONDS = 120.0
COMMAND = ("train", "--device", "cpu", "-q", "--set")
TORCHRUN = (
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc_per_node",
    "2",
    "-m",
    "vdiff",
)
PAUSES = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
BURSTS = [(count, milliseconds) for count in (2, 3) for milliseconds in (1, 2, 20, 200)]


class Training:
    """A training at work; `pid` is that of the process which was started."""

    def __init__(self, pid: int, run: RunFolder) -> None:
        self.pid, self.run = pid, run
        self._code: int | None = None

    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it works."""
        if self._code is None:
            pid, ended = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(ended) if pid else None
        return self._code

    def ended(self) -> int:
        """The exit code, when it has ended by itself."""
        until(lambda: self.code() is not None)
        return self._code or 0

    def updates(self, more: int) -> bool:
        """Wait for so many more updates; False if it ends before."""
        before = last_update(self.run.log)
        until(lambda: last_update(self.run.log) >= before + more or self.code() is not None)
        return self.code() is None

    def family(self) -> list[int]:
        """The processes that it has started."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(pid) for pid in children]


def main() -> int:
    """Print the table that was asked for; 1 if anything was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where the runs go")
    parser.add_argument("--bursts", type=int, metavar="N", help="so many trainings for each burst")
    parser.add_argument(
        "--forms", default="alone", help="alone, gpus and torchrun, or some of them"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    for number in (
        signal.SIGHUP,
        signal.SIGQUIT,
    ):  # else nobody hears them when this runs under `nohup` or with `&`
        signal.signal(number, signal.SIG_DFL)
    os.environ |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        os.chdir(folder)
        make_store()
        if options.bursts:
            return bursts(options.bursts, options.forms.split(","))
        return every_number()


def every_number() -> int:
    """A row per signal."""
    Path("recipe.yaml").write_text(RECIPE.replace("UPDATES", str(UPDATES)))
    forked("unbroken").ended()
    print("| signal | | exit code | status | what |\n|---|---|---|---|---|", flush=True)
    training, is_good = forked("run"), True
    for number in range(1, 65):
        if not training.updates(5):
            raise SystemExit(f"it ended by itself with {training.ended()} before signal {number}")
        os.kill(training.pid, number)
        if number in PAUSES:
            time.sleep(0.2)
            os.kill(training.pid, signal.SIGCONT)
        if number not in ASKING and training.updates(5):
            row = ("", "running", "paused, goes on after CONT" if number in PAUSES else "ignored")
        else:
            at, code = last_update(training.run.log), training.ended()
            row, is_whole = how_it_ended(training.run, code, at)
            is_good &= is_whole
            training = forked("run")
        name = (
            signal.Signals(number).name if number in signal.valid_signals() and number < 35 else ""
        )
        print(f"| {number} | {name.removeprefix('SIG')} | {' | '.join(row)} |", flush=True)
    training.ended()
    same = fingerprint("run") == fingerprint("unbroken")
    print(
        f"\nweights and log are {'those' if same else 'NOT those'} of the run that nobody disturbed"
    )
    return 0 if is_good and same else 1


def how_it_ended(run: RunFolder, code: int, update: int) -> tuple[tuple[str, str, str], bool]:
    """Cells of the table, and whether it is as it should be.

    update: the last one of the log before the end.
    """
    told = status.read(run.status)
    rows = inspection.run(run.path, verify=True)["models"]
    saved = int(run.points("original")[0].name)
    is_whole = not any(row["problems"] for row in rows)
    asked = code > 128
    is_right = told is not None and told.state == ("stopped" if asked else "killed") and is_whole
    lost = max(update - saved, 0)
    what = (
        "saved and left"
        if asked and lost == 0
        else f"the end at once, {lost} updates to be done again"
    )
    return (
        str(code),
        told.state if told else "?",
        what if is_whole else f"DAMAGED: {rows}",
    ), is_right


def bursts(times: int, forms: Iterable[str]) -> int:
    """A row per form and burst."""
    Path("recipe.yaml").write_text(
        RECIPE.replace("UPDATES", str(FOREVER)).replace("save_every: 50", "save_every: 999999")
    )
    print("| training | TERMs | apart | nothing lost |\n|---|---|---|---|", flush=True)
    is_good = True
    for form in forms:
        for count, milliseconds in BURSTS:
            kept = sum(is_kept(form, count, milliseconds / 1000) for _ in range(times))
            print(f"| {form} | {count} | {milliseconds} ms | {kept} of {times} |", flush=True)
            is_good &= kept == times
    return 0 if is_good else 1


def is_kept(form: str, count: int, pause: float) -> bool:
    """Whether a burst that comes after some updates loses nothing."""
    training = forked(form) if form == "alone" else spawned(form)
    if not training.updates(3):
        raise SystemExit(f"it ended by itself with {training.ended()}")
    workers = training.family() if form != "alone" else []
    for place in range(count):
        time.sleep(pause if place else 0)
        for pid in [*(workers if place != 1 else []), training.pid]:
            os.kill(pid, signal.SIGTERM)
    update, code = last_update(training.run.log), training.ended()
    told, points = status.read(training.run.status), training.run.points("original")
    is_stopped = told is not None and (told.state, told.exit_code) == ("stopped", 143)
    return code != 0 and is_stopped and bool(points) and int(points[0].name) >= update


def forked(name: str) -> Training:
    """A training in a copy of this process, which has imported everything already."""
    pid = os.fork()
    if pid == 0:
        sys.argv = ["vdiff", *COMMAND, f"name={name}"]
        code = cli.main()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # else it would leave `main`, and take the folder of all of them with it
    return Training(pid, RunFolder(Path("runs") / name))


def spawned(form: str) -> Training:
    """A training in two processes, by `--gpus` or torchrun."""
    program = [sys.executable, "-m", "vdiff"] if form == "gpus" else list(TORCHRUN)
    more = ("--gpus", "2") if form == "gpus" else ()
    with Path(f"{form}.log").open("a") as said:
        command = [*program, *COMMAND, f"name={form}", *more]
        process = subprocess.Popen(command, stdout=said, stderr=said)
    return Training(process.pid, RunFolder(Path("runs") / form))


def make_store() -> None:
    """Sixty pictures of noise."""
    rng = np.random.default_rng(0)
    Path("pictures").mkdir()
    for index in range(60):
        picture = rng.integers(0, 256, (1, 8, 8), np.uint8)
        Path(f"pictures/{index}.png").write_bytes(images.encode(picture, "png"))
    prepare(Path("pictures"), Path("store"), sizes=[8], channels=1)


def fingerprint(name: str) -> tuple[str, str]:
    """SHA-256 of weights and log."""
    run = RunFolder(Path("runs") / name)
    files = run.model("original") / "unet/diffusion_pytorch_model.safetensors", run.log
    weights, log = (hashlib.sha256(path.read_bytes()).hexdigest() for path in files)
    return weights, log


def last_update(log: Path) -> int:
    """The number in the last line of a log; 0 where there is none."""
    lines = log.read_bytes().splitlines() if log.exists() else []
    return int(lines[-1].partition(b'"update": ')[2].partition(b",")[0] or 0) if lines else 0


def until(is_so: Callable[[], object]) -> None:
    """Wait for it; SystemExit if that takes too long."""
    deadline = time.monotonic() + SECONDS
    while not is_so():
        if time.monotonic() > deadline:
            raise SystemExit(f"nothing happened in {SECONDS:.0f} s")
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main())
