"""Which processes work together, as the environment says; and how they wait for one another."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.tiny import TinyRun
from vdiff.cli import app
from vdiff.errors import MachineError, Stopped
from vdiff.machine import rendezvous, world
from vdiff.machine.world import World

pytestmark = pytest.mark.usefixtures("usual_signals")

VARIABLES = {
    "RANK": "0",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29499",
}
"""What another tool may have left."""

ALONE_AND_IN_PAIRS = [*itertools.combinations(VARIABLES, 1), *itertools.combinations(VARIABLES, 2)]
TELLING = {"RANK", "WORLD_SIZE", "LOCAL_RANK"}


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("SLURM_", "OMPI_", "PMI_")) or name in VARIABLES:
            monkeypatch.delenv(name)


def told(**more: object) -> dict[str, str]:
    """The variables of a launcher, with some changed, or left out where they are None."""
    given = {
        "RANK": 1,
        "WORLD_SIZE": 4,
        "LOCAL_RANK": 1,
        "MASTER_ADDR": "h1",
        "MASTER_PORT": 29501,
        **more,
    }
    return {name: str(value) for name, value in given.items() if value is not None}


def test_variables_that_fit_tell_the_place_of_this_process() -> None:
    found = world.from_environment(told(LOCAL_WORLD_SIZE=2))
    assert (found.rank, found.size, found.local_rank, found.local_size) == (1, 4, 1, 2)
    assert (found.host, found.port, found.listens) == ("h1", 29501, False)
    assert found.told_by == "RANK=1, WORLD_SIZE=4 in the environment"
    assert found.alone == "unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE"


def test_process_0_listens_wherever_its_name_leads_but_not_where_torchrun_does() -> None:
    assert world.from_environment(told(RANK=0, LOCAL_RANK=0)).host == "localhost"
    assert world.from_environment(told(RANK=0, LOCAL_RANK=0)).listens
    under = world.from_environment(told(RANK=0, LOCAL_RANK=0, TORCHELASTIC_USE_AGENT_STORE="True"))
    assert (under.host, under.listens) == ("h1", False)


def test_one_process_per_host_need_not_be_numbered_on_its_host() -> None:
    """Kubernetes' operators leave it out."""
    assert world.from_environment(told(LOCAL_RANK=None)).local_rank == 0
    assert world.from_environment(told(LOCAL_RANK=None, RANK=3, LOCAL_WORLD_SIZE=2)).local_rank == 1


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"MASTER_ADDR": "h1", "MASTER_PORT": "1"},
        {"WORLD_SIZE": "1"},
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "gone.invalid"},
        {"RANK": "", "WORLD_SIZE": " "},
        {"LOCAL_WORLD_SIZE": "8"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "3"},
        {"PMI_SIZE": "4"},
        {"OMPI_COMM_WORLD_SIZE": "4"},
    ],
)
def test_a_process_of_which_nothing_says_that_it_has_others_is_alone(
    given: Mapping[str, str],
) -> None:
    assert world.from_environment(given) == World()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"WORLD_SIZE": None}, "`RANK=1` and `LOCAL_RANK=1` without `WORLD_SIZE`"),
        ({"RANK": None}, "`WORLD_SIZE=4` without `RANK`"),
        ({"RANK": 4}, "`RANK=4`, where `WORLD_SIZE=4` counts from 0 to 3"),
        ({"RANK": -1}, "`RANK=-1` is not a whole number"),
        ({"WORLD_SIZE": "four"}, "`WORLD_SIZE=four` is not a whole number"),
        ({"LOCAL_RANK": 4}, "`LOCAL_RANK=4` of `WORLD_SIZE=4`"),
        ({"LOCAL_RANK": 2, "LOCAL_WORLD_SIZE": 2}, "`LOCAL_RANK=2` of `LOCAL_WORLD_SIZE=2`"),
        ({"LOCAL_WORLD_SIZE": 8}, "`LOCAL_WORLD_SIZE=8` of `WORLD_SIZE=4`"),
        ({"RANK": 1, "WORLD_SIZE": 1}, "`RANK=1`, where `WORLD_SIZE=1` counts from 0 to 0"),
        ({"MASTER_ADDR": None}, "without `MASTER_ADDR`"),
        ({"MASTER_PORT": 70000}, "`MASTER_PORT=70000` is not the number of a port"),
        ({"MASTER_PORT": "x"}, "`MASTER_PORT=x` is not a whole number"),
    ],
)
def test_variables_that_do_not_fit_are_named_with_what_to_unset(
    changes: Mapping[str, object], problem: str
) -> None:
    given = told(**changes)
    with pytest.raises(MachineError) as found:
        world.from_environment(given)
    assert problem in found.value.problem
    there = [
        name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE") if name in given
    ]
    assert f"`unset {' '.join(there)}`" in found.value.fix
    assert (
        world.from_environment({name: value for name, value in given.items() if name not in there})
        == World()
    )


STEP = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_NTASKS": "7",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_NODELIST": "gpu[03-05,11]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
}


def test_a_task_of_a_step_of_slurm_knows_its_place() -> None:
    found = world.from_environment(STEP)
    assert (found.rank, found.size, found.local_rank, found.local_size) == (5, 7, 1, 2)
    assert (found.host, 15_000 <= found.port < 30_000) == ("gpu03", True)
    assert found.told_by == "SLURM_PROCID=5, 7 tasks in step 123456.2 of Slurm"
    assert found.at_once  # srun starts all of them: only a slow one is waited for
    assert world.from_environment({**STEP, "SLURM_STEP_ID": "3"}).port != found.port
    assert world.from_environment({**STEP, "MASTER_ADDR": "h9", "MASTER_PORT": "1234"}) != found
    first = world.from_environment({**STEP, "SLURM_PROCID": "0"})
    assert (first.listens, first.port) == (True, found.port)


@pytest.mark.parametrize(
    "changes",
    [
        {"SLURM_STEP_ID": None},  # a batch script
        {"SLURM_STEP_ID": "4294967290"},  # the shell of salloc
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},  # srun -n1
        {"SLURM_PROCID": None},
    ],
)
def test_what_is_no_step_of_several_tasks_is_alone(changes: Mapping[str, str | None]) -> None:
    given = {**STEP, **changes}
    assert (
        world.from_environment({name: value for name, value in given.items() if value is not None})
        == World()
    )


def test_what_a_launcher_says_counts_more_than_slurm() -> None:
    assert (
        world.from_environment({**STEP, **told()}).told_by
        == "RANK=1, WORLD_SIZE=4 in the environment"
    )


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("h1", ["h1"]),
        ("h1,h2", ["h1", "h2"]),
        ("h[1-3,7]", ["h1", "h2", "h3", "h7"]),
        ("gpu[08-11]-ib,login", ["gpu08-ib", "gpu09-ib", "gpu10-ib", "gpu11-ib", "login"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("", []),
    ],
)
def test_lists_of_hosts_are_read_as_slurm_writes_them(text: str, hosts: list[str]) -> None:
    assert world.hosts_in(text) == hosts


def test_a_process_of_mpi_knows_its_place() -> None:
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    given = {f"OMPI_COMM_WORLD_{name}": value for name, value in zip(names, "1222", strict=True)}
    with pytest.raises(MachineError):
        world.from_environment({**given, "OMPI_COMM_WORLD_SIZE": "4"})
    found = world.from_environment({**given, "OMPI_COMM_WORLD_LOCAL_RANK": "1"})
    assert (found.rank, found.size, found.local_rank, found.host) == (1, 2, 1, "127.0.0.1")
    assert found.at_once


def test_accelerate_is_told_this_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_SIZE", "8")
    monkeypatch.setenv("MASTER_ADDR", "gone.invalid")
    before = dict(os.environ)
    with world.told(World()):
        assert not {"PMI_SIZE", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"} & set(os.environ)
    assert dict(os.environ) == before
    with world.told(World(1, 2, 1, 2, "h1", 1234)):
        assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR")] == [
            "1",
            "2",
            "h1",
        ]
    assert dict(os.environ) == before


COMMANDS: dict[str, tuple[list[str], bool]] = {
    "train": (["train", "--device", "cpu"], True),
    "train --dry-run": (["train", "--device", "cpu", "--dry-run"], True),
    "train --gpus": (["train", "--device", "cpu", "--gpus", "2"], True),
    "distill": (["distill", "--device", "cpu"], True),
    "sample": (
        [
            "sample",
            "--checkpoint",
            "original",
            "-n",
            "1",
            "--steps",
            "1",
            "--device",
            "cpu",
            "--force",
        ],
        True,
    ),
    "evaluate": (["evaluate", "--n", "2", "--metrics", "swd", "--device", "cpu"], True),
    "prepare": (["prepare", "pictures", "--size", "8", "--out", "store"], False),
    "inspect": (["inspect"], False),
    "recipes": (["recipes", "check"], False),
}
"""Commands, and whether several processes can do their work together."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A run with a base and its students."""
    from tests.conftest import noise_picture
    from tests.tiny import RECIPE
    from vdiff.data.prepare import prepare

    path = tmp_path_factory.mktemp("stale")
    (path / "pictures").mkdir()
    for index in range(12):
        noise_picture(12, 10, index).save(path / "pictures" / f"{index:03d}.png")
    prepare(path / "pictures", path / "store", sizes=[8])
    text = RECIPE.format(store=path / "store").replace(", num_classes: 2", "")
    (path / "recipe.yaml").write_text(text)
    run = TinyRun(path, text)
    run.base(run="runs/tiny")
    run.chain(run="runs/tiny").distill()
    return run


@pytest.mark.parametrize("names", ALONE_AND_IN_PAIRS, ids="+".join)
def test_stale_variables_never_end_in_a_wait_or_in_a_bug(
    names: tuple[str, ...],
    finished: TinyRun,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(finished.path)
    for name in names:
        monkeypatch.setenv(name, VARIABLES[name])
    for words, (command, works_together) in COMMANDS.items():
        if words == "train --gpus" and not TELLING & set(names):
            continue  # starts processes: see test_processes
        code = app.run(command)
        said = capsys.readouterr().err
        assert "bug" not in said, (words, said)
        if works_together and TELLING & set(names):
            assert code == 6, (words, said)
            assert "unset" in said
        else:
            assert code == 0, (words, said)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def pair(port: int) -> list[World]:
    names = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [world.from_environment(told(**names, RANK=rank, LOCAL_RANK=rank)) for rank in (0, 1)]


@pytest.mark.parametrize("first", [0, 1])
def test_processes_wait_until_all_are_here(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "TELL_SECONDS", 0.3)
    worlds, said, met = pair(free_port()), [], []
    is_told = threading.Event()

    def tell(text: str) -> None:
        said.append(text)
        is_told.set()

    def meet(rank: int) -> None:
        met.append((rank, rendezvous.meet(worlds[rank], tell, lambda: None)))

    threads = [threading.Thread(target=meet, args=(rank,)) for rank in (first, 1 - first)]
    threads[0].start()
    assert is_told.wait(30)
    assert met == []
    threads[1].start()
    for thread in threads:
        thread.join(30)
    assert sorted(rank for rank, _ in met) == [0, 1]
    assert f"waiting for 1 more process (RANK={first}, WORLD_SIZE=2 in the environment)" in said[0]
    assert f"process {1 - first}" in said[0]
    assert "`unset RANK WORLD_SIZE LOCAL_RANK`" in said[0]


@pytest.mark.parametrize("rank", [0, 1])
def test_nobody_waits_for_ever(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "LIMIT_SECONDS", 0.5)
    with pytest.raises(MachineError, match=f"process {1 - rank}.* not come") as found:
        rendezvous.meet(pair(free_port())[rank], lambda text: None, lambda: None)
    assert "unset RANK" in found.value.fix


def test_a_port_that_another_program_has_is_named() -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = int(other.getsockname()[1])
        with pytest.raises(MachineError, match=f"port {port} .*taken"):
            rendezvous.meet(pair(port)[0], lambda text: None, lambda: None)


def test_another_program_at_that_place_is_not_taken_for_process_0(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rendezvous, "LIMIT_SECONDS", 1.0)
    monkeypatch.setattr(rendezvous, "_MOST_SECONDS", 3.0)
    server = "import http.server, sys; http.server.test(port=int(sys.argv[1]), bind='127.0.0.1')"
    port = free_port()
    with subprocess.Popen(
        [sys.executable, "-c", server, str(port)], stderr=subprocess.DEVNULL
    ) as process:
        try:
            with pytest.raises(MachineError, match=r"has to listen at 127.0.0.1.*not come"):
                rendezvous.meet(pair(port)[1], lambda text: None, lambda: None)
            assert "frame #" not in capfd.readouterr().err  # torch's own words
        finally:
            process.kill()


def test_whoever_waits_can_be_stopped() -> None:
    def stopped() -> None:
        raise Stopped(2, "nothing is begun")

    for each in pair(free_port()):
        with pytest.raises(Stopped):
            rendezvous.meet(each, lambda text: None, stopped)


@pytest.mark.parametrize(
    ("command", "number"),
    [("train", signal.SIGHUP), ("sample", signal.SIGINT), ("evaluate", signal.SIGTERM)],
)
def test_a_command_that_waits_says_so_within_seconds_and_hears(
    command: str, number: int, finished: TinyRun, tmp_path: Path
) -> None:
    given = {**VARIABLES, "WORLD_SIZE": "2", "MASTER_PORT": str(free_port())}
    said = tmp_path / "said"
    with said.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "vdiff", *COMMANDS[command][0]],
            cwd=finished.path,
            stderr=file,
            env={**os.environ, **given},
        )
    try:
        while (
            "waiting for 1 more process (RANK=0, WORLD_SIZE=2 in the environment)"
            not in said.read_text()
        ):
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.1)
        process.send_signal(number)
        assert process.wait(30) == 128 + number, said.read_text()
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in said.read_text()
