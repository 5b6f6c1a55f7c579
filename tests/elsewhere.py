"""A program that goes through vdiff as it would run on macOS or Windows:
what they lack is hidden, in this process.

    python -m tests.elsewhere FOLDER

Other packages are imported first: they are those of the system that is really there. What follows
is a process of its own for each system, which goes through vdiff in the folder of that name.
"""

import errno
import importlib
import os
import signal
import socket
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

OTHERS = (
    "accelerate accelerate.tracking torch.distributed torch._dynamo torch.utils.data "
    "torch.utils.tensorboard typer rich.progress "
    "rich.live rich.table rich.console rich.traceback lmdb lmdb.verify PIL.Image "
    "PIL.PngImagePlugin PIL.features yaml safetensors.torch pydantic psutil numpy "
    "multiprocessing.spawn torch.multiprocessing asyncio shutil zipfile tempfile uuid"
)
SYSTEMS = ("linux", "darwin", "win32")
"""The first is the one that is there, with nothing hidden: what the others must equal."""

NO_UNIX = (
    "O_NOFOLLOW O_NONBLOCK O_CLOEXEC O_DIRECTORY pread pwrite sched_getaffinity posix_fadvise "
    "POSIX_FADV_DONTNEED fork posix_fallocate register_at_fork getuid geteuid getpgid killpg "
    "setsid sysconf statvfs set_blocking getloadavg uname chown fchmod mkfifo"
)
NO_LINUX = "sched_getaffinity posix_fadvise POSIX_FADV_DONTNEED posix_fallocate"
NO_UNIX_SIGNALS = (
    "SIGHUP SIGQUIT SIGUSR1 SIGUSR2 SIGALRM SIGVTALRM SIGPROF SIGXCPU SIGXFSZ SIGIO SIGPWR SIGCHLD "
    "SIGPIPE SIGKILL SIGSTOP SIGCONT SIGTSTP SIGRTMIN SIGRTMAX SIGURG SIGWINCH alarm setitimer "
    "pthread_sigmask sigwait SIG_BLOCK SIG_UNBLOCK SIG_SETMASK pause siginterrupt"
)
NO_LINUX_SIGNALS = "SIGPWR SIGRTMIN SIGRTMAX SIGSTKFLT"
NO_UNIX_MODULES = ("fcntl", "resource", "termios", "tty", "pwd", "grp", "pty")


def hide(system: str) -> None:
    """Make this process one of that system, as far as Python shows it."""
    is_windows = system == "win32"
    unix = _Unix()
    for name in (NO_UNIX if is_windows else NO_LINUX).split():
        if hasattr(os, name):
            delattr(os, name)
    for name in (NO_UNIX_SIGNALS if is_windows else NO_LINUX_SIGNALS).split():
        if hasattr(signal, name):
            delattr(signal, name)
    if is_windows:
        _be_windows(unix)
    else:
        importlib.import_module("fcntl").F_FULLFSYNC = 51  # type: ignore[attr-defined] # no system here knows it
    _hide_proc()
    sys.platform = system


class _Unix:
    """What this program itself needs of the system that is there."""

    def __init__(self) -> None:
        import fcntl

        self.flock, self.exclusive, self.free = (
            fcntl.flock,
            fcntl.LOCK_EX | fcntl.LOCK_NB,
            fcntl.LOCK_UN,
        )
        self.nonblock, self.nofollow = os.O_NONBLOCK, os.O_NOFOLLOW
        self.fsync, self.rename, self.replace, self.unlink = (
            os.fsync,
            os.rename,
            os.replace,
            os.unlink,
        )
        self.fcntl, self.getfl = fcntl.fcntl, fcntl.F_GETFL


def _be_windows(unix: _Unix) -> None:
    signal.SIGBREAK = signal.SIGABRT  # type: ignore[attr-defined] # any number
    os.O_BINARY = os.O_NOINHERIT = 0  # type: ignore[attr-defined]
    del __import__("select").poll
    pair, family = socket.socketpair, socket.AF_UNIX
    socket.socketpair = lambda: pair(family)  # type: ignore[assignment,misc]
    del socket.AF_UNIX
    for name in NO_UNIX_MODULES:
        sys.modules[name] = None  # type: ignore[assignment] # importing it is an ImportError
    sys.modules["msvcrt"] = _msvcrt(unix)

    def fsync(descriptor: int) -> None:
        if unix.fcntl(descriptor, unix.getfl) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "not open for writing")
        unix.fsync(descriptor)

    def kill(pid: int, number: int) -> None:
        raise AssertionError("on Windows this ends the process at once, or is Ctrl-C")

    def open_(path: Any, *given: Any, **more: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "it is a folder", str(path))
        return opened(path, *given, **more)

    opened = os.open
    os.fsync, os.kill, os.open = fsync, kill, open_
    os.rename = _unless_open(unix.rename, os.replace)
    os.replace = _unless_open(unix.replace)
    os.unlink = os.remove = _unless_open(unix.unlink)


def _msvcrt(unix: _Unix) -> types.ModuleType:
    module = types.ModuleType("msvcrt")

    def locking(descriptor: int, mode: int, count: int) -> None:
        assert os.lseek(descriptor, 0, os.SEEK_CUR) > 2**20, "it would lock what others read"
        try:
            unix.flock(descriptor, unix.exclusive if mode == 2 else unix.free)
        except BlockingIOError as err:
            raise PermissionError(errno.EACCES, "it is locked") from err

    module.locking, module.LK_NBLCK, module.LK_UNLCK = locking, 2, 0  # type: ignore[attr-defined]
    return module


def _unless_open(act: Callable[..., None], replacing: object = None) -> Callable[..., None]:
    """Of a file that is open, and of a folder with one in it, Windows refuses it;
    `rename` also replaces nothing.
    """

    def refuse_or_act(*paths: Any, **more: Any) -> None:
        if more:  # within an open folder, which only Unix has
            raise NotImplementedError
        for path in paths:
            whole = os.path.realpath(path)
            if any(each == whole or each.startswith(f"{whole}/") for each in _open_files()):
                raise PermissionError(errno.EACCES, "it is open", str(path))
        if replacing is not None and os.path.lexists(paths[1]):
            raise FileExistsError(errno.EEXIST, "it is there", str(paths[1]))
        act(*paths)

    return refuse_or_act


def _open_files() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    with _open("/proc/self/maps", encoding="utf-8") as file:
        found += [line[line.index("/") :].rstrip("\n") for line in file if "/" in line]
    return found


_open = open


def _hide_proc() -> None:
    """No file in /proc and /sys can be read through `Path`, as vdiff does it."""
    read = Path.read_text

    def read_text(self: Path, *given: Any, **more: Any) -> str:
        if str(self).startswith(("/proc", "/sys")):
            raise FileNotFoundError(errno.ENOENT, "there is none", str(self))
        return read(self, *given, **more)

    Path.read_text = read_text  # type: ignore[method-assign]


RECIPE = """\
name: tiny
seed: 3
data: {path: store, size: 8, workers: 0}
network: {width: 4, multipliers: [1, 2], blocks: 1}
diffusion: {schedule: {kind: cosine, grid: 64}}
train: {updates: 3, batch_size: 4, log_every: 1, save_every: 1}
distill: {start_steps: 4, end_steps: 2, updates: 2, batch_size: 4}
sample: {num_images: 2}
trackers: []
"""


def command(*words: str, ends: int = 0) -> None:
    from vdiff.cli import app

    code = app.run([*words])
    assert code == ends, f"{words} ended with {code}"


def stopped_training() -> None:
    """Ctrl-C during the second update: it is finished and saved."""
    from vdiff.training import learner

    step = learner.Learner.step

    def step_and_stop(self: Any, *given: Any) -> Any:
        if self.update == 1:
            signal.raise_signal(signal.SIGINT)
        return step(self, *given)

    learner.Learner.step = step_and_stop  # type: ignore[method-assign]
    command(
        "train",
        "--recipe",
        "recipe.yaml",
        "--run",
        "run",
        "--device",
        "cpu",
        ends=128 + signal.SIGINT,
    )
    learner.Learner.step = step  # type: ignore[method-assign]


def locked(folder: Path) -> None:
    """One process at a time, and nothing is left of it."""
    from vdiff.disk import lock
    from vdiff.errors import InUseError

    lock.PATIENCE = 0.1
    before = set(os.listdir(folder))
    with lock.held(folder / "new"):
        assert lock.is_held(folder / "new")
        assert lock.is_signed(folder / "new")
        with (
            pytest.raises(InUseError, match=f"process {os.getpid()} on"),
            lock.held(folder / "new"),
        ):
            raise AssertionError("two hold it")
    assert not lock.is_held(folder / "new")
    assert set(os.listdir(folder)) == before


def main(place: str) -> None:
    """Go through all systems; SystemExit with a text where one fails."""
    for name in OTHERS.split():
        importlib.import_module(name)
    for system in SYSTEMS:
        folder = Path(place) / system
        folder.mkdir()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                go_through(system, str(folder))
                code = 0
            finally:
                if code:
                    traceback.print_exc()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code:
            sys.exit(f"as on {system} it ended with {code}")


def go_through(system: str, place: str) -> None:
    """All that vdiff is asked for, in an empty folder, as it would run there."""
    from PIL import Image

    if system != "linux":
        hide(system)
    os.chdir(place)
    Path("pictures").mkdir()
    for number in range(4):
        Image.new("RGB", (9, 9), (number * 50, 90, 200 - number * 20)).save(
            f"pictures/{number}.png"
        )
    Path("recipe.yaml").write_text(RECIPE)
    locked(Path(place))
    prepare = ("prepare", "pictures", "--out", "store", "--size", "8")
    command(*prepare)
    command(*prepare, "--force")
    stopped_training()
    command("train", "--recipe", "recipe.yaml", "--run", "run", "--device", "cpu")
    command("distill", "--recipe", "recipe.yaml", "--run", "run", "--device", "cpu")
    draw = (
        "sample",
        "--recipe",
        "recipe.yaml",
        "--run",
        "run",
        "--device",
        "cpu",
        "-n",
        "2",
        "--checkpoint",
    )
    command(*draw, "original", "--steps", "2", "--out", "drawn.png")
    command(*draw, "base_0", "--out", "drawn.png", "--force")
    for what in ("store", "run", "run/base_0"):
        command("inspect", what)
    command("report", "run", "--device", "cpu")
    if system == "win32":
        command("train", "--recipe", "recipe.yaml", "--gpus", "2", "--device", "cpu", ends=6)
    left = [
        path for path in Path().rglob("*") if ".partial" in path.name or path.name.endswith(".lock")
    ]
    assert [path for path in left if path != Path("run/.lock")] == []


if __name__ == "__main__":
    main(*sys.argv[1:])
