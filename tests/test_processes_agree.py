"""Several processes without a common disk: what they tell one another, what they compare,
and how long they wait.
"""

import contextlib
import json
import shutil
import signal
import socket
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from tests.forked import Forked, Work, vdiff, vdiff_and_workers
from tests.tiny import TinyRun
from vdiff.cli import session
from vdiff.cli.failures import explain
from vdiff.data.prepare import prepare
from vdiff.errors import MachineError, Stopped
from vdiff.machine import line, processes
from vdiff.machine.machine import Machine
from vdiff.runs import status

ROOT = Path(__file__).parents[1]
SECONDS = 600.0
"""After which a process counts as stuck: machines that test are slow now and then."""


class Hosts:
    """Two processes of one run, each in a folder of its own,
    as on two machines without a common disk.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        command: Sequence[str],
        more: Sequence[Sequence[str]] = ((), ()),
        work: Work = vdiff,
    ) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        common = {
            "WORLD_SIZE": "2",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        self.processes = [
            Forked(work, [*command, *more[rank]], folder, {**common, "RANK": str(rank)})
            for rank, folder in enumerate(folders)
        ]

    def ended(self) -> tuple[list[int], list[str]]:
        """The exit codes and what was said."""
        try:
            said = [process.communicate(timeout=SECONDS)[0] for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
                process.communicate()
        return [process.returncode for process in self.processes], said


@pytest.fixture
def hosts(tiny_run: TinyRun) -> list[Path]:
    """Two folders, each with its own store of equal pictures and its own recipe."""
    folders = [tiny_run.path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
        shutil.copytree(tiny_run.path / "store", folder / "store")
        (folder / "recipe.yaml").write_text(tiny_run.text.replace(f"{tiny_run.path}/", ""))
    return folders


def other_pictures(folder: Path) -> None:
    """As many, of the same size, but one is another."""
    pictures = folder.parent / "pictures"
    first, second = sorted(pictures.rglob("*.png"))[:2]
    shutil.copy(second, first)
    shutil.rmtree(folder / "store")
    prepare(pictures, folder / "store", sizes=[8, 16])


TRAIN = ["train", "--device", "cpu", "--run", "run"]


def test_without_a_common_disk_only_the_first_process_needs_the_run(
    hosts: list[Path], tiny_run: TinyRun
) -> None:
    (hosts[1] / "recipe.yaml").unlink()  # not even that
    distill = ["distill", "--device", "cpu", "--run", "run"]
    sample = [
        "sample",
        "--device",
        "cpu",
        "--run",
        "run",
        "--checkpoint",
        "base_0",
        "--seeds",
        "0-4",
    ]
    evaluate = ["evaluate", "run", "--device", "cpu", "--n", "16", "--metrics", "agreement"]
    for command in (TRAIN, distill, [*sample, "--batch-size", "2", "--out", "drawn.npz"], evaluate):
        codes, said = Hosts(hosts, command).ended()
        assert codes == [0, 0], "".join(said)
    assert sorted(path.name for path in hosts[1].iterdir()) == ["store"]
    for command in (TRAIN, distill):
        two = Forked(vdiff_and_workers, [*command, "--gpus", "2", "--run", "same"], hosts[0], {})
        told = two.communicate(timeout=SECONDS)[0]
        assert two.returncode == 0, told
    first = TinyRun(hosts[0], "")
    assert first.hashes("run") == first.hashes("same")
    assert (hosts[0] / "drawn.npz").is_file()
    assert [
        row["model"]
        for row in json.loads((hosts[0] / "run/evaluation/table.json").read_text())["rows"]
    ]


@pytest.mark.parametrize(
    ("change", "code", "told"),
    [
        ("train.learning_rate=0.002", 2, "train.learning_rate: 0.01 on"),
        ("pictures", 3, "fingerprint: "),
        ("store", 3, "there is no image store in `store`"),
    ],
)
def test_processes_that_would_not_train_the_same_do_not_begin(
    hosts: list[Path], change: str, code: int, told: str
) -> None:
    more: list[list[str]] = [[], []]
    if change == "pictures":
        other_pictures(hosts[1])
    elif change == "store":
        shutil.rmtree(hosts[1] / "store")
    else:
        more[1] = ["--set", change]
    codes, said = Hosts(hosts, TRAIN, more).ended()
    assert codes == [code, code], "".join(said)
    name = socket.gethostname()
    for each in said:
        assert told in each
        assert "Traceback" not in each
    if change == "store":
        assert f"(process 1 on `{name}`)" in said[0]
    else:
        both = f"on `{name}` (process 0), ", f"on `{name}` (process 1)"
        assert all(place in each for place in both for each in said)
    assert not (hosts[0] / "run").exists()


def test_the_second_host_may_keep_its_pictures_elsewhere_and_differ_in_what_is_harmless(
    hosts: list[Path],
) -> None:
    (hosts[1] / "store").rename(hosts[1] / "faces")
    more = [
        [],
        ["--set", "data.path=faces", "--set", "train.save_every=1", "--set", "sample.num_images=9"],
    ]
    codes, said = Hosts(hosts, TRAIN, more).ended()
    assert codes == [0, 0], "".join(said)


def test_pictures_of_other_seeds_are_not_drawn_together(hosts: list[Path]) -> None:
    TinyRun(
        hosts[0], (hosts[0] / "recipe.yaml").read_text().replace("store", f"{hosts[0]}/store")
    ).base()
    command = [
        "sample",
        "--device",
        "cpu",
        "--run",
        "run",
        "--checkpoint",
        "original",
        "--steps",
        "2",
    ]
    codes, said = Hosts(hosts, command, [["--seeds", "0-3"], ["--seeds", "4-7"]]).ended()
    assert codes == [2, 2], "".join(said)
    assert all("--seeds: 0-3 on" in each for each in said)
    assert not (hosts[0] / "samples").exists()


def test_hosts_in_another_order_do_not_begin_anew(hosts: list[Path]) -> None:
    more = [["--set", "train.updates=40", "--set", "train.save_every=4"]] * 2
    pair = Hosts(hosts, TRAIN, more)
    until(lambda: bool(list(hosts[0].glob("run/saves/original/0*"))), pair)
    for process in pair.processes:
        process.send_signal(signal.SIGTERM)
    assert pair.ended()[0] == [143, 143]
    codes, said = Hosts(hosts[::-1], TRAIN, more).ended()
    assert codes == [2, 2], "".join(said)
    for each in said:
        assert "process 1 on" in each
        assert "original: nothing in process 0 on" in each
        assert "a save at update" in each
    assert sorted(path.name for path in hosts[1].iterdir()) == ["recipe.yaml", "store"]


def in_each_process(arguments: Sequence[str]) -> int:
    """Chains of two processes that share no folder:
    stopped and gone on with, rolled back, in shares.
    """
    folder, shard = Path.cwd(), "on" if "shares" in arguments else "off"
    machine = Machine("fp32", "cpu", shard=shard)
    run = TinyRun(folder, (folder / "recipe.yaml").read_text())
    for name, stops in (("unbroken", []), ("stopped", [2, 2] if shard == "on" else [2, 2, 2, 2])):
        for stop_after in [*stops, None]:
            with contextlib.suppress(Stopped):
                chain = run.chain(*LONGER, stop_after=stop_after, run=name, machine=machine)
                chain.train()
                chain.distill()
    if machine.is_first:
        assert run.hashes("unbroken") == run.hashes("stopped")
    else:
        assert sorted(path.name for path in folder.iterdir()) == ["recipe.yaml", "store"]
    machine.close()
    return 0


LONGER = (
    "train.updates=8",
    "distill.updates=4",
    "distill.end_steps=2",
    "train.preview_every=3",
    "train.save_every=3",
)


@pytest.mark.parametrize("form", ["whole", "shares"])
def test_a_run_goes_on_from_the_saves_of_the_first_process_alone(
    hosts: list[Path], form: str
) -> None:
    codes, said = Hosts(hosts, [form], work=in_each_process).ended()
    assert codes == [0, 0], "".join(said)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_training_that_loses_a_host_says_so(hosts: list[Path], victim: int) -> None:
    """A stopped process is like a host whose cable was pulled: its sockets stay open."""
    pair = Hosts(hosts, TRAIN, work=impatient)
    log = hosts[0] / "run/log.jsonl"
    until(lambda: log.exists() and '"update": 4,' in log.read_text(), pair)
    pair.processes[victim].send_signal(signal.SIGSTOP)
    said = pair.processes[1 - victim].communicate(timeout=SECONDS)[0]
    pair.processes[victim].kill()
    pair.ended()
    assert pair.processes[1 - victim].returncode == 6, said
    assert "Traceback" not in said
    if victim == 1:
        told = status.read(hosts[0] / "run/status.json", is_at_work=False)
        assert told is not None
        assert (told.state, told.exit_code) == ("failed", 6)
        assert "process 1 on" in told.reason


def test_who_is_asked_to_stop_while_all_join_is_stopped_though_another_left_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lost(*given: object) -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:536] Connection closed by peer")

    def asked() -> None:
        raise Stopped(signal.SIGUSR1, "nothing is begun")

    monkeypatch.setattr(processes, "Processes", lost)
    with pytest.raises(Stopped, match="nothing is begun"):
        session.joined("cpu", lambda: True, {}, asked)
    with pytest.raises(RuntimeError):
        session.joined("cpu", lambda: False, {}, lambda: None)


def test_a_network_that_is_not_the_right_one_is_told_with_what_gloo_says() -> None:
    found = explain(
        RuntimeError("[gloo/transport/tcp/device.cc:84] Unable to find address for: eth7\nmore")
    )
    assert isinstance(found, MachineError)
    assert found.where == "[gloo/transport/tcp/device.cc:84] Unable to find address for: eth7"
    assert "GLOO_SOCKET_IFNAME" in found.fix


def impatient(arguments: Sequence[str]) -> int:
    line.SILENCE_SECONDS = 2.0
    processes.PATIENCE = timedelta(seconds=4)
    return vdiff([*arguments, "--set", "train.updates=100000", "--set", "train.save_every=100000"])


def until(is_so: Callable[[], bool], pair: Hosts) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        assert [process.poll() for process in pair.processes] == [None, None], pair.ended()
        time.sleep(0.02)
