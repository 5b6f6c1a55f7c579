"""`--gpus N`: one process per GPU, watched;
a signal reaches all of them, and the first failure ends all.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from vdiff.cli.signals import LAUNCHER, Ear, work_is_done
from vdiff.errors import ASKING, MachineError
from vdiff.machine import world

GRACE_SECONDS = 30.0
"""How long processes may take to save and leave once one of them has failed."""

_POLL_SECONDS = 0.1
_STOPPED = {128 + number for number in ASKING}
"""Exit codes of processes that were asked to stop and have saved everything."""


def is_worker() -> bool:
    """Whether this process is one of several, or a launcher (this one or torchrun) started it.

    Errors: MachineError for variables of the environment that do not fit together.
    """
    return (
        any(name in os.environ for name in (LAUNCHER, "TORCHELASTIC_RUN_ID"))
        or world.from_environment().size > 1
    )


def may_start() -> bool:
    """Whether `--gpus` may start processes, or somebody has; the user is told.

    Errors: as `is_worker`.
    """
    from vdiff.cli import console

    if not is_worker():
        return True
    if LAUNCHER not in os.environ and not is_echo():
        told_by = world.from_environment().told_by or "torchrun has started this process"
        console.warn(
            f"`--gpus` starts nothing here, where all processes are started already ({told_by})"
        )
    return False


def has_launcher() -> bool:
    """Whether this process must not outlive the one that started it;
    `accelerate launch` also starts lone ones.
    """
    names = (LAUNCHER, "TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_BACKEND", "OMPI_COMM_WORLD_SIZE")
    return any(name in os.environ for name in names)


def is_echo() -> bool:
    """Whether another process of the same run is the one that talks to the user."""
    return world.read_or_alone().rank != 0


def start(count: int, device: str | None) -> int:
    """Run this very command in `count` processes and give the exit code of the
    first that failed, or 0.

    Errors: MachineError for more processes than GPUs, and on Windows.
    """
    if sys.platform == "win32":
        problem = (
            "`--gpus` starts no processes on Windows: "
            "there they could not be asked to save and leave"
        )
        raise MachineError(
            problem, "leave it out, and one process works; WSL 2 has several", "--gpus"
        )
    if device != "cpu":
        _check_gpus(count)
    workers: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []

    def forward(number: int) -> None:
        asked.append(number)
        _signal(workers, number)

    def kill(number: int) -> None:
        # what is on the disk is whole at any moment
        _kill(workers)
        os._exit(128 + number)

    with contextlib.closing(Ear(forward, kill)):
        port = _free_port()
        workers.extend(_worker(rank, count, port) for rank in range(count))
        # a signal that came while they were started, when not all of them could hear it
        if asked:
            _signal(workers, asked[0])
        code = _watch(workers, asked)
        work_is_done()
    return code


def _check_gpus(count: int) -> None:
    import torch

    # a Mac has one GPU at most, and no way to count
    num_gpus = torch.cuda.device_count() or int(torch.backends.mps.is_available())
    if count > num_gpus:
        fix = "leave out `--gpus`, or add `--device cpu`"
        if num_gpus:
            fix = f"ask for at most {num_gpus}"
        raise MachineError(f"--gpus {count} asks for more GPUs than there are ({num_gpus})", fix)


def _free_port() -> int:
    # the system picks one; another program could take it before the workers do
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _worker(rank: int, count: int, port: int) -> subprocess.Popen[bytes]:
    given = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        LAUNCHER: os.getpid(),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        # each worker would take all cores for itself
        "OMP_NUM_THREADS": os.environ.get(
            "OMP_NUM_THREADS", max(1, (os.cpu_count() or 1) // count)
        ),
    }
    # what another launcher has left there would have the workers look for it
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")
    }
    environment = inherited | {name: str(value) for name, value in given.items()}
    # a session of its own: Ctrl-C reaches a worker once, through its parent
    command = [sys.executable, "-m", "vdiff", *sys.argv[1:]]
    return subprocess.Popen(command, env=environment, start_new_session=True)


def _watch(workers: Sequence[subprocess.Popen[bytes]], asked: Sequence[int] = ()) -> int:
    """Wait for all workers; the exit code of the first that failed, or 0.
    Errors: MachineError for a killed one.

    asked: signals that were passed on. One of them ends a worker at once that is leaving already,
    with all saved.
    """
    first: subprocess.Popen[bytes] | None = None
    deadline = float("inf")
    # every worker is asked each time: one that waits for another must not hide that this one has
    # died
    while None in [worker.poll() for worker in workers]:
        first = first or next((worker for worker in workers if worker.returncode), None)
        if first is not None and deadline == float("inf"):
            deadline = time.monotonic() + GRACE_SECONDS
            # those that were asked to stop do so together: they need no further signal
            if first.returncode not in _STOPPED and -first.returncode not in asked:
                _signal(workers, signal.SIGTERM)
        if time.monotonic() > deadline:
            _kill(workers)
        time.sleep(_POLL_SECONDS)
    first = first or next((worker for worker in workers if worker.returncode), None)
    if first is None:
        return 0
    if -first.returncode in asked:
        return 128 - first.returncode
    if first.returncode < 0:
        raise _killed(workers.index(first), -first.returncode)
    return int(first.returncode)


def _killed(rank: int, number: int) -> MachineError:
    """What a worker cannot say itself, because a signal ended it at once."""
    problem = (
        f"process {rank} of the run was killed by signal {number}; "
        "the others were asked to save and leave"
    )
    fix = "run the same command again: it goes on from the last save"
    if number == _KILL:
        # the kernel kills the largest process, and tells nobody but its log
        fix += "; if memory ran out (`dmesg` tells), lower `micro_batch` first"
    return MachineError(problem, fix)


_KILL = 9


def _kill(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.kill()


def _signal(workers: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.send_signal(number)
