"""A command in a process of its own: its output, the moment to strike it,
and what it leaves running.
"""

import contextlib
import glob
import itertools
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HANG_SECONDS = 60.0
VDIFF = (sys.executable, "-m", "vdiff")
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

_TAG = "VDIFF_FAULT"
_tags = itertools.count()


@dataclass(frozen=True)
class Moment:
    """When to strike: so many seconds after the start, or after files of a pattern appeared or
    changed n times.
    """

    seconds: float
    pattern: str = ""
    appearance: int = 1

    def earlier(self) -> "Moment":
        """A moment to try when this one came too late."""
        if self.pattern and self.appearance == 1:
            return Moment(self.seconds + 3.0)
        return Moment(self.seconds * 0.6, self.pattern, max(1, self.appearance // 2))

    def __str__(self) -> str:
        after = f" after {self.pattern} no. {self.appearance}" if self.pattern else ""
        return f"at {self.seconds:.3f} s{after}"


class Process:
    """A command at work in `folder`; everything it starts carries its tag."""

    def __init__(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._tag = f"{_TAG}={os.getpid()}-{next(_tags)}"
        own = {
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            "NO_COLOR": "1",
            "PYTHONUNBUFFERED": "1",
        }
        name, _, value = self._tag.partition("=")
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **own, name: value, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._folder = folder
        self._pieces: list[bytes] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        """Everything that was printed so far."""
        return b"".join(self._pieces).decode(errors="replace")

    @property
    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def reach(self, moment: Moment, timeout: float = HANG_SECONDS) -> bool:
        """Wait for the moment; False when the command has ended, or hangs, before it."""
        since, seen = self._started, set(self._glob(moment.pattern))
        is_there = not moment.pattern
        known = len(seen)
        while time.monotonic() - self._started < timeout:
            if self.code is not None:
                return False
            if not is_there:
                seen |= set(self._glob(moment.pattern))
                if len(seen) - known >= moment.appearance:
                    is_there, since = True, time.monotonic()
            if is_there and time.monotonic() - since >= moment.seconds:
                return True
            time.sleep(0.0005 if is_there or self._is_near() else 0.02)
        return False

    def wait(self, timeout: float = HANG_SECONDS) -> bool:
        """Until it ends; False when that takes too long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
            self._reader.join(5)
            return True
        return False

    def signal(self, number: int) -> None:
        """Send a signal to the command itself."""
        self._process.send_signal(number)

    def kill_one(self, pid: int | None) -> None:
        """End the command, or one of those it has started, with SIGKILL."""
        if pid is not None and pid in self.family():
            os.kill(pid, signal.SIGKILL)

    def fill_disk(self, num_bytes: int) -> None:
        """From now on no file of the command grows beyond this size."""
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (num_bytes, num_bytes))

    def rank(self, number: int) -> int | None:
        """The process id of one of several equal processes, once it is there."""
        wanted = f"RANK={number}"
        found = [pid for pid in self.family() if pid != self.pid and wanted in _environment(pid)]
        return min(found, default=None)

    def family(self) -> list[int]:
        """The command and all it has started, as far as they run."""
        pids = (int(name) for name in os.listdir("/proc") if name.isdecimal())
        return [pid for pid in pids if self._tag in _environment(pid)]

    def leave_nothing(self, timeout: float = HANG_SECONDS) -> list[str]:
        """Wait until all it has started is gone; what is not is named and killed."""
        deadline = time.monotonic() + timeout
        while self.family() and time.monotonic() < deadline:
            time.sleep(0.1)
        left = [f"{pid} ({_command(pid)})" for pid in self.family()]
        self.kill()
        return left

    def kill(self) -> None:
        """End it and all it has started."""
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(5)

    def _is_near(self) -> bool:
        """Whether it works already: before that, nobody needs to look closely."""
        return time.monotonic() - self._started > 1.5

    def _glob(self, pattern: str) -> Iterator[tuple[str, int]]:
        """Files of this pattern and when they changed."""
        for path in glob.iglob(str(self._folder / pattern), include_hidden=True) if pattern else ():
            with contextlib.suppress(OSError):
                yield path, os.stat(path).st_mtime_ns

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            while piece := os.read(pipe.fileno(), 65536):
                self._pieces.append(piece)


def wait_until(condition: Callable[[], object], seconds: float) -> bool:
    """Whether it comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def _environment(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _command(pid: int) -> str:
    try:
        return (
            Path(f"/proc/{pid}/cmdline")
            .read_bytes()
            .decode(errors="replace")
            .replace("\0", " ")[:80]
        )
    except OSError:
        return "gone"
