"""Signals and the launcher's end, as a run hears of them; see test_launch for processes that wait for others."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

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


def test_a_ctrl_c_while_python_takes_itself_down_leaves_no_traceback() -> None:
    late = "atexit.register(os.kill, os.getpid(), signal.SIGINT)"
    code = f"import atexit, os, signal, sys; {late}; from vdiff.cli import main; sys.exit(main(['--version']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stderr == ""
