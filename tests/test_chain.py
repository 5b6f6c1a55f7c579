"""A chain of trainings: which are made, which are kept, and that it can be stopped anywhere."""

import itertools
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import MakePictures
from tests.tiny import TinyRun
from vdiff.chain.chain import choose
from vdiff.chain.plan import plan
from vdiff.cli import estimates
from vdiff.data.prepare import prepare
from vdiff.errors import DataError, InUseError, ModelFileError, Stopped, UsageError
from vdiff.machine.machine import Machine
from vdiff.model_folder import checkpoint
from vdiff.training.settings import FitSection


def finish(
    tiny_run: TinyRun, *changes: str, distill: bool = False, run: str = "run", stop_after: int = 1
) -> int:
    """The same command again and again, each time stopped after some updates; how often it was."""
    codes: list[int] = []
    while len(codes) < 100:
        chain = tiny_run.chain(*changes, stop_after=stop_after, run=run)
        try:
            chain.distill() if distill else chain.train()
        except Stopped as news:
            codes.append(news.exit_code)
        else:
            break
    assert set(codes) <= {143}
    return len(codes)


def test_the_whole_chain_leaves_a_model_per_stage_with_its_steps_parent_and_hashes(
    tiny_run: TinyRun,
) -> None:
    base = tiny_run.base()
    students = tiny_run.chain().distill()
    assert tiny_run.folder().models() == ["original", "base_0", "base_1", "base_2"]
    assert [card.num_steps for card in students] == [4, 2, 1]
    assert [card.is_distilled for card in (base, *students)] == [False, True, True, True]
    teachers = [base, *students[:-1]]
    assert [card.parent for card in students] == [
        {"name": card.name, "num_steps": card.num_steps, "hash": card.hash} for card in teachers
    ]
    assert len({card.hash for card in (base, *students)}) == 4
    for name in tiny_run.folder().models():
        assert checkpoint.damage(tiny_run.folder().model(name)) == []
    left = [
        path.relative_to(tiny_run.folder().path).as_posix()
        for path in tiny_run.folder().path.glob("saves/*/*")
    ]
    assert left == ["saves/original/000000005"], (
        "the base's last save, from which a longer training can go on"
    )
    assert tiny_run.folder().recipe.read_text() == tiny_run.text


def test_the_log_has_a_line_per_so_many_updates_of_every_stage(tiny_run: TinyRun) -> None:
    tiny_run.base()
    tiny_run.chain().distill(count=1)
    lines = [json.loads(line) for line in tiny_run.folder().log.read_text().splitlines()]
    assert [(line["stage"], line["update"]) for line in lines] == [
        ("original", 2),
        ("original", 4),
        ("original", 5),
        ("base_0", 1),
        ("base_0", 2),
    ]
    assert set(lines[0]) == {"stage", "update", "loss", "grad_norm", "learning_rate", "skipped"}
    assert [line["learning_rate"] for line in lines[-2:]] == [1e-2, 0.5e-2]


def test_finished_stages_are_kept(tiny_run: TinyRun) -> None:
    tiny_run.base()
    tiny_run.chain().distill(count=1)
    before = tiny_run.hashes()
    tiny_run.base()
    cards = tiny_run.chain().distill(to=2)
    assert [card.name for card in cards] == ["base_0", "base_1"]
    after = tiny_run.hashes()
    assert {name: after[name] for name in ("original", "base_0")} == {
        name: before[name] for name in ("original", "base_0")
    }
    assert any("base_0" in line and "complete already" in line for line in tiny_run.said)


def test_a_number_of_stages_goes_on_after_the_last_finished_one(tiny_run: TinyRun) -> None:
    tiny_run.base()
    made = [tiny_run.chain().distill(count=1)[0].name for _ in range(3)]
    assert made == ["base_0", "base_1", "base_2"]


def test_force_makes_the_same_model_again(tiny_run: TinyRun) -> None:
    first = tiny_run.base()
    assert tiny_run.chain().train(force=True).hash == first.hash
    assert len(tiny_run.folder().log.read_text().splitlines()) == 3


def test_a_base_made_anew_makes_distill_refuse_the_old_students(tiny_run: TinyRun) -> None:
    tiny_run.base()
    tiny_run.chain().distill(count=1)
    tiny_run.chain("seed=4").train(force=True)
    with pytest.raises(UsageError, match="`base_0` was distilled from another `original`"):
        tiny_run.chain("seed=4").distill()
    assert (
        tiny_run.chain("seed=4").distill(count=1, source="original", force=True)[0].name == "base_0"
    )


def test_a_student_with_other_steps_than_the_recipe_plans_is_refused(tiny_run: TinyRun) -> None:
    tiny_run.base()
    tiny_run.chain().distill(count=1)
    with pytest.raises(UsageError, match="`base_0` has 4 steps, the recipe's has 2"):
        tiny_run.chain("distill.factor=[4, 2]").distill()


def test_a_chain_starts_from_any_model_folder(tiny_run: TinyRun) -> None:
    tiny_run.base()
    outside = tiny_run.path / "elsewhere"
    shutil.copytree(tiny_run.folder().model("original"), outside)
    card = tiny_run.chain(run="other").distill(str(outside), count=1)[0]
    assert card.parent is not None
    assert card.parent["hash"] == checkpoint.read_card(outside).hash
    assert tiny_run.folder("other").models() == ["base_0"]
    tiny_run.chain().distill(count=1)
    assert card.hash == tiny_run.hashes()["base_0"]


def test_the_classes_are_those_of_the_teacher(tiny_run: TinyRun) -> None:
    tiny_run.base()
    outside = str(tiny_run.folder().model("original"))
    card = tiny_run.chain("network.num_classes=null", run="other").distill(outside, count=1)[0]
    assert card.num_classes == 2


def test_a_choice_of_stages_that_makes_no_sense_is_refused_with_what_there_is(
    tiny_run: TinyRun,
) -> None:
    stages, run = plan(tiny_run.recipe()), tiny_run.folder()
    with pytest.raises(ModelFileError, match="no model folder `original`") as found:
        choose(run, stages, None, None, None)
    assert found.value.fix == "run `vdiff train` first"
    tiny_run.base()
    tiny_run.chain().distill()
    with pytest.raises(UsageError, match="`base_2` is the last stage"):
        choose(run, stages, "base_2", None, None)
    with pytest.raises(UsageError, match="--stages 0 asks for nothing"):
        choose(run, stages, None, 0, None)
    with pytest.raises(UsageError, match="no stage ends at 3 steps") as found_steps:
        choose(run, stages, None, None, 3)
    assert found_steps.value.fix == "choose one of: 4, 2, 1"
    with pytest.raises(ModelFileError, match="no model folder `base_7`") as found_name:
        choose(run, stages, "base_7", None, None)
    assert found_name.value.fix == "take one of: original, base_0, base_1, base_2"
    assert [stage.name for stage in choose(run, stages, "original", None, 2)[1]] == [
        "base_0",
        "base_1",
    ]
    assert [stage.name for stage in choose(run, stages, "base_0", 1, None)[1]] == ["base_1"]
    with pytest.raises(UsageError, match="no stage of the recipe starts there") as found_start:
        choose(run, plan(tiny_run.recipe("distill.start_steps=4")), "original", None, None)
    assert "distill.start_steps=8" in found_start.value.fix


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_training_stopped_again_and_again_is_the_unbroken_one(
    tiny_run: TinyRun, stop_after: int
) -> None:
    tiny_run.base(run="unbroken")
    stops = finish(tiny_run, stop_after=stop_after)
    assert stops == {1: 4, 2: 2, 3: 1}[stop_after]
    assert tiny_run.hashes() == tiny_run.hashes("unbroken")
    assert [path.name for path in tiny_run.folder().path.glob("saves/*/*")] == ["000000005"]


@pytest.mark.parametrize("updates", [1, 3])
def test_a_chain_stopped_again_and_again_is_the_unbroken_one(
    tiny_run: TinyRun, updates: int
) -> None:
    """With one update per stage every stop falls on the border between two stages."""
    more = (
        f"distill.updates={updates}",
        "distill.end_steps=2",
        "distill.dropout=true",
        "distill.ema=0.5",
    )
    tiny_run.base(run="unbroken")
    shutil.copytree(tiny_run.folder("unbroken").path, tiny_run.folder().path)
    tiny_run.chain(*more, run="unbroken").distill()
    assert finish(tiny_run, *more, distill=True) == {1: 1, 3: 5}[updates]
    assert tiny_run.hashes() == tiny_run.hashes("unbroken")


def stopped(tiny_run: TinyRun, updates: int, *changes: str) -> None:
    with pytest.raises(Stopped):
        tiny_run.chain(*changes, stop_after=updates).train()


def test_a_changed_recipe_is_refused_with_what_changed(tiny_run: TinyRun) -> None:
    stopped(tiny_run, 3)
    with pytest.raises(UsageError, match="the recipe changed since this stage was begun") as found:
        tiny_run.chain("train.learning_rate=2e-3", "network.dropout=0").train()
    assert found.value.where == "network.dropout: 0.1 -> 0.0; train.learning_rate: 0.01 -> 0.002"
    assert tiny_run.chain().train().updates == 5


def test_harmless_changes_are_accepted(tiny_run: TinyRun) -> None:
    tiny_run.base(run="unbroken")
    stopped(tiny_run, 3)
    tiny_run.chain(
        "name=other", "train.save_every=1", "data.workers=0", "sample.num_images=1"
    ).train()
    assert tiny_run.hashes()["original"] == tiny_run.hashes("unbroken")["original"]


def test_the_micro_batch_may_change_on_the_way(tiny_run: TinyRun) -> None:
    assert FitSection(updates=1, micro_batch=3).micro_batch == 3
    stopped(tiny_run, 3)
    assert tiny_run.chain("train.micro_batch=2").train().updates == 5


class Tight(Machine):
    """A CPU that tells of so little memory that some pictures must wait."""

    def available_bytes(self) -> int | None:
        return 600_000


def test_a_chain_finds_how_many_pictures_fit_and_keeps_that_number_when_it_goes_on(
    tiny_run: TinyRun,
) -> None:
    alone = (
        "network.multipliers=[1, 2]",
        "train.micro_batch=null",
        "distill.micro_batch=null",
        "distill.start_steps=4",
    )
    with pytest.raises(Stopped):
        tiny_run.chain(*alone, stop_after=2, machine=Tight("fp32", "cpu")).train()
    assert [line.split(":")[0] for line in tiny_run.said if "at once" in line] == [
        "2 of 6 pictures at once"
    ]
    tiny_run.said.clear()
    tiny_run.chain(*alone).train()
    save = tiny_run.folder().points("original")[0]
    assert load_file(save / "course.safetensors")["micro_batch"] == 2
    assert not [line for line in tiny_run.said if "at once" in line]
    tiny_run.chain(*alone, machine=Tight("fp32", "cpu")).distill()
    assert [line for line in tiny_run.said if "of 6 pictures at once" in line]


def test_another_size_is_refused(tiny_run: TinyRun) -> None:
    stopped(tiny_run, 3)
    with pytest.raises(UsageError, match="changed") as found:
        tiny_run.chain("data.size=16").train()
    assert found.value.where == "data.size: 8 -> 16"


def test_other_pictures_are_refused(
    tiny_run: TinyRun, store: Path, make_pictures: MakePictures
) -> None:
    stopped(tiny_run, 3)
    prepare(make_pictures(13, classes=("cat", "dog")), store, sizes=[8], force=True)
    with pytest.raises(DataError, match="not those that this stage was begun with"):
        tiny_run.chain().train()


@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "mark"])
def test_a_damaged_save_is_passed_over_for_the_one_before(tiny_run: TinyRun, harm: str) -> None:
    tiny_run.base(run="unbroken")
    stopped(tiny_run, 3)
    old, new = sorted(tiny_run.folder().saves("original").iterdir())
    assert (old.name, new.name) == ("000000002", "000000003")
    victim = new / ("state.json" if harm == "mark" else "weights.safetensors")
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    if harm == "remove":
        victim.unlink()
    else:
        victim.write_bytes(content[:-1] if harm in ("cut", "mark") else content)
    if harm == "mark":
        victim.write_bytes(b"{")
    tiny_run.base()
    assert any("damaged" in line for line in tiny_run.said)
    assert any("going on at update 2" in line for line in tiny_run.said)
    assert tiny_run.hashes() == tiny_run.hashes("unbroken")


def test_two_saves_are_kept_and_the_last_one_of_a_complete_base(tiny_run: TinyRun) -> None:
    stopped(tiny_run, 4, "train.save_every=1")
    saves = tiny_run.folder().saves("original")
    assert sorted(path.name for path in saves.iterdir()) == ["000000003", "000000004"]
    tiny_run.base()
    assert sorted(path.name for path in saves.iterdir()) == ["000000005"]
    assert tiny_run.folder().unfinished() == []
    tiny_run.base("train.keep_state=false")
    assert not saves.exists()
    tiny_run.chain().distill()
    assert list((tiny_run.folder().path / "saves").iterdir()) == []


def test_a_clock_that_jumps_changes_neither_the_order_of_saves_nor_what_is_learned(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_run.base(run="unbroken")
    clock = itertools.cycle([4e9, 0.0, 1e9, 2e9])
    monkeypatch.setattr(time, "time", lambda: next(clock))
    folder = tiny_run.folder()
    for update in range(1, 5):
        stopped(tiny_run, 1, "train.save_every=1")
        newest_first = folder.points("original")
        assert [int(point.name) for point in newest_first] == list(
            range(update, max(0, update - 2), -1)
        )
        with folder.lock():
            os.utime(folder.path / ".lock", (4e9, 4e9))
            assert folder.is_at_work()
        assert not folder.is_at_work()
        for age, point in enumerate(newest_first):
            for path in (*point.iterdir(), point):  # the newest one seems to be the oldest
                os.utime(path, (1e9 * age, 1e9 * age))
    tiny_run.base("train.save_every=1")
    assert tiny_run.hashes() == tiny_run.hashes("unbroken")


def test_saves_that_a_killed_run_left_beside_a_finished_model_go(tiny_run: TinyRun) -> None:
    stopped(tiny_run, 3)
    saves = tiny_run.folder().saves("original")
    shutil.copytree(saves, tiny_run.path / "copy")
    tiny_run.base()
    shutil.copytree(tiny_run.path / "copy", saves, dirs_exist_ok=True)
    assert len(list(saves.iterdir())) == 3
    tiny_run.base()
    assert [path.name for path in saves.iterdir()] == ["000000005"]


def test_a_second_run_in_the_same_folder_is_refused(tiny_run: TinyRun) -> None:
    folder = tiny_run.folder()
    with (
        folder.lock(),
        pytest.raises(InUseError, match=r"process \d+ on \S+ works in"),
        folder.lock(),
    ):
        pass
    with folder.lock():
        assert not list(folder.path.glob(".*partial*"))


@pytest.mark.parametrize(
    ("stage", "again"),
    [
        ("original", "vdiff train --force"),
        ("base_0", "vdiff distill --from original --stages 1 --force"),
        ("base_1", "vdiff distill --from base_0 --stages 1 --force"),
    ],
)
@pytest.mark.parametrize("spoil", ["remove", "cut"])
def test_a_finished_stage_that_is_not_all_there_is_not_called_complete(
    tiny_run: TinyRun, stage: str, again: str, spoil: str
) -> None:
    tiny_run.base()
    tiny_run.chain().distill(count=2)
    weights = tiny_run.folder().model(stage) / "unet/diffusion_pytorch_model.safetensors"
    data = weights.read_bytes()
    weights.unlink()
    if spoil == "cut":
        weights.write_bytes(data[:-1])
    before = len(tiny_run.said)
    with pytest.raises(ModelFileError, match="is damaged") as caught:
        tiny_run.base() if stage == "original" else tiny_run.chain().distill("original", count=2)
    assert caught.value.fix.endswith(again)
    assert "unet/diffusion_pytorch_model.safetensors" in caught.value.where
    choice = None if stage == "original" else ("original", 2, None)
    with pytest.raises(ModelFileError, match="is damaged"):
        estimates.show(tiny_run.recipe(), choice, tiny_run.folder(), "cpu", force=False)
    assert not any("skipped" in line for line in tiny_run.said[before:])
    (tiny_run.folder().model(stage) / "samples.png").unlink()
    weights.write_bytes(data)
    tiny_run.base()
    tiny_run.chain().distill("original", count=2)  # a picture is nothing that a model needs
