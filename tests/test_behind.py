"""A process that has more of a run on its own disk than the first one is heard before any work."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vdiff.chain import behind
from vdiff.errors import UsageError
from vdiff.runs.folder import RunFolder


class Two:
    """Two processes with a disk each, as `refuse_if_behind` sees them."""

    world_size = 2

    def __init__(self, places: list[Path]) -> None:
        self._places = places

    def named(self, rank: int) -> str:
        return f"process {rank}"

    def everybody(self, find: Callable[[], Any]) -> list[Any]:
        found = []
        before = Path.cwd()
        for place in self._places:
            os.chdir(place)
            found.append(find())
        os.chdir(before)
        return found


@pytest.fixture
def disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A complete base in both."""
    places = [tmp_path / "first", tmp_path / "second"]

    class Card:
        updates = 10
        hash = "a" * 64

    monkeypatch.setattr(behind, "read_card", lambda folder: Card)
    for place in places:
        model = place / "run/original"
        model.mkdir(parents=True)
        (model / "vdiff.json").write_text("{}")
    return places


def again(place: Path, update: int) -> None:
    """The base is made again there, and has this save."""
    saves = RunFolder(place / "run").anew("original")
    (saves / f"{update:09d}").mkdir(parents=True)
    (saves / f"{update:09d}/state.json").write_text(f"{update}")
    (saves / "again.json").write_text("{}")


def is_refused(places: list[Path]) -> bool:
    processes: Any = Two(places)
    try:
        behind.refuse_if_behind(processes, RunFolder(Path("run")), ["original"])
    except UsageError as err:
        return "or more of it" in err.problem
    return False


def test_equal_disks_are_let_pass(disks: list[Path]) -> None:
    assert not is_refused(disks)
    for place in disks:
        again(place, 4)
    assert not is_refused(disks)


def test_what_is_made_again_is_as_far_as_its_saves_are(disks: list[Path]) -> None:
    """The model that is still there is the old one: on both disks it is equal."""
    again(disks[0], 4)
    again(disks[1], 6)
    assert is_refused(disks)
    assert not is_refused(disks[::-1])


def test_a_finished_model_is_further_than_one_that_is_made_again(disks: list[Path]) -> None:
    again(disks[0], 4)
    assert is_refused(disks)
