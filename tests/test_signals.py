"""Signals and the launcher's end, as a run hears of them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vdiff.cli.signals import LAUNCHER, StopRequest


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


def test_an_orphan_that_waits_for_others_ends_all_the_same(tmp_path: Path) -> None:
    """As where a launcher dies before its processes have found each other."""
    waits = (
        "import os, time; from pathlib import Path; from vdiff.cli import signals; signals.LEAVE_SECONDS = 0.2\n"
        "signals.StopRequest(follows_parent=True); Path('pid').write_text(str(os.getpid())); time.sleep(99)"
    )
    launches = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {waits!r}])"
    with subprocess.Popen([sys.executable, "-c", launches], cwd=tmp_path) as launcher:
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        worker = Path("/proc") / (tmp_path / "pid").read_text()
        assert worker.exists()
        launcher.kill()
    wait_until(lambda: not is_at_work(worker))


def is_at_work(process: Path) -> bool:
    try:
        return ") Z " not in (process / "stat").read_text()
    except OSError:
        return False


def wait_until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)
