"""status.json: a run tells how it stands, why it ended, and what to type to go on."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import TinyRun
from vdiff.cli import app
from vdiff.cli.progress import FitLines
from vdiff.cli.recording import resume_command
from vdiff.runs import status as run_status
from vdiff.runs.folder import RunFolder
from vdiff.runs.status import StatusWriter

COMMAND = ["train", "--device", "cpu", "-q"]


@pytest.fixture
def place(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """The run folder of the recipe in the current folder."""
    monkeypatch.chdir(tiny_run.path)
    monkeypatch.setattr("sys.argv", ["vdiff", *COMMAND])
    return RunFolder(Path("runs/tiny"))


def told(place: RunFolder) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(place.status.read_text())
    return content


def test_a_run_that_ends_well_says_so(place: RunFolder) -> None:
    assert app.run(COMMAND) == 0
    found = told(place)
    assert (found["state"], found["exit_code"], found["stage"], found["update"]) == (
        "done",
        0,
        "original",
        5,
    )
    assert found["pid"] == os.getpid()


def test_a_run_that_is_stopped_says_how_to_go_on(
    place: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vdiff.cli.signals import StopRequest

    monkeypatch.setattr(StopRequest, "__call__", lambda self: signal.SIGTERM)
    assert app.run(COMMAND) == 143
    found = told(place)
    assert (found["state"], found["exit_code"]) == ("stopped", 143)
    assert found["reason"] == "`original` is saved at update 1"
    assert found["resume_command"] == "vdiff train --device cpu -q"


def test_a_run_that_fails_says_why(
    place: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from vdiff.runs import savepoint

    def full(path: Path, *rest: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(savepoint, "save_tensors", full)
    assert app.run(COMMAND) == 6
    found = told(place)
    assert (found["state"], found["exit_code"]) == ("failed", 6)
    assert found["reason"].startswith("the disk is full")
    capsys.readouterr()
    app.run(["inspect"])
    shown = capsys.readouterr().err
    assert "failed with exit code 6: the disk is full" in shown
    assert "go on with `vdiff train --device cpu -q`" in shown


def test_a_command_that_is_refused_at_once_leaves_nothing(place: RunFolder) -> None:
    assert app.run([*COMMAND, "--set", "data.path=missing"]) == 3
    assert not place.path.exists()


def test_a_slip_hides_neither_where_a_run_is_nor_how_it_goes_on(
    place: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vdiff.cli.signals import StopRequest

    monkeypatch.setattr(StopRequest, "__call__", lambda self: signal.SIGTERM)
    assert app.run(COMMAND) == 143
    stopped = told(place)
    assert app.run([*COMMAND[:1], "--set", "train.updates=x", *COMMAND[1:]]) == 2
    assert app.run(["distill", "--device", "cpu", "-q", "--stages", "0"]) == 2
    assert told(place) == stopped
    assert app.run(["distill", "--device", "cpu", "-q", "--from", "base_9"]) == 4
    after = told(place)
    assert (after["state"], after["exit_code"]) == ("failed", 4)
    assert "base_9" in after["reason"]
    for name in ("stage", "update", "updates", "resume_command"):
        assert after[name] == stopped[name]


def test_a_run_that_was_killed_is_known_by_its_free_lock(tmp_path: Path) -> None:
    place = RunFolder(tmp_path)
    recorder = StatusWriter(FitLines(lambda text: None), place.status, "vdiff train")
    with place.lock():
        recorder.begin("original", 10, 4)
        running = run_status.read(place.status, place.is_at_work())
    killed = run_status.read(place.status, place.is_at_work())
    with place.lock():
        # who does not say whether it works has the lock looked at
        assert run_status.read(place.status) == running
    assert run_status.read(place.status) == killed
    assert running is not None
    assert killed is not None
    assert (running.state, killed.state) == ("running", "killed")
    assert (killed.stage, killed.update, killed.updates) == ("original", 4, 10)


def test_a_look_at_the_lock_does_not_keep_a_run_from_beginning(tmp_path: Path) -> None:
    place = RunFolder(tmp_path)
    assert not place.is_at_work()
    with place.lock():
        assert place.is_at_work()
    assert not place.is_at_work()
    with place.lock():
        pass


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"state": "odd"}', '{"state": 3}', "\x00", '{"state": "done"']
)
def test_a_status_that_cannot_be_believed_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    assert run_status.read(tmp_path / "status.json", False) is None


def test_values_of_the_wrong_kind_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(
        '{"state": "stopped", "update": "x", "stage": 3, "exit_code": 143}'
    )
    found = run_status.read(tmp_path / "status.json", False)
    assert found is not None
    assert (found.state, found.update, found.stage, found.exit_code) == ("stopped", 0, "", 143)


def test_the_time_of_a_stage_is_that_of_all_its_sittings(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    path.write_text(
        '{"state": "stopped", "seconds": {"original": 40.0, "base_0": 7, "odd": "x", "bad": true}}'
    )
    recorder = StatusWriter(
        FitLines(lambda text: None), path, "vdiff distill", "2 cores of a machine"
    )
    recorder.begin("original", 10, 4)
    recorder.end("original", 0.1, 1.0)
    recorder.begin("base_0", 10, 0)
    recorder.ended("done", 0)
    found = run_status.read(path, False)
    assert found is not None
    assert found.machine == "2 cores of a machine"
    assert set(found.seconds) == {"original", "base_0"}
    assert 40.0 <= found.seconds["original"] < 45.0  # gone on
    assert 0.0 <= found.seconds["base_0"] < 5.0  # begun anew


def test_a_run_says_what_it_worked_on_and_how_long(place: RunFolder) -> None:
    assert app.run(COMMAND) == 0
    found = told(place)
    assert "core" in found["machine"]
    assert set(found["seconds"]) == {"original"}


def test_a_disk_that_refuses_the_status_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    recorder = StatusWriter(FitLines(said.append), tmp_path / "file" / "status.json", "vdiff train")
    recorder.begin("original", 10, 0)
    recorder.note("it goes on")
    recorder.ended("done", 0)
    assert said[-1] == "it goes on"
    assert run_status.read(tmp_path / "file" / "status.json", False) is None


def test_the_command_to_go_on_does_not_begin_anew() -> None:
    assert (
        resume_command(["distill", "--force", "--set", "name=a b"])
        == "vdiff distill --set 'name=a b'"
    )
