"""Whole processes: signals, two processes that act as one,
and that nothing is lost or left over.
"""

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import noise_picture
from tests.forked import Forked, Work, vdiff_and_workers
from tests.tiny import RECIPE, TinyRun
from vdiff import cli
from vdiff.data.prepare import prepare
from vdiff.model_folder import checkpoint
from vdiff.runs import status
from vdiff.runs.folder import RunFolder, points

pytestmark = pytest.mark.usefixtures("usual_signals")

SECONDS = 180.0
CHANGES = [
    (
        "network={width: 4, multipliers: [1], blocks: 1, norm_groups: 1, mid_attention: "
        "false, num_classes: 2}"
    ),
    "network.dropout=0.1",
    (
        "train={updates: 150, batch_size: 5, micro_batch: 5, learning_rate: 1.0e-4, ema: "
        "0.9, log_every: 5}"
    ),
    "sample={num_images: 1}",
]
"""As in test_training: no weight whose gradient is 0 but for rounding.
A batch of 5 makes the shares uneven.
"""

VDIFF = [sys.executable, "-m", "vdiff"]
TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc_per_node",
    "2",
    "-m",
    "vdiff",
]


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A store, a recipe and the run `unbroken`, in a folder that no test writes to."""
    from vdiff.recipe.strict_yaml import dump

    folder = tmp_path_factory.mktemp("unbroken")
    for index in range(12):
        path = folder / "pictures" / ("cat", "dog")[index % 2] / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise_picture(12, 10, index).save(path)
    prepare(folder / "pictures", folder / "store", sizes=[8])
    made = TinyRun(folder, RECIPE.format(store=folder / "store"))
    made.text = dump(made.recipe(*CHANGES).model_dump(mode="json"))
    (folder / "recipe.yaml").write_text(made.text)
    made.base(run="runs/unbroken")
    return made


@pytest.fixture
def unbroken(made_once: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyRun:
    """A run in one process that nobody stopped, called `unbroken`;
    the current folder holds its recipe.
    """
    shutil.copytree(made_once.path / "runs", tmp_path / "runs")
    shutil.copy(made_once.path / "recipe.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return TinyRun(tmp_path, made_once.text)


VARIABLES = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
"""As in this process, see conftest."""


def start(
    *arguments: str,
    run: str = "run",
    command: str = "train",
    work: Work = vdiff_and_workers,
) -> Forked:
    """A command in a process that has everything imported, as the workers that it starts have."""
    return Forked(work, [command, "--set", f"name={run}", *arguments], Path.cwd(), VARIABLES)


def start_anew(
    *arguments: str, program: list[str] = VDIFF, run: str = "run"
) -> "subprocess.Popen[str]":
    """A training in a process that begins with nothing, as it does when it is typed."""
    return subprocess.Popen(
        [*program, "train", "--set", f"name={run}", *arguments],
        env={**os.environ, **VARIABLES},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: "subprocess.Popen[str] | Forked") -> int:
    """The exit code; what it printed is shown when the test fails."""
    try:
        sys.stdout.write(process.communicate(timeout=SECONDS)[0])
    finally:
        process.kill()
        process.communicate()
    return process.returncode


def wait_for_update(log: Path, update: int) -> None:
    """Until the log tells of this update."""
    deadline = time.monotonic() + SECONDS
    while not log.exists() or f'"update": {update},' not in log.read_text():
        assert time.monotonic() < deadline, "no such update"
        time.sleep(0.01)


def children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def losses(run: str) -> list[float]:
    return [
        json.loads(line)["loss"]
        for line in (Path("runs") / run / "log.jsonl").read_text().splitlines()
    ]


def test_a_signal_ends_a_training_that_goes_on_where_it_was(unbroken: TinyRun) -> None:
    for number, code, update in ((signal.SIGTERM, 143, 10), (signal.SIGINT, 130, 40)):
        process = start()
        wait_for_update(Path("runs/run/log.jsonl"), update)
        process.send_signal(number)
        assert ended(process) == code
        assert not checkpoint.is_model_folder(Path("runs/run/original"))
        assert int(RunFolder(Path("runs/run")).points("original")[0].name) >= update
    assert ended(start()) == 0
    assert unbroken.hashes("runs/run") == unbroken.hashes("runs/unbroken")


def test_a_closed_terminal_saves_and_an_emergency_exit_leaves_a_run_that_goes_on(
    unbroken: TinyRun, capfd: pytest.CaptureFixture[str]
) -> None:
    place = RunFolder(Path("runs/run"))
    assert in_a_terminal_that_is_closed(*VDIFF, "train", "--set", "name=run", "--json") == 129
    stopped = status.read(place.status)
    assert stopped is not None
    assert (stopped.state, stopped.exit_code) == ("stopped", 129)
    assert place.points("original")

    process = start()
    wait_for_update(place.log, 40)
    process.send_signal(signal.SIGQUIT)
    assert ended(process) == -signal.SIGQUIT
    killed = status.read(place.status)
    assert killed is not None
    assert killed.state == "killed"
    assert cli.main(["inspect", "runs/run"]) == 0
    assert "killed, without a word" in capfd.readouterr().err

    process = start()
    wait_for_update(place.log, 70)
    for number in (
        signal.SIGPIPE,
        signal.SIGCHLD,
        signal.SIGURG,
        signal.SIGWINCH,
        signal.SIGXFSZ,
        signal.SIGTSTP,
    ):
        process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    wait_for_update(place.log, 85)
    process.send_signal(signal.SIGALRM)
    assert ended(process) == 142
    assert int(place.points("original")[0].name) >= 85
    assert ended(start()) == 0
    assert unbroken.hashes("runs/run") == unbroken.hashes("runs/unbroken")


def in_a_terminal_that_is_closed(*command: str) -> int:
    """The exit code of a training whose terminal goes away after ten updates,
    as when a connection is lost.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(command[0], command, {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm"})
    reader = threading.Thread(target=read_all, args=(terminal,), daemon=True)
    reader.start()
    try:
        wait_for_update(Path("runs/run/log.jsonl"), 10)
    finally:
        os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def read_all(terminal: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(terminal, 65536):
            pass


def test_what_slurm_and_torchrun_send_within_a_moment_counts_once(unbroken: TinyRun) -> None:
    """Slurm tells every process of a step, and torchrun, told too, tells its workers again."""
    process = start_anew(program=TORCHRUN)
    wait_for_update(Path("runs/run/log.jsonl"), 10)
    for pid in children(process.pid):
        os.kill(pid, signal.SIGTERM)
    process.terminate()
    assert ended(process) != 0
    told = status.read(Path("runs/run/status.json"))
    assert told is not None
    assert (told.state, told.exit_code) == ("stopped", 143)
    assert RunFolder(Path("runs/run")).points("original")
    assert ended(start("--gpus", "2", "--device", "cpu")) == 0
    assert losses("run") == pytest.approx(losses("unbroken"), rel=1e-5)


def test_two_processes_are_one(unbroken: TinyRun) -> None:
    assert ended(start_anew(program=TORCHRUN, run="two")) == 0
    assert losses("two") == pytest.approx(losses("unbroken"), rel=1e-5)
    one, two = (
        checkpoint.load(Path("runs") / run / "original").denoiser.network
        for run in ("unbroken", "two")
    )
    for weight, other in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(other, weight, rtol=0, atol=1e-5)

    process = start("--gpus", "2", "--device", "cpu")
    wait_for_update(Path("runs/run/log.jsonl"), 10)
    workers = children(process.pid)
    assert len(workers) == 2
    process.send_signal(signal.SIGTERM)
    assert ended(process) == 143
    assert [pid for pid in workers if Path(f"/proc/{pid}").exists()] == []
    assert not list(Path("runs/run").glob("**/.*partial*"))
    assert ended(start("--gpus", "2", "--device", "cpu")) == 0
    assert unbroken.hashes("runs/run") == unbroken.hashes("runs/two")

    two = ("--gpus", "2", "--device", "cpu")
    for out, more in (("one.npz", ()), ("two.npz", two)):
        drawn = (
            "--checkpoint",
            "original",
            "--seeds",
            "0-6",
            "--batch-size",
            "2",
            "--steps",
            "4",
            "--out",
            out,
        )
        assert ended(start(*drawn, *more, run="two", command="sample")) == 0
    with np.load("one.npz") as alone, np.load("two.npz") as together:
        assert together["seeds"].tolist() == list(range(7))
        assert np.array_equal(alone["images"], together["images"])


def with_a_weight_that_is_lost(arguments: Sequence[str]) -> int:
    """The command, where at update 40 a weight becomes infinite, once."""
    from vdiff.training.learner import Learner

    sound = Learner.step

    def step(self: Learner, *given: Any) -> Any:
        measured = sound(self, *given)
        if self.update == 40 and not self.rollbacks:
            next(self._network.parameters()).data.fill_(float("inf"))
        return measured

    Learner.step = step  # type: ignore[method-assign]
    return vdiff_and_workers(arguments)


def test_two_processes_go_back_together(unbroken: TinyRun) -> None:
    changes = ("train.save_every=20", "train.updates=60", "train.rollbacks=1")
    process = start(
        "--gpus",
        "2",
        "--device",
        "cpu",
        *(word for change in changes for word in ("--set", change)),
        work=with_a_weight_that_is_lost,
    )
    assert ended(process) == 0
    rates = [
        json.loads(line)["learning_rate"]
        for line in Path("runs/run/log.jsonl").read_text().splitlines()
    ]
    assert len(rates) == 12
    card = checkpoint.read_card(Path("runs/run/original"))
    assert card.updates == 60


def test_a_killed_process_ends_both_and_the_same_command_goes_on(unbroken: TinyRun) -> None:
    # without `micro_batch`: two processes find one together
    distill = (
        "distill={start_steps: 2, end_steps: 1, updates: 40, batch_size: 5, save_every: "
        "10, log_every: 5}"
    )
    changes = ("train.save_every=10", "train.updates=40", distill)
    more = (
        "--gpus",
        "2",
        "--device",
        "cpu",
        *(word for change in changes for word in ("--set", change)),
    )
    for command in ("train", "distill"):
        assert ended(start(*more, run="whole", command=command)) == 0
    for command, stage, victim in (("train", "original", 1), ("distill", "base_0", 0)):
        process = start(*more, command=command)
        wait_for_save(Path("runs/run/saves") / stage)
        workers = children(process.pid)
        os.kill(workers[victim], signal.SIGKILL)
        begun = time.monotonic()
        said = process.communicate(timeout=SECONDS)[0]
        assert (process.returncode, time.monotonic() - begun < 60) == (6, True), said
        assert f"process {victim} of the run was killed by signal 9" in said
        assert "Traceback" not in said
        assert [pid for pid in workers if Path(f"/proc/{pid}").exists()] == []
        told = status.read(Path("runs/run/status.json"), is_at_work=False)
        assert told is not None
        assert (told.state, told.exit_code) == (("killed", None) if victim == 0 else ("failed", 6))
        assert ended(start(*more, command=command)) == 0
    assert unbroken.hashes("runs/run") == unbroken.hashes("runs/whole")


def test_classes_are_left_out_alike_in_two_processes_and_after_a_stop(unbroken: TinyRun) -> None:
    more = ("--set", "train.label_drop=0.5", "--device", "cpu")
    two = ("--gpus", "2", *more)
    assert ended(start(*more, run="one")) == 0
    assert ended(start(*two, run="two")) == 0
    assert losses("two") == pytest.approx(losses("one"), rel=1e-5)
    assert losses("two") != pytest.approx(losses("unbroken"), rel=1e-5)
    process = start(*two)
    wait_for_update(Path("runs/run/log.jsonl"), 10)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == 143
    assert ended(start(*two)) == 0
    assert unbroken.hashes("runs/run") == unbroken.hashes("runs/two")


def wait_for_save(folder: Path) -> None:
    """Until a save is there whole."""
    deadline = time.monotonic() + SECONDS
    while not points(folder):
        assert time.monotonic() < deadline, "no save"
        time.sleep(0.01)


def test_a_run_does_not_outlive_accelerate_and_goes_on_from_what_it_saved(
    unbroken: TinyRun,
) -> None:
    """With one process, `accelerate launch` passes no signal on and dies of it."""
    accelerate = [
        sys.executable,
        "-m",
        "accelerate.commands.accelerate_cli",
        "launch",
        "--num_processes",
        "1",
        "--cpu",
    ]
    process = start_anew("--device", "cpu", program=[*accelerate, "-m", "vdiff"])
    wait_for_update(Path("runs/run/log.jsonl"), 10)
    process.terminate()
    # until its worker has left too, which writes to the same pipe
    process.communicate(timeout=SECONDS)
    told = status.read(Path("runs/run/status.json"), is_at_work=False)
    assert told is not None
    assert (told.state, told.exit_code) == ("stopped", 143)
    assert RunFolder(Path("runs/run")).points("original")
    assert ended(start()) == 0
    assert unbroken.hashes("runs/run") == unbroken.hashes("runs/unbroken")
