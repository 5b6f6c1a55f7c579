"""Which processes work together, as the environment tells:
launchers and schedulers say so in variables.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from vdiff.errors import MachineError

PORT = 29500
"""Where process 0 listens if nothing else is said, as in torch."""

_OWN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_MPI = (
    (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    (
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_LOCAL_RANK",
        "MV2_COMM_WORLD_LOCAL_SIZE",
    ),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
"""Of torch's launchers, and of MPI's: number, count, number on this host, count on this host."""

_FIRST_SPECIAL_STEP = 0xFFFFFFF0
"""Slurm numbers the steps that are no `srun` of the user's (batch script,
interactive shell) from here on.
"""


@dataclass(frozen=True)
class World:
    """This process among those of its run.

    rank: its number, from 0.   size: how many there are.
    local_rank, local_size: the same on this host alone.
    host, port: where process 0 listens, or torchrun in its place.
    listens: whether this process does.
    told_by: who says so, in words.   alone: what to type to work alone.
    at_once: whether all are started together.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    host: str = ""
    port: int = PORT
    told_by: str = ""
    alone: str = ""
    listens: bool = False
    at_once: bool = False


def from_environment(told: Mapping[str, str] = os.environ) -> World:
    """What the environment says; this process alone where it says nothing.

    RANK and WORLD_SIZE count first, then a step of Slurm (`srun`), then MPI.
    Errors: MachineError for variables that do not fit together.
    """
    told = {name: value for name, value in told.items() if value.strip()}
    if any(name in told for name in _OWN[:3]):
        found = _of_launcher(told)
    else:
        found = _of_slurm(told) or _of_mpi(told) or World()
    if found.size == 1 or found.rank != 0 or told.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return found
    # the name that others have for this host need not lead back to it
    return replace(found, host="localhost", listens=True)


def read_or_alone() -> World:
    """As `from_environment`, but this process alone where the variables do not fit together."""
    try:
        return from_environment()
    except MachineError:
        return World()


@contextlib.contextmanager
def told(world: World) -> Iterator[None]:
    """Within it, the environment tells of `world` in the words of torch, and of nothing else."""
    names = {*_OWN, "MASTER_ADDR", "MASTER_PORT", *(name for names in _MPI for name in names)}
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    if world.size > 1:
        own = (world.rank, world.size, world.local_rank, world.local_size)
        os.environ.update({name: str(number) for name, number in zip(_OWN, own, strict=True)})
        os.environ.update({"MASTER_ADDR": world.host, "MASTER_PORT": str(world.port)})
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)


def _of_launcher(told: Mapping[str, str]) -> World:
    there = [name for name in _OWN if name in told]
    alone = f"unset {' '.join(there)}"
    numbers = {name: _number(name, told[name], alone) for name in there}
    rank, size, local_rank, local_size = (numbers.get(name) for name in _OWN)
    words = {name: f"`{name}={told[name]}`" for name in there}
    if size is None:
        named = " and ".join(words[name] for name in ("RANK", "LOCAL_RANK") if name in words)
        raise _misfit(f"{named} without `WORLD_SIZE`", alone)
    if size == 1 and not rank and not local_rank:
        return World()
    if rank is None:
        raise _misfit(f"{words['WORLD_SIZE']} without `RANK`", alone)
    if rank >= size:
        raise _misfit(
            f"{words['RANK']}, where {words['WORLD_SIZE']} counts from 0 to {size - 1}", alone
        )
    if local_size is not None and not 1 <= local_size <= size:
        raise _misfit(f"{words['LOCAL_WORLD_SIZE']} of {words['WORLD_SIZE']}", alone)
    if local_rank is None:  # some start one process per host and leave it out
        local_rank = rank % (local_size or 1)
    if local_rank >= (local_size or size):
        raise _misfit(
            f"{words['LOCAL_RANK']} of {words.get('LOCAL_WORLD_SIZE', words['WORLD_SIZE'])}", alone
        )
    if "MASTER_ADDR" not in told:
        raise _misfit(
            f"{words['RANK']} of {words['WORLD_SIZE']} without `MASTER_ADDR`, "
            "the host of process 0",
            alone,
        )
    host = told["MASTER_ADDR"].strip()
    port = _port(told, alone)
    told_by = f"RANK={rank}, WORLD_SIZE={size} in the environment"
    at_once = any(name in told for name in ("TORCHELASTIC_RUN_ID", "VDIFF_LAUNCHER"))
    return World(
        rank, size, local_rank, local_size or size, host, port, told_by, alone, at_once=at_once
    )


def _of_slurm(told: Mapping[str, str]) -> World | None:
    """A task among those of a step; None outside steps, and for one that has a single task."""
    names = ("SLURM_STEP_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_JOB_ID")
    count = told.get("SLURM_STEP_NUM_TASKS", told.get("SLURM_NTASKS", ""))
    if not all(told.get(name, "").isdecimal() for name in names) or not count.isdecimal():
        return None
    step, rank, local_rank, node, job = (int(told[name]) for name in names)
    size = int(count)
    if size < 2 or rank >= size or step >= _FIRST_SPECIAL_STEP:
        return None
    hosts = hosts_in(told.get("SLURM_STEP_NODELIST", told.get("SLURM_JOB_NODELIST", "")))
    on_hosts = _counts_in(
        told.get("SLURM_STEP_TASKS_PER_NODE", told.get("SLURM_TASKS_PER_NODE", ""))
    )
    local_size = size
    if node < len(on_hosts):
        local_size = on_hosts[node]
    host = told.get("MASTER_ADDR", "")
    if not host and local_size == size:
        host = "127.0.0.1"
    if not host and hosts:
        host = hosts[0]
    host = host or told.get("SLURM_LAUNCH_NODE_IPADDR", "")
    if not host:
        return None
    alone = "unset SLURM_STEP_ID"
    # below the ports that systems give to whoever asks for any; steps of one job may share a host
    port = 15_000 + (7 * job + step) % 15_000
    if "MASTER_PORT" in told:
        port = _port(told, alone)
    told_by = f"SLURM_PROCID={rank}, {size} tasks in step {job}.{step} of Slurm"
    return World(rank, size, local_rank, local_size, host, port, told_by, alone, at_once=True)


def _of_mpi(told: Mapping[str, str]) -> World | None:
    for names in _MPI:
        if all(told.get(name, "").isdecimal() for name in names):
            rank, size, local_rank, local_size = (int(told[name]) for name in names)
            alone = f"unset {names[1]}"
            if size < 2 or rank >= size:
                return None
            if "MASTER_ADDR" not in told and local_size < size:
                raise _misfit(
                    f"`{names[1]}={size}` on several hosts, without `MASTER_ADDR`, "
                    "that of process 0",
                    alone,
                )
            told_by = f"{names[0]}={rank}, {names[1]}={size} in the environment"
            host = told.get("MASTER_ADDR", "127.0.0.1")
            port = _port(told, alone)
            return World(
                rank, size, local_rank, local_size, host, port, told_by, alone, at_once=True
            )
    return None


def hosts_in(text: str) -> list[str]:
    """The hosts of a list as Slurm writes it: `h[1-3,07],login` is h1, h2, h3, h07, login."""
    hosts: list[str] = []
    for word in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        names = [""]
        for plain, ranges in re.findall(r"([^\[]+)|\[([^\]]*)\]", word):
            endings = [plain]
            if not plain:
                endings = [number for part in ranges.split(",") for number in _range(part)]
            names = [name + ending for name in names for ending in endings]
        hosts += [name.strip() for name in names if name.strip()]
    return hosts


def _range(text: str) -> list[str]:
    """`08-11` as 08, 09, 10, 11."""
    first, dash, last = text.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal()):
        return [text]
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def _counts_in(text: str) -> list[int]:
    """Numbers per host as Slurm writes them: `2(x3),1` is 2, 2, 2, 1."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(number) for number, times in found for _ in range(int(times or 1))]


def _number(name: str, text: str, alone: str) -> int:
    if not text.strip().isdecimal():
        raise _misfit(f"`{name}={text}` is not a whole number", alone)
    return int(text)


def _port(told: Mapping[str, str], alone: str) -> int:
    port = _number("MASTER_PORT", told.get("MASTER_PORT", str(PORT)), alone)
    if not 0 < port < 2**16:
        raise _misfit(f"`MASTER_PORT={port}` is not the number of a port, 1 to 65535", alone)
    return port


def _misfit(what: str, alone: str) -> MachineError:
    problem = (
        f"variables of the environment that tell of several processes do not fit together: {what}"
    )
    fix = (
        f"to work alone, type `{alone}` first; to work together, start all with `--gpus N`, "
        "torchrun or srun"
    )
    return MachineError(problem, fix, "the environment")
