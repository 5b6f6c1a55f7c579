"""Processes that begin with everything imported:
as those of a command, without the seconds that torch takes to load.

For tests of what several processes say and do. Tests of starts, launchers, terminals and memory
need real ones.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "torch",
        "torch._dynamo",
        "accelerate.tracking",
        "vdiff.cli.app",
        "vdiff.chain.chain",
        "vdiff.evaluation.evaluate",
    ]
)

Work = Callable[[Sequence[str]], int]
"""What a process does with its arguments; the result is its exit code."""


def vdiff(arguments: Sequence[str]) -> int:
    """The command line, as `python -m vdiff` runs it."""
    from vdiff.cli import main

    sys.argv = ["vdiff", *arguments]
    return main()


def vdiff_and_workers(arguments: Sequence[str]) -> int:
    """As `vdiff`; the processes that `--gpus` starts are forks of this one,
    in which everything is imported.
    """
    from vdiff.cli import launch

    # what it asks of the module `subprocess`; the rest of the launcher stays as it is
    launch.subprocess = SimpleNamespace(Popen=_Worker)  # type: ignore[assignment]
    return vdiff(arguments)


class _Worker:
    """A fork that does what `python -m vdiff ...` does, as far as a launcher uses a
    `subprocess.Popen`.
    """

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], start_new_session: bool
    ) -> None:
        assert list(command[:3]) == [sys.executable, "-m", "vdiff"]
        assert start_new_session
        self.returncode: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            self._work(command[3:], env)

    def _work(self, arguments: Sequence[str], variables: Mapping[str, str]) -> NoReturn:
        code = 1
        try:
            os.setsid()
            for number in signal.valid_signals():
                # a new program starts with the usual handlers, and with those signals ignored that
                # were before
                if callable(signal.getsignal(number)):
                    signal.signal(number, signal.SIG_DFL)
            _take(variables)
            code = vdiff(arguments)
            sys.stdout.flush()
        finally:
            os._exit(code)

    def poll(self) -> int | None:
        """The exit code, negative for a signal that ended it; None while it works."""
        if self.returncode is None:
            pid, state = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(state)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it is there still."""
        if self.poll() is None:
            os.kill(self._pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


class Forked:
    """A process in a folder, with more variables than this one has;
    to be used as a `subprocess.Popen` is.
    """

    def __init__(
        self, work: Work, arguments: Sequence[str], folder: Path, variables: Mapping[str, str]
    ) -> None:
        with tempfile.NamedTemporaryFile(delete=False) as said:
            self._said = Path(said.name)
        everything = {**os.environ, **variables}
        given = (work, list(arguments), str(folder), everything, str(self._said))
        self._process = CONTEXT.Process(target=_run, args=given)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal that ended it; None while it works."""
        return self._process.exitcode

    @property
    def pid(self) -> int:
        """Its number in the system."""
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """As `returncode`."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it is there still."""
        if self.returncode is None and self._process.pid is not None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Wait for its end; what it said.   Errors: subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("forked", timeout or 0.0)
        return self._said.read_text(errors="replace"), None


def _run(
    work: Work, arguments: Sequence[str], folder: str, variables: Mapping[str, str], said: str
) -> None:
    output = os.open(said, os.O_WRONLY | os.O_APPEND)
    for number in (1, 2):
        os.dup2(output, number)
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)  # the tests may run under `nohup` and with `&`
    _take(variables)
    os.chdir(folder)
    code = work(arguments)
    sys.stdout.flush()
    os._exit(code)


def _take(variables: Mapping[str, str]) -> None:
    """Have these variables and no others, and what torch reads of them while it is imported."""
    import torch

    os.environ.clear()
    os.environ.update(variables)
    if "OMP_NUM_THREADS" in variables:
        torch.set_num_threads(int(variables["OMP_NUM_THREADS"]))
