"""Several processes of one run: one that dies is noticed, and none outlives its launcher."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vdiff import cli
from vdiff.cli import launch
from vdiff.errors import MachineError, Stopped
from vdiff.machine.machine import Machine

WAITS = "import threading; threading.Event().wait(60)"
DEAF = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); open(sys.argv[1], 'w').close(); "
    + WAITS
)


def started(program: str, *arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", f"import sys; {program}", *arguments])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_is_noticed_while_another_waits_for_it(rank: int) -> None:
    workers = [started(WAITS), started(WAITS)]
    workers[rank].kill()
    with pytest.raises(
        MachineError, match=f"process {rank} of the run was killed by signal 9"
    ) as found:
        launch._watch(workers)
    assert "micro_batch" in found.value.fix
    assert workers[1 - rank].returncode == -signal.SIGTERM


def test_a_worker_that_does_not_leave_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "GRACE_SECONDS", 0.3)
    workers = [started(DEAF, str(tmp_path / "deaf")), started("raise SystemExit(3)")]
    assert becomes(lambda: (tmp_path / "deaf").exists())
    assert launch._watch(workers) == 3
    assert workers[0].returncode == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_that_is_asked_while_it_leaves_was_stopped_and_not_killed(
    number: signal.Signals,
) -> None:
    """Python puts the default back before it ends, and then a signal is the end at once."""
    leaving = (
        f"import os, signal; signal.signal({number:d}, signal.SIG_DFL); "
        f"os.kill(os.getpid(), {number:d})"
    )
    assert launch._watch([started(leaving), started("")], asked=[number]) == 128 + number
    with pytest.raises(MachineError, match=f"killed by signal {number:d}"):
        launch._watch([started(leaving), started("")], asked=[])


def test_workers_that_end_well_give_0() -> None:
    assert launch._watch([started(""), started("")]) == 0


IMPATIENT = """
import subprocess, sys
from vdiff.cli import launch
def worker(rank, count, port):
    return subprocess.Popen([sys.executable, "-c", sys.argv[1 + rank], sys.argv[3 + rank]])
launch._worker = worker
sys.exit(launch.start(2, "cpu"))
"""
SAVING = (
    "import os, signal, sys, time; signal.signal(signal.SIGINT, lambda number, frame: None); "
    "open(sys.argv[1], 'w').write(str(os.getpid())); end = time.monotonic() + 60\n"
    "while time.monotonic() < end: time.sleep(0.01)"
)


@pytest.mark.parametrize(("pause", "code"), [(0.0, None), (0.6, 130)])
def test_a_second_ctrl_c_ends_all_workers_at_once(
    tmp_path: Path, pause: float, code: int | None
) -> None:
    notes = [tmp_path / "0", tmp_path / "1"]
    command = [sys.executable, "-c", IMPATIENT, SAVING, SAVING, *map(str, notes)]
    process = subprocess.Popen(command)
    try:
        assert becomes(lambda: all(note.exists() and note.read_text() for note in notes))
        process.send_signal(signal.SIGINT)
        time.sleep(pause)
        process.send_signal(signal.SIGINT)
        if code is None:  # they count once
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1.0)
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == (code or 143)
    finally:
        process.kill()
    assert becomes(lambda: not any(is_alive(int(note.read_text())) for note in notes))


def test_workers_do_not_look_for_a_launcher_that_left_its_variables_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch would wait for a torchrun to listen for them."""
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("WORLD_SIZE", "7")
    monkeypatch.setenv("SLURM_JOB_ID", "3")
    given: list[dict[str, str]] = []
    monkeypatch.setattr(
        launch.subprocess, "Popen", lambda command, env, start_new_session: given.append(env)
    )
    launch._worker(1, 2, 1234)
    assert "TORCHELASTIC_USE_AGENT_STORE" not in given[0]
    assert (given[0]["RANK"], given[0]["WORLD_SIZE"], given[0]["SLURM_JOB_ID"]) == ("1", "2", "3")


def test_where_all_processes_are_started_gpus_says_that_it_starts_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.may_start()
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "h1",
    }.items():
        monkeypatch.setenv(name, value)
    assert not launch.may_start()
    assert "`--gpus` starts nothing here" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")  # one of them says it
    assert not launch.may_start()
    monkeypatch.setenv(launch.LAUNCHER, "7")
    assert not launch.may_start()
    assert capsys.readouterr().err == ""


CHILD = """
import os, sys, threading, time
from vdiff.cli import signals
signals.GRACE_SECONDS, signals._POLL_SECONDS = 0.2, 0.05
def tell():
    with open(sys.argv[1], "w") as file:
        file.write(f"{os.getpid()}.")
if sys.argv[2] == "importing":
    tell()
    end = time.monotonic() + 30
    while os.getppid() == signals._PARENT and time.monotonic() < end:
        time.sleep(0.01)
stop = signals.StopRequest(follows_parent=True)
tell()
threading.Event().wait(60)
"""
PARENT = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", *sys.argv[1:]])
while not os.path.exists(sys.argv[2]) or not open(sys.argv[2]).read().endswith("."):
    time.sleep(0.02)
os._exit(0)
"""


@pytest.mark.parametrize("doing", ["importing", "waiting"])
def test_a_worker_that_waits_for_ever_does_not_outlive_its_launcher(
    tmp_path: Path, doing: str
) -> None:
    note = tmp_path / "pid"
    subprocess.run([sys.executable, "-c", PARENT, CHILD, str(note), doing], check=True, timeout=30)
    pid = int(note.read_text().removesuffix(".") or -1)
    assert becomes(lambda: not is_alive(pid))


LATE = """
import os, signal, sys, time
from pathlib import Path
agent = os.getppid()
os.kill(agent, signal.SIGKILL)
while os.getppid() == agent:
    time.sleep(0.01)
from vdiff.cli import signals
signals.GRACE_SECONDS = 0.2
stop = signals.StopRequest(follows_parent=True)
Path(sys.argv[1]).write_text(f"{os.getpid()} {int(stop())}.")
time.sleep(60)
"""
SOON = """
import os, sys
from pathlib import Path
from vdiff.cli import signals
Path(sys.argv[1]).write_text(f"{os.getpid()} {int(signals.StopRequest(follows_parent=True)())}.")
"""


@pytest.mark.parametrize(
    "options", [("--standalone",), ("--master_port", str(launch._free_port()))]
)
@pytest.mark.parametrize(("worker", "number"), [(LATE, signal.SIGTERM), (SOON, 0)])
def test_a_torchrun_that_dies_before_its_worker_runs_any_of_vdiff_is_noticed(
    tmp_path: Path, worker: str, number: int, options: tuple[str, ...]
) -> None:
    (tmp_path / "worker.py").write_text(worker)
    note = tmp_path / "note"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *options,
        str(tmp_path / "worker.py"),
        str(note),
    ]
    with (tmp_path / "told").open("w") as told:  # not a pipe, whose end would be that of the worker
        ran = subprocess.run(command, timeout=60, stdout=told, stderr=told, check=False)
    assert ran.returncode == (0 if number == 0 else -signal.SIGKILL), (
        tmp_path / "told"
    ).read_text()
    assert becomes(lambda: note.exists() and note.read_text().endswith("."))
    pid, heard = note.read_text().removesuffix(".").split()
    assert int(heard) == number
    assert becomes(lambda: not is_alive(int(pid)))


def becomes(is_so: Callable[[], bool]) -> bool:
    """Whether it is so within 30 s; waits for it."""
    deadline = time.monotonic() + 30
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.02)
    return is_so()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_an_interrupt_while_the_first_modules_are_imported_shows_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Interrupted:
        def find_spec(self, name: str, *more: object) -> None:
            if name == "vdiff.cli.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "vdiff.cli.app", raising=False)
    monkeypatch.delattr(cli, "app", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    assert cli.main(["--version"]) == 130


@pytest.mark.parametrize(
    ("error", "backend", "is_orderly"),
    [
        (None, "nccl", True),
        (Stopped, "nccl", False),
        (MachineError, "nccl", False),
        (Stopped, "gloo", True),
        (MachineError, "gloo", True),
    ],
)
def test_a_process_with_an_error_of_its_own_does_not_wait_for_those_that_wait_for_it(
    error: type[BaseException] | None,
    backend: str,
    is_orderly: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine, said = Machine("fp32", "cpu"), []
    machine.processes.world_size = 2
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: backend)
    monkeypatch.setattr(
        torch.distributed.distributed_c10d, "_abort_process_group", lambda: said.append("abort")
    )
    monkeypatch.setattr(machine._accelerator, "end_training", lambda: said.append("order"))
    machine.close(error)
    assert said == ["order" if is_orderly else "abort"]
