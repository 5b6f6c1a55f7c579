"""Folders and files that appear complete or not at all: in what order, and what is left when it is interrupted."""

import errno
import os
from pathlib import Path

import pytest

from vdiff import whole_folder
from vdiff.errors import MachineError


def test_a_text_is_replaced_in_one_step_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "a" / "status.json"
    for text in ("old\n", "naïve\r\nlines\n"):
        whole_folder.write_text(path, text)
        assert path.read_bytes() == text.encode()
        assert [each.name for each in path.parent.iterdir()] == ["status.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_text_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "recipe.yaml"
    path.write_text("old")
    monkeypatch.setattr(os, step, refuse)
    with pytest.raises(MachineError, match="the disk is full") as found:
        whole_folder.write_text(path, "new")
    assert str(path) in str(found.value)
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_folder_that_cannot_be_made_is_a_failure_of_the_machine(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="cannot write"):
        whole_folder.write_text(tmp_path / "file" / "status.json", "new")


def test_what_a_killed_writer_of_a_text_left_is_removed(tmp_path: Path) -> None:
    whole_folder.write_text(tmp_path / "status.json", "old")
    (tmp_path / ".status.json.partial-123-4").write_text("ne")
    whole_folder.clean(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"status.json": "old"}
