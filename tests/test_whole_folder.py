"""Folders and files that appear complete or not at all:
in what order, and what is left when it is interrupted.
"""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.failing_disk import Call, Disk, Killed
from tests.power_cut import PowerCut
from vdiff.disk import manifest, whole_folder
from vdiff.disk.ours import Kind, anything
from vdiff.errors import MachineError, ModelFileError, UsageError

MANIFEST = "mark.json"
KIND = Kind(MANIFEST, re.compile(r"mark\.json|b\.txt|inner/(a\.txt)?"))


def write(folder: Path, content: str) -> None:
    def fill(target: Path) -> None:
        (target / "inner").mkdir()
        (target / "inner" / "a.txt").write_text(content * 3)
        (target / "b.txt").write_text(content)

    whole_folder.write(folder, KIND, {"content": content}, fill, 5_000)


def content(folder: Path) -> str:
    """What the folder holds; ModelFileError unless every byte of it is as it was written."""
    found = whole_folder.read(folder, MANIFEST)
    problems = whole_folder.damage(folder, found)
    if problems:
        raise ModelFileError("; ".join(problems), "")
    assert (folder / "inner" / "a.txt").read_text() == found["content"] * 3
    return str(found["content"])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_text_is_replaced_in_one_step_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "a" / "status.json"
    for text in ("old\n", "naïve\r\nlines\n"):
        whole_folder.write_text(path, text, anything)
        assert path.read_bytes() == text.encode()
        assert names(path.parent) == ["status.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_text_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "recipe.yaml"
    path.write_text("old")
    monkeypatch.setattr(os, step, refuse)
    with pytest.raises(
        MachineError, match=r"the disk is full: 3 bytes are needed, [\d,]+ are free"
    ) as found:
        whole_folder.write_text(path, "new", anything)
    assert str(path) in str(found.value)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["recipe.yaml"]


def test_a_folder_that_cannot_be_made_is_a_failure_of_the_machine(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="cannot write"):
        whole_folder.write_text(tmp_path / "file" / "status.json", "new", anything)


def test_a_full_disk_is_told_also_where_not_even_the_first_folder_could_be_made(
    tmp_path: Path,
) -> None:
    with Disk(tmp_path, 0).in_use(), pytest.raises(MachineError, match="the disk is full"):
        whole_folder.write_text(tmp_path / "a" / "b" / "status.json", "new", anything)


def test_what_a_killed_writer_of_a_text_left_is_removed(tmp_path: Path) -> None:
    whole_folder.write_text(tmp_path / "status.json", "old", anything)
    (tmp_path / ".status.json.partial-123-4").write_text("ne")
    whole_folder.clean(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"status.json": "old"}


def followed(
    root: Path, work: Callable[[], object], look: Callable[[list[Path]], None], place: Path
) -> PowerCut:
    """Do `work`, and after every call that it makes below `root` let `look` see all that a power
    cut may leave then.
    """
    cut, count = PowerCut(root), 0

    def watch(call: Call) -> None:
        nonlocal count
        cut.follow(call)
        states = place / str(count)
        look(list(cut.leftovers(states)))
        shutil.rmtree(states)
        count += 1

    with Disk(root, watch=watch).in_use():
        work()
    assert count > 5
    return cut


@pytest.mark.parametrize("is_there", [False, True], ids=["new", "replaced"])
def test_a_power_cut_at_any_moment_leaves_the_old_folder_or_the_new_one(
    tmp_path: Path, is_there: bool
) -> None:
    target = tmp_path / "disk" / "model"
    target.parent.mkdir()
    if is_there:
        write(target, "old")
    seen = set()

    def look(states: list[Path]) -> None:
        for state in states:
            whole_folder.clean(state, KIND)
            seen.add(content(state / "model") if (state / "model").exists() else "")
            assert names(state) in (["model"], [])

    cut = followed(target.parent, lambda: write(target, "new"), look, tmp_path / "states")
    assert seen == {"old" if is_there else "", "new"}
    assert {content(state / "model") for state in cut.leftovers(tmp_path / "after")} == {"new"}


def test_a_power_cut_at_any_moment_leaves_the_old_text_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "disk" / "status.json"
    whole_folder.write_text(path, "old", anything)
    seen = set()

    def look(states: list[Path]) -> None:
        for state in states:
            whole_folder.clean(state, KIND, files=["status.json"])
            seen.add((state / "status.json").read_text())
            assert names(state) == ["status.json"]

    def work() -> None:
        whole_folder.write_text(path, "middle", anything)
        whole_folder.write_text(path, "new", anything)

    cut = followed(path.parent, work, look, tmp_path / "states")
    assert seen == {"old", "middle", "new"}
    assert {(state / "status.json").read_text() for state in cut.leftovers(tmp_path / "after")} == {
        "new"
    }


def test_the_folders_that_are_made_for_a_folder_are_there_after_a_power_cut(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    target = tmp_path / "disk" / "saves" / "original" / "000000002"
    cut = followed(
        tmp_path / "disk", lambda: write(target, "new"), lambda _: None, tmp_path / "states"
    )
    place = target.relative_to(tmp_path / "disk")
    assert {content(state / place) for state in cut.leftovers(tmp_path / "after")} == {"new"}


def test_a_writer_and_then_the_cleaning_up_may_be_killed_at_any_call(tmp_path: Path) -> None:
    """Also those between setting the old folder aside and giving the new one its name."""
    disk, seen = tmp_path / "disk", set()
    for first in range(1000):
        shutil.rmtree(disk, ignore_errors=True)
        write(disk / "model", "old")
        with Disk(disk, first, "killed").in_use() as written:
            try:
                write(disk / "model", "new")
                break
            except Killed:
                pass
        for second in range(1000):
            shutil.copytree(disk, tmp_path / "copy")
            with (
                Disk(tmp_path / "copy", second, "killed").in_use() as cleaned,
                contextlib.suppress(Killed),
            ):
                whole_folder.clean(tmp_path / "copy", KIND)
            whole_folder.clean(tmp_path / "copy", KIND)
            seen.add(content(tmp_path / "copy" / "model"))
            assert names(tmp_path / "copy") == ["model"]
            shutil.rmtree(tmp_path / "copy")
            if len(cleaned.calls) <= second:
                break
    assert len(written.calls) > 20
    assert seen == {"old", "new"}


def test_half_of_a_folder_that_was_replaced_never_comes_back(tmp_path: Path) -> None:
    """Not even when the new one is removed before anybody cleans."""
    disk, seen = tmp_path / "disk", set()
    for number in range(1000):
        shutil.rmtree(disk, ignore_errors=True)
        write(disk / "model", "old")
        with Disk(disk, number, "killed").in_use():
            try:
                write(disk / "model", "new")
                break
            except Killed:
                pass
        shutil.rmtree(disk / "model", ignore_errors=True)
        whole_folder.clean(disk, KIND)
        seen.add(content(disk / "model") if names(disk) else "")
    assert seen == {"", "old"}


@pytest.mark.parametrize("name", ["inner/a.txt", "b.txt", MANIFEST])
def test_what_cannot_be_read_back_does_not_replace_anything(tmp_path: Path, name: str) -> None:
    """As on a disk that takes everything and keeps something else."""
    write(tmp_path / "model", "old")

    def spoil(call: Call) -> None:
        if call.kind == "fsync" and call.path.name == Path(name).name:
            data = call.path.read_bytes()
            call.path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])

    with (
        Disk(tmp_path, watch=spoil).in_use(),
        pytest.raises(MachineError, match="cannot be read back") as found,
    ):
        write(tmp_path / "model", "new")
    assert Path(name).name in found.value.problem
    assert str(tmp_path / "model`") in found.value.problem
    assert content(tmp_path / "model") == "old"
    assert names(tmp_path) == ["model"]


def test_a_folder_is_read_back_by_name_as_well(tmp_path: Path) -> None:
    write(tmp_path / "model", "new")
    whole_folder.check(tmp_path / "model", MANIFEST)
    (tmp_path / "model" / "b.txt").write_text("odd")
    with pytest.raises(MachineError, match=r"cannot be read back: b\.txt"):
        whole_folder.check(tmp_path / "model", MANIFEST)


def test_the_seal_of_a_mark_covers_every_byte_before_it(tmp_path: Path) -> None:
    write(tmp_path / "model", "new")
    path = tmp_path / "model" / MANIFEST
    before = path.read_bytes()
    for place in range(len(before)):
        for bit in (1, 2, 4, 128):
            path.write_bytes(before[:place] + bytes([before[place] ^ bit]) + before[place + 1 :])
            with pytest.raises(ModelFileError, match=r"mark\.json` is damaged"):
                whole_folder.read(path.parent, MANIFEST)
    for place in range(len(before)):
        path.write_bytes(before[:place])
        with pytest.raises(ModelFileError, match=r"mark\.json` is damaged"):
            whole_folder.read(path.parent, MANIFEST)
    path.write_bytes(before)
    assert whole_folder.read(path.parent, MANIFEST).keys() == {"content", "files"}


def test_a_mark_can_be_sealed_again(tmp_path: Path) -> None:
    write(tmp_path / "model", "new")
    path = tmp_path / "model" / MANIFEST
    path.write_text(manifest.sealed(whole_folder.read_json(path) | {"content": "other"}))
    assert whole_folder.read(path.parent, MANIFEST)["content"] == "other"


def test_removing_is_one_step(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    for number in range(1000):
        shutil.rmtree(disk, ignore_errors=True)
        write(disk / "000000002", "old")
        write(disk / "000000004", "new")
        with Disk(disk, number, "killed").in_use():
            try:
                whole_folder.remove(disk / "000000002", KIND)
                break
            except Killed:
                pass
        if (disk / "000000002").exists():
            assert content(disk / "000000002") == "old"
        whole_folder.clean(disk, KIND)
        assert [content(path) for path in disk.iterdir()] in (
            ["new"],
            ["old", "new"],
            ["new", "old"],
        )
    assert number > 5
    assert names(disk) == ["000000004"]
    whole_folder.remove(disk / "000000002", KIND)


def test_a_power_cut_never_leaves_half_of_what_is_removed_under_its_name(tmp_path: Path) -> None:
    write(tmp_path / "disk" / "000000002", "old")
    seen = []

    def look(states: list[Path]) -> None:
        seen.extend(
            [content(path) for path in state.iterdir() if path.name == "000000002"]
            for state in states
        )

    followed(
        tmp_path / "disk",
        lambda: whole_folder.remove(tmp_path / "disk" / "000000002", KIND),
        look,
        tmp_path / "states",
    )
    assert all(state in ([], ["old"]) for state in seen)
    assert seen[0] == ["old"]
    assert [] in seen


def test_nothing_behind_a_link_is_read_replaced_or_removed_and_no_link_either(
    tmp_path: Path,
) -> None:
    write(tmp_path / "outside", "old")
    (tmp_path / "runs").mkdir()
    for name in ("model", ".a.partial-1", ".b.partial-1-2"):
        (tmp_path / "runs" / name).symlink_to(tmp_path / "outside")
    (tmp_path / "runs" / "nowhere").symlink_to(tmp_path / "not there")
    whole_folder.clean(tmp_path / "runs", KIND)
    for name in ("model", "nowhere"):
        for work in (write, lambda folder, _: whole_folder.remove(folder, KIND)):
            with pytest.raises(UsageError, match=f"{name}` is there already, as a link"):
                work(tmp_path / "runs" / name, "new")
    assert content(tmp_path / "outside") == "old"
    assert names(tmp_path / "runs") == [".a.partial-1", ".b.partial-1-2", "model", "nowhere"]
    assert all(path.is_symlink() for path in (tmp_path / "runs").iterdir())


def test_a_link_inside_a_folder_is_damage(tmp_path: Path) -> None:
    for name in ("outside", "model"):
        write(tmp_path / name, "old")
    inner = tmp_path / "model" / "inner"
    shutil.rmtree(inner)
    for aim in (tmp_path / "outside" / "inner", inner):
        inner.symlink_to(aim)
        with pytest.raises(
            ModelFileError, match=r"inner/a\.txt: (leads out of the folder|missing)"
        ):
            content(tmp_path / "model")
        inner.unlink()


def test_a_file_that_cannot_be_read_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error", str(path))

    write(tmp_path / "model", "old")
    monkeypatch.setattr(manifest, "sha256_of", refuse)
    with pytest.raises(ModelFileError, match=r"b\.txt: cannot be read \(Input/output error\)"):
        content(tmp_path / "model")
