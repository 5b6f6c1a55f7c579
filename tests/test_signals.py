"""Signals and the launcher's end, as a run hears of them;
see test_launch for processes that wait for others.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.tiny import TinyRun
from vdiff.cli.signals import LAUNCHER, StopRequest
from vdiff.errors import ASKING

pytestmark = pytest.mark.usefixtures("usual_signals")


@pytest.fixture
def ended_pid() -> Iterator[str]:
    """The id of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
        yield str(process.pid)


def asked() -> int:
    stop = StopRequest(follows_parent=True)
    try:
        return stop()
    finally:
        stop.close()


def test_a_launcher_that_ended_before_its_worker_looked_is_missed(
    ended_pid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asked() == 0
    monkeypatch.setenv(LAUNCHER, str(os.getppid()))
    assert asked() == 0
    monkeypatch.setenv(LAUNCHER, ended_pid)
    assert asked() == signal.SIGTERM


def test_a_ctrl_c_while_python_takes_itself_down_leaves_no_traceback() -> None:
    late = "atexit.register(os.kill, os.getpid(), signal.SIGINT)"
    code = (
        f"import atexit, os, signal, sys; {late}; from vdiff.cli import main; "
        "sys.exit(main(['--version']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stderr == ""


ENDS_AT_ONCE = [3, 4, 5, 6, 7, 8, 9, 11, 16, 31]
IGNORED = [13, 17, 18, 23, 25, 28]
PAUSES = [19, 20, 21, 22]
OF_LIBC = [32, 33]
NUMBERS = [number for number in range(1, 65) if sys.platform == "linux"]

SAVES = """
import pathlib, sys, time
from vdiff.cli import signals
signals.LAUNCHED_BURST_SECONDS = 1.0
stop = signals.StopRequest()
print("ready", flush=True)
end = time.monotonic() + 60
while not stop() and time.monotonic() < end:
    time.sleep(0.01)
time.sleep(float(sys.argv[2]))
pathlib.Path(sys.argv[1]).write_text("saved")
sys.exit(128 + stop())
"""
"""A run that hears a signal, saves for a while, and leaves."""


def started(note: Path, seconds: float = 0.0, **environment: str) -> "subprocess.Popen[str]":
    """SAVES at work, which takes so long to save."""
    command = [sys.executable, "-c", SAVES, str(note), str(seconds)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**alone(), **environment}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def alone() -> dict[str, str]:
    """The environment without what tells of a scheduler."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}


def ended(process: "subprocess.Popen[str]") -> int:
    try:
        process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


IN_A_LIBRARY = """
import ctypes, os, signal, sys
from vdiff.cli import signals
stop = signals.StopRequest(say=lambda: os.write(1, b"heard\\n"))
# the other threads take the signal: the library is not woken up by it
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
os.write(1, b"ready\\n")
ctypes.CDLL(None).usleep(int(sys.argv[1]))
os.write(1, b"left the library\\n")
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
stop.close()
sys.exit(128 + stop())
"""
"""A run inside a library, where Python calls none of its own handlers."""


def test_a_signal_is_acknowledged_at_once_whatever_the_main_thread_does() -> None:
    command = [sys.executable, "-c", IN_A_LIBRARY, "4_000_000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=alone())
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert said.splitlines() == ["heard", "left the library"]
    assert process.returncode == 130


def test_without_a_signal_nothing_is_acknowledged() -> None:
    command = [sys.executable, "-c", IN_A_LIBRARY, "1000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["ready", "left the library"]


@pytest.mark.parametrize("number", NUMBERS)
def test_every_signal_does_what_the_table_says(number: int, tmp_path: Path) -> None:
    process = started(tmp_path / "note")
    os.kill(process.pid, number)
    if number in PAUSES:
        # the system leaves out all but STOP where nobody could let the process go on, as without a
        # terminal
        while number == signal.SIGSTOP and state_of(process.pid) != "T":
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGCONT)
    if number in OF_LIBC:
        time.sleep(0.2)
        process.terminate()
        assert ended(process) in (-number, 143)
        return
    if number in IGNORED + PAUSES:
        process.terminate()
        assert ended(process) == 143
    elif number in ENDS_AT_ONCE:
        assert ended(process) == -number
    else:
        assert ended(process) == 128 + number
    assert (tmp_path / "note").exists() is (number not in ENDS_AT_ONCE)


def test_the_table_knows_every_signal_once() -> None:
    assert sorted([*ASKING, *ENDS_AT_ONCE, *IGNORED, *PAUSES, *OF_LIBC]) == NUMBERS


@pytest.mark.parametrize("scheduler", [{}, {"SLURM_JOB_ID": "7"}, {"TORCHELASTIC_RUN_ID": "x"}])
def test_signals_that_follow_one_another_quickly_count_once(
    scheduler: Mapping[str, str], tmp_path: Path
) -> None:
    bursts = [(count, milliseconds) for count in (2, 3) for milliseconds in (1, 2, 20, 200)]
    processes = [
        started(tmp_path / f"{count}-{pause}", 1.0, **scheduler) for count, pause in bursts
    ]
    for process, (count, milliseconds) in zip(processes, bursts, strict=True):
        for place in range(count):
            time.sleep(milliseconds / 1000 if place else 0)
            process.terminate()
    assert [ended(process) for process in processes] == [143] * len(bursts)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{count}-{pause}" for count, pause in bursts
    )


@pytest.mark.parametrize(
    ("environment", "pause", "is_order"),
    [({}, 1.0, True), ({"SLURM_JOB_ID": "7"}, 0.6, False), ({"SLURM_JOB_ID": "7"}, 2.5, True)],
)
def test_a_second_ctrl_c_is_an_order_to_leave_at_once(
    environment: Mapping[str, str], pause: float, is_order: bool, tmp_path: Path
) -> None:
    """Where a scheduler is at work, only after a longer time: 1 s in SAVES."""
    process = started(tmp_path / "note", 30.0 if is_order else 3.0, **environment)
    process.send_signal(signal.SIGTERM)
    time.sleep(pause)
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130 if is_order else 143)
    assert (tmp_path / "note").exists() is not is_order


def test_what_was_ignored_at_the_start_stays_ignored(tmp_path: Path) -> None:
    """As `nohup` does with HUP; INT is ignored by all that a shell starts with `&`,
    and heard all the same.
    """
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, signal.SIGINT)
    }
    try:
        process = started(tmp_path / "note")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert ended(process) == 130


STUCK = """
import os, sys
from vdiff.cli import signals
signals._POLL_SECONDS, signals._STUCK_SECONDS, signals.LAUNCHED_BURST_SECONDS = 0.05, 0.2, 0.1
signals.GRACE_SECONDS = 60.0 if sys.argv[1] == "joining" else 0.2
stop = signals.StopRequest()
stop._ear.nothing_is_lost = sys.argv[1] == "joining"
print("ready", flush=True)
import ctypes
mutex = ctypes.create_string_buffer(64)
for _ in range(2):  # the second time it waits for itself, in C; Python runs no handler meanwhile
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


@pytest.mark.parametrize(("doing", "launcher"), [("joining", ""), ("computing", LAUNCHER)])
def test_a_process_that_waits_in_a_library_for_ever_hears_nevertheless(
    doing: str, launcher: str
) -> None:
    """Started by a launcher, it waits for others that may be gone;
    while it joins them, nothing is lost.
    """
    environment = alone() | ({launcher: str(os.getpid())} if launcher else {})
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, doing], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGHUP)
    assert ended(process) == 129


FINISHED = """
import json, os, signal, sys
from vdiff.cli import app, console
number, commands = json.loads(sys.argv[1])
show = console.emit_json
def show_and_hear(content):
    os.kill(os.getpid(), number)
    show(content)
console.emit_json = show_and_hear
codes = []
for command in commands:
    sys.argv = ["vdiff", *command]
    codes.append(app.run(command))
print(json.dumps(codes), file=sys.stderr)
"""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_that_comes_when_the_work_is_done_changes_nothing(
    number: int, tiny_run: TinyRun
) -> None:
    small = ["--device", "cpu", "--json", "-q"]
    commands = [
        ["prepare", "pictures", "--size", "8", "--out", "again", "--json", "-q"],
        ["train", *small],
        ["distill", "--stages", "1", *small],
        ["sample", "--checkpoint", "original", "-n", "2", "--steps", "2", *small],
        ["evaluate", "--n", "2", "--metrics", "swd", *small],
    ]
    given = json.dumps([number, commands])
    done = subprocess.run(
        [sys.executable, "-c", FINISHED, given],
        cwd=tiny_run.path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr.splitlines()[-1]) == [0] * len(commands), done.stderr


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM, ASKING[-1]])
def test_a_signal_that_comes_while_python_takes_itself_down_changes_nothing(number: int) -> None:
    late = f"atexit.register(os.kill, os.getpid(), {number:d})"
    code = (
        f"import atexit, os, signal, sys; {late}; from vdiff.cli import main; "
        "sys.argv[1:] = ['--version']; "
    )
    done = subprocess.run(
        [sys.executable, "-c", code + "sys.exit(main())"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
