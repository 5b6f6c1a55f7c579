"""The run folder: who may work in it, and what is left when nothing came of it."""

from pathlib import Path

import pytest

from vdiff.cli import main
from vdiff.errors import InUseError, MachineError
from vdiff.runs.folder import RunFolder


def test_a_second_run_is_kept_out_and_the_first_one_named(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.lock(), pytest.raises(InUseError, match=r"process \d+ on \S+ works in"), run.lock():
        pass
    with run.lock():
        (run.path / "recipe.yaml").touch()
    with run.lock():
        assert (run.path / "recipe.yaml").exists()


def test_a_lock_leaves_nothing_where_nothing_was_made(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "runs" / "run").lock():
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["train"], 3),
        (["distill"], 4),
        (["distill", "--from", "base_5"], 4),
        (["distill", "--stages", "0"], 2),
        (["train", "--set", "data.size=9"], 2),
        (["sample", "--checkpoint", "base_5"], 4),
    ],
)
def test_a_command_that_cannot_begin_writes_nothing(
    arguments: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "-r", "digits"]) == code
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["saves", "saves/base_0", "previews", "tracker", "evaluation", "log.jsonl"]
)
def test_a_link_in_the_place_of_what_is_written_to_is_refused(tmp_path: Path, name: str) -> None:
    outside, run = tmp_path / "outside", RunFolder(tmp_path / "run")
    (outside / ".base_0.partial-1").mkdir(parents=True)
    place = run.path / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(outside)
    with pytest.raises(MachineError, match="is a link out of the run"), run.lock():
        pass
    assert (outside / ".base_0.partial-1").is_dir()


@pytest.mark.parametrize(
    "part", ["weights", "average", "optimizer", "course", "objective", "pending"]
)
def test_what_a_killed_save_left_is_removed_whatever_part_it_was_writing(
    tmp_path: Path, part: str
) -> None:
    run = RunFolder(tmp_path / "run")
    left = run.saves("base_0") / ".000000004.partial-1-1"
    left.mkdir(parents=True)
    (left / f"{part}.safetensors").touch()
    with run.lock():
        pass
    assert not left.exists()


def test_the_run_itself_may_be_a_link_to_another_disk(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "big")
    with RunFolder(tmp_path / "run").lock():
        assert (tmp_path / "big/.lock").exists()
