"""The command line inside one long-lived process, for faults that need no process of their own."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .process import HANG_SECONDS

_CALLS = 60
"""A server is replaced after so many, so that what one may gather does not add up."""


@dataclass(frozen=True)
class Ended:
    """How a command ended. code: None where it hung, negative where the process died with it.

    grown_bytes: how much its memory grew at the peak.
    held: files and threads it did not let go of.
    """

    code: int | None
    output: str
    seconds: float = 0.0
    grown_bytes: int = 0
    held: list[str] = field(default_factory=list)


Meanwhile = Callable[[int], Callable[[], None] | None]


class Service:
    """Runs `vdiff ...` in a server, with a fresh one where the last has died."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        self._calls = 0
        self._talk = tempfile.TemporaryFile()  # noqa: SIM115 - what servers say when they die
        self.import_seconds = 0.0

    def __call__(
        self,
        folder: Path,
        *arguments: str,
        timeout: float = HANG_SECONDS,
        meanwhile: Meanwhile | None = None,
        fails: Mapping[str, int] | None = None,
    ) -> Ended:
        """Run a command in `folder`.

        meanwhile: called with the server's process id while it works; what that returns, when the
        command has ended.
        fails: {errno, at, times}: the openings of files from number `at` on that are refused, so
        many times.
        """
        server = self._ready()
        self._calls += 1
        self._write(json.dumps({"cwd": str(folder), "arguments": arguments, "fails": fails}))
        undo = meanwhile(server.pid) if meanwhile is not None else None
        line = self._read(timeout)
        if undo is not None:
            undo()
        if line:
            return Ended(**json.loads(line))
        code = self._code(server)
        self._stop()
        return Ended(code, self._said())

    def renew(self) -> None:
        """Take a fresh server for the next command."""
        self._stop()

    def close(self) -> None:
        """End the server; nothing can be run after that."""
        self._stop()
        self._talk.close()

    def _stop(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.communicate()
            self._server = None

    def _ready(self) -> "subprocess.Popen[bytes]":
        if self._calls >= _CALLS:
            self._stop()
        if self._server is None:
            began = time.monotonic()
            self._calls = 0
            self._talk.seek(0)
            self._talk.truncate()
            self._server = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("server.py"))],
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "ACCELERATE_USE_CPU": "true",
                    "NO_COLOR": "1",
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._talk,
            )
            if self._read(3 * HANG_SECONDS) != "ready":
                self._stop()
                raise RuntimeError(f"the server does not start: {self._said()}")
            self.import_seconds = time.monotonic() - began
        return self._server

    def _write(self, line: str) -> None:
        assert self._server is not None
        assert self._server.stdin is not None
        self._server.stdin.write(line.encode() + b"\n")
        self._server.stdin.flush()

    def _read(self, timeout: float) -> str:
        """The next line; empty where the server died or takes too long."""
        assert self._server is not None
        assert self._server.stdout is not None
        deadline = time.monotonic() + timeout
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select(
                [self._server.stdout], [], [], max(0.0, deadline - time.monotonic())
            )
            piece = os.read(self._server.stdout.fileno(), 65536) if ready else b""
            if not piece:
                return ""
            line += piece
        return line.decode().strip()

    def _code(self, server: "subprocess.Popen[bytes]") -> int | None:
        try:
            return server.wait(1)
        except subprocess.TimeoutExpired:
            return None

    def _said(self) -> str:
        self._talk.seek(0)
        return self._talk.read().decode(errors="replace")


def stop_when(is_time: Callable[[], object], number: int = signal.SIGTERM) -> Meanwhile:
    """For `meanwhile`: send a signal as soon as something is true."""

    def watch(pid: int) -> None:
        deadline = time.monotonic() + HANG_SECONDS
        while not is_time() and time.monotonic() < deadline:
            time.sleep(0.002)
        os.kill(pid, number)

    return watch


def arguments_of(command: Sequence[str]) -> str:
    """A command as a person types it."""
    return " ".join(["vdiff", *command])
