"""The fault campaign in small: nothing is lost; and the campaign sees it when something is."""

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faulting import draw, state
from benchmarks.faulting.campaign import Campaign
from benchmarks.faulting.case import CANARY, PRECIOUS, Case
from benchmarks.faulting.draw import Fault
from benchmarks.faulting.episode import check_output, check_seen
from benchmarks.faulting.outcome import GOALS, Outcome, table
from benchmarks.faulting.process import Moment, Process
from benchmarks.faulting.service import Ended, Service
from benchmarks.faulting.state import RUN, look
from benchmarks.faulting.world import World
from vdiff.data.prepare import prepare

SEED, COUNT = 9, 14
"""Of these 14, four are kills, and of every other kind there is one or two;
each strikes a single process.
"""


@pytest.fixture
def finished(distilled_once: Path, tmp_path: Path) -> Path:
    """A folder with a store and a run with one model, where the campaign looks for them."""
    folder = tmp_path / "folder"
    students = shutil.ignore_patterns("base_*")
    shutil.copytree(distilled_once / "runs/tiny", folder / RUN, ignore=students)
    no_lock = shutil.ignore_patterns("lock.mdb")
    shutil.copytree(distilled_once / "store", folder / "data/digits", ignore=no_lock)
    return folder


def outcome() -> Outcome:
    return Outcome(Fault(0, 0, "kill"), "a test")


def missed(found: Outcome) -> set[str]:
    return {goal for goal, _ in found.missed}


def test_a_small_campaign_loses_nothing(tmp_path: Path) -> None:
    outcomes = Campaign(
        tmp_path, draw.draw(SEED, COUNT), jobs=1, keep=True, say=lambda text: None
    ).run()
    assert [line for each in outcomes if each.missed for line in each.lines()] == []
    assert len(outcomes) == COUNT
    assert [each.what for each in outcomes if not each.is_injected] == []
    assert {each.fault.kind for each in outcomes} == set(draw.SHARES)


def test_five_hundred_faults_are_mixed_as_planned_and_each_can_be_repeated() -> None:
    faults = draw.draw(0, 500)
    counts = {kind: sum(fault.kind == kind for fault in faults) for kind in draw.SHARES}
    assert counts == {
        "kill": 150,
        "signal": 100,
        "disk": 25,
        "damage": 75,
        "hostile": 25,
        "foreign": 50,
        "machine": 50,
        "diverged": 25,
    }
    assert draw.pick(0, [17, 23]) == [faults[17], faults[23]]
    assert draw.draw(0, 5, ["disk"]) == [fault for fault in faults if fault.kind == "disk"][:5]


def test_a_whole_folder_has_nothing_invalid(finished: Path) -> None:
    seen = look(finished)
    assert (list(seen.models), seen.invalid) == (["original"], ())
    assert len(seen.store) == len(seen.models["original"]) == 64
    assert state.leftovers(finished) == []


@pytest.mark.parametrize(
    "name", ["unet/diffusion_pytorch_model.safetensors", "unet/config.json", "samples.png"]
)
def test_a_flipped_bit_in_a_model_folder_is_invalid_and_a_loss(finished: Path, name: str) -> None:
    before, path = look(finished), finished / RUN / "original" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found = outcome()
    check_seen(found, before, look(finished))
    assert missed(found) == {"invalid", "lost"}


def test_what_is_gone_is_a_loss(finished: Path) -> None:
    (finished / "samples").mkdir()
    (finished / "samples/a.png").write_bytes(b"a")
    before = look(finished)
    shutil.rmtree(finished / RUN / "original")
    shutil.rmtree(finished / "data/digits")
    (finished / "samples/a.png").unlink()
    assert state.lost(before, look(finished)) == [
        "model original",
        "the store",
        "the picture samples/a.png",
    ]


def test_a_save_that_goes_back_is_a_loss() -> None:
    before, after = state.Seen(points={"original": 12}), state.Seen(points={"original": 6})
    assert state.lost(before, after) == ["the save of original at 12 (now 6)"]
    assert state.lost(before, state.Seen(models={"original": "hash"})) == []


def test_a_truncated_store_is_invalid(finished: Path) -> None:
    file = finished / "data/digits/data.mdb"
    file.write_bytes(file.read_bytes()[: -3 * 4096])
    assert [text.split(":")[1] for text in look(finished).invalid] == [" damaged"]
    assert state.store_digest_apart(file).startswith("damaged")


def test_another_picture_is_another_store(
    finished: Path, distilled_once: Path, tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    shutil.copytree(distilled_once / "pictures", pictures)
    next(pictures.rglob("*.png")).unlink()
    prepare(pictures, tmp_path / "other", sizes=[8, 16])
    assert state.store_digest_apart(tmp_path / "other" / "data.mdb") != look(finished).store


def test_weights_that_are_not_the_unbroken_ones_differ() -> None:
    wanted = state.Seen(models={"original": "a", "base_0": "b"}, log=("1", "2"))
    found = state.Seen(models={"original": "c"}, log=("1", "x"))
    assert state.differences(found, wanted, ("models", "log", "store")) == [
        "models: base_0 missing, original changed",
        "log: 2 lines instead of 2, unlike from line 2",
    ]


def test_temporary_files_are_left_over(finished: Path) -> None:
    (finished / RUN / ".base_0.partial-12").mkdir()
    (finished / ".a.png.77.tmp").touch()
    assert state.leftovers(finished) == [".a.png.77.tmp", f"{RUN}/.base_0.partial-12"]


def test_a_traceback_through_vdiff_counts_and_a_launchers_own_does_not() -> None:
    ours, theirs = outcome(), outcome()
    package = Path(state.lmdb_pages.__file__).parents[1]
    head = "Traceback (most recent call last):\n"
    check_output(ours, f'{head}  File "{package}/chain.py", line 3, in go\n    x\nKeyError: 3\n')
    check_output(
        theirs,
        f'{head}  File "/a/torch/distributed/run.py", line 3, in main\nSignalException: 15\n',
    )
    assert (ours.missed, theirs.missed) == ([("traceback", "KeyError: 3")], [])


def test_a_process_that_is_left_behind_is_found_and_ended(tmp_path: Path) -> None:
    leaves = "import subprocess; subprocess.Popen(['sleep', '99'], start_new_session=True)"
    process = Process([sys.executable, "-c", leaves], tmp_path)
    try:
        process.wait(60)
        assert len(process.leave_nothing(0.5)) == 1
        assert process.family() == []
    finally:
        process.kill()


def test_a_strike_waits_for_its_moment_and_misses_what_has_ended(tmp_path: Path) -> None:
    writes = (
        "import time, pathlib; time.sleep(.3); pathlib.Path('.a.partial-1').touch(); time.sleep(99)"
    )
    process = Process([sys.executable, "-c", writes], tmp_path)
    try:
        assert process.reach(Moment(0.1, ".*partial*"))
        assert (tmp_path / ".a.partial-1").exists()
    finally:
        process.kill()
    assert process.code == -9
    short = Process([sys.executable, "-c", "print('done')"], tmp_path)
    assert not short.reach(Moment(60.0))
    assert (short.wait(), short.code, short.output) == (True, 0, "done\n")


@pytest.mark.parametrize(
    ("ended", "goals"),
    [
        (Ended(4, "error: a\nfix: b\n"), set()),
        (Ended(0, "drew it"), {"used"}),
        (Ended(1, "error: bug\nfix: b\n"), {"wrong end"}),
        (Ended(4, "oh"), {"wrong end"}),
        (Ended(-11, "error: a\nfix: b\n"), {"wrong end"}),
        (Ended(None, ""), {"hang"}),
        (Ended(4, "error: a\nfix: b\n", grown_bytes=2**30), {"wrong end"}),
        (Ended(4, "error: a\nfix: b\n", held=["run/.lock"]), {"left over"}),
    ],
)
def test_a_case_judges_how_a_command_ends(tmp_path: Path, ended: Ended, goals: set[str]) -> None:
    found = _case_with(tmp_path, ended)
    assert missed(found) == goals


def test_a_case_sees_code_that_ran_and_what_was_touched_outside(tmp_path: Path) -> None:
    refused = Ended(4, "error: a\nfix: b\n")
    assert missed(_case_with(tmp_path / "1", refused, CANARY)) == {"executed"}
    assert missed(_case_with(tmp_path / "2", refused, f"{PRECIOUS}/new")) == {"executed"}
    assert missed(_case_with(tmp_path / "3", refused, f"{PRECIOUS}/letter.txt")) == {"executed"}


def test_a_case_looks_for_code_that_ran_while_its_neighbours_tidy_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    neighbour, scandir = tmp_path / "neighbour" / "unet", os.scandir

    def vanishes(place: object = ".") -> Any:
        if str(place) == str(neighbour) and neighbour.exists():
            neighbour.rmdir()
        return scandir(place)

    neighbour.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", vanishes)
        assert missed(_case_with(tmp_path, Ended(4, "error: a\nfix: b\n"))) == set()
    assert not neighbour.exists()


def _case_with(root: Path, ended: Ended, touches: str = "") -> Outcome:
    """What a case finds of a command that ends like this and writes a file."""

    class Acts(Service):
        def __call__(self, folder: Path, *arguments: str, **more: object) -> Ended:
            if touches:
                (folder / touches).write_text("evil")
            return ended

    service, found = Acts(), outcome()
    world = World(root, service)
    (root / "states/bare").mkdir()
    case = Case(world, service, found, "bare")
    case.vdiff("sample", codes={4})
    case.close()
    service.close()
    return found


def test_a_missed_goal_is_told_with_the_way_to_repeat_it() -> None:
    good, bad = outcome(), Outcome(Fault(5, 17, "disk"), "disk full")
    bad.miss("left over", ".x.partial-1")
    assert bad.lines() == [
        "FAILED disk 17 (disk full): left over: .x.partial-1   [--seed 5 --only 17]"
    ]
    rows = [line.split("|")[1:-1] for line in table([good, bad]).splitlines()]
    assert [cell.strip() for cell in rows[0]] == ["fault", "injected", "survived", *GOALS]
    assert [cell.strip() for cell in rows[-1]] == ["total", "2", "1", *["0"] * 8, "1"]
    with pytest.raises(AssertionError):
        good.miss("no such goal", "")


def test_a_service_runs_commands_and_outlives_the_death_of_one(tmp_path: Path) -> None:
    service = Service()
    try:
        ended = service(tmp_path, "recipes", "show", "no-such-recipe")
        assert (ended.code, "fix: " in ended.output, ended.held) == (2, True, [])
        died = service(tmp_path, "doze", meanwhile=lambda pid: os.kill(pid, signal.SIGKILL))
        assert died.code in (2, -9)  # it may have answered just before
        assert service(tmp_path, "recipes", "ls").code == 0
    finally:
        service.close()
