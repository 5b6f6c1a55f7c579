"""What a run survives: losses that are not finite, saves that go wrong,
and damage to all that it could go on from.
"""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import TinyRun
from vdiff.disk import whole_folder
from vdiff.disk.manifest import manifest
from vdiff.errors import DivergedError, MachineError, ModelFileError, Stopped
from vdiff.model_folder.checkpoint import load_tensors, save_tensors
from vdiff.reporting import inspection
from vdiff.runs import savepoint
from vdiff.runs.folder import STATE as STATE_FILE
from vdiff.runs.savepoint import Saver
from vdiff.training.learner import Learner

Poison = Callable[[Callable[[Learner], bool]], None]

STATE = {
    "weights": {"w": torch.ones(3)},
    "average": {},
    "optimizer": {},
    "course": {"rollbacks": torch.tensor(0)},
}
PENDING = {"rows": torch.zeros(0, 2), "skips": torch.zeros(2, dtype=torch.int64)}


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    """Makes the losses of those updates NaN for which a function of the learner says so."""
    sound = Learner._losses

    def mix(is_bad: Callable[[Learner], bool]) -> None:
        def losses(self: Learner, *rest: Any) -> Tensor:
            return sound(self, *rest) * (float("nan") if is_bad(self) else 1.0)

        monkeypatch.setattr(Learner, "_losses", losses)

    return mix


def log(tiny_run: TinyRun) -> list[dict[str, Any]]:
    return [json.loads(line) for line in tiny_run.folder().log.read_text().splitlines()]


def test_updates_whose_loss_is_not_finite_are_skipped_counted_and_told(
    tiny_run: TinyRun, poison: Poison
) -> None:
    poison(lambda learner: learner.update in (1, 2, 3))
    tiny_run.base("train.updates=8", "train.log_every=2")
    assert [line["skipped"] for line in log(tiny_run)] == [1, 3, 3, 3]
    assert [line["loss"] is None for line in log(tiny_run)] == [False, True, False, False]
    assert sum("were skipped" in line for line in tiny_run.said) == 2


def test_a_run_stopped_among_skipped_updates_is_the_unbroken_one(
    tiny_run: TinyRun, poison: Poison
) -> None:
    more = ("train.updates=14", "train.log_every=3")
    poison(lambda learner: learner.update in (2, 4, 5, 6, 7, 8, 9, 10))
    tiny_run.base(*more, run="unbroken")
    for _ in range(13):
        with pytest.raises(Stopped):
            tiny_run.chain(*more, stop_after=1).train()
    tiny_run.base(*more)
    assert tiny_run.hashes() == tiny_run.hashes("unbroken")


def test_ten_in_a_row_end_the_training_and_the_last_finite_save_is_named(
    tiny_run: TinyRun, poison: Poison
) -> None:
    more = ("train.updates=40", "train.save_every=4", "train.log_every=5")
    poison(lambda learner: learner.update >= 6)
    for _ in range(2):  # the same command comes to the same end: the count is saved with the rest
        with pytest.raises(DivergedError, match="10 updates in a row") as found:
            tiny_run.chain(*more).train()
    newest = tiny_run.folder().points("original")[0]
    assert found.value.where == f"the last save, at update {int(newest.name)}, is finite"
    assert found.value.exit_code == 5
    weights = savepoint.load_tensors(newest / "weights.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
    assert not tiny_run.folder().models()


def test_the_count_goes_on_over_saves_and_lines(tiny_run: TinyRun, poison: Poison) -> None:
    poison(lambda learner: learner.update >= 2)
    more = ("train.updates=40", "train.log_every=3")
    for _ in range(11):
        with pytest.raises(Stopped):
            tiny_run.chain(*more, stop_after=1).train()
    with pytest.raises(DivergedError, match="10 updates in a row"):
        tiny_run.chain(*more, stop_after=1).train()


def test_a_diverged_training_goes_back_and_on_at_half_the_rate_if_it_may(
    tiny_run: TinyRun, poison: Poison
) -> None:
    more = ("train.updates=30", "train.save_every=4", "train.log_every=5", "train.decay=constant")
    poison(lambda learner: learner.update >= 6 and learner.rollbacks < 2)
    with pytest.raises(DivergedError) as found:
        tiny_run.chain(*more).train()
    assert "--set train.rollbacks=3" in found.value.fix
    assert tiny_run.base(*more, "train.rollbacks=2").updates == 30
    assert [line["learning_rate"] for line in log(tiny_run)][-1] == pytest.approx(1e-2 / 4)
    assert sum("at half the learning rate" in line for line in tiny_run.said) == 2


def test_what_is_saved_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = threading.Event()
    sound = whole_folder.write
    monkeypatch.setattr(whole_folder, "write", lambda *given: hold.wait(60) and sound(*given))
    weight = torch.ones(3)
    with Saver(tmp_path, {}) as saver:
        saver.save(1, {**STATE, "weights": {"w": weight}}, PENDING)
        weight.fill_(2)
        assert saver.saved() is None
        hold.set()
    found = savepoint.newest(tmp_path, {}, print)
    assert found is not None
    assert found.state["weights"]["w"].tolist() == [1, 1, 1]


def test_one_save_at_a_time_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy: list[int] = []
    sound = whole_folder.write

    def write(*given: Any) -> dict[str, Any]:
        busy.append(1)
        assert len(busy) == 1
        content = sound(*given)
        busy.pop()
        return content

    monkeypatch.setattr(whole_folder, "write", write)
    with Saver(tmp_path, {}) as saver:
        for update in range(1, 6):
            saver.save(update, STATE, PENDING)
        saver.wait()
        assert saver.saved() == 5
        assert saver.saved() is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000004", "000000005"]


def test_weights_that_are_not_finite_in_one_process_are_saved_by_none(tmp_path: Path) -> None:
    for writes in (True, False):
        with (
            Saver(tmp_path, {}, 2, writes, lambda here: True) as saver,
            pytest.raises(DivergedError, match="update 7"),
        ):
            saver.save(7, STATE, PENDING)
    asked: list[bool] = []
    broken = {**STATE, "weights": {"w": torch.ones(3), "v": torch.tensor([0.0, float("inf")])}}
    with Saver(tmp_path, {}, 2, False, lambda here: asked.append(here) or here) as saver:
        saver.save(6, STATE, PENDING)
        with pytest.raises(DivergedError):
            saver.save(7, broken, PENDING)
    assert asked == [False, True]
    assert not list(tmp_path.iterdir())


def test_a_save_that_goes_wrong_in_the_background_ends_the_run(
    tiny_run: TinyRun, monkeypatch: Any
) -> None:
    def full(path: Path, *rest: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    with pytest.raises(Stopped):
        tiny_run.chain(stop_after=2).train()
    before = sorted(tiny_run.folder().saves("original").rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr(savepoint, "save_tensors", full)
        with pytest.raises(
            MachineError, match=r"the disk is full: [1-9][\d,]+ bytes are needed, [\d,]+ are free"
        ):
            tiny_run.chain().train()
    assert sorted(tiny_run.folder().saves("original").rglob("*")) == before
    tiny_run.base()


def test_older_saves_stay_when_the_new_one_cannot_be_read_back(
    tmp_path: Path, monkeypatch: Any
) -> None:
    for update in (1, 2):
        savepoint.write(tmp_path, update, STATE, PENDING, {})
    sound = whole_folder._flush

    def rotting(folder: Path) -> None:
        sound(folder)
        (folder / "weights.safetensors").write_bytes(b"")

    with monkeypatch.context() as patch:
        patch.setattr(whole_folder, "_flush", rotting)
        with pytest.raises(MachineError, match=r"cannot be read back: weights\.safetensors"):
            savepoint.write(tmp_path, 3, STATE, PENDING, {})
    newest = savepoint.newest(tmp_path, {}, print)
    assert newest is not None
    assert newest.update == 2


def test_a_stage_whose_saves_are_all_damaged_is_not_begun_again_in_silence(
    tiny_run: TinyRun,
) -> None:
    with pytest.raises(Stopped):
        tiny_run.chain("train.save_every=1", stop_after=3).train()
    for point in tiny_run.folder().points("original"):
        (point / "optimizer.safetensors").write_bytes(b"")
    with pytest.raises(ModelFileError, match="no save of this stage is whole"):
        tiny_run.chain().train()
    assert sum("optimizer.safetensors" in line for line in tiny_run.said) == 2
    assert tiny_run.chain().train(force=True).updates == 5


@pytest.mark.parametrize("name", ["original", "base_0"])
def test_a_model_whose_mark_is_lost_is_not_made_again_in_silence(
    tiny_run: TinyRun, name: str
) -> None:
    tiny_run.base()
    tiny_run.chain().distill(count=1)
    folder = tiny_run.folder().model(name)
    before = (folder / "unet/diffusion_pytorch_model.safetensors").read_bytes()
    (folder / "vdiff.json").unlink()
    with pytest.raises(ModelFileError, match=r"has no vdiff\.json") as found:
        tiny_run.chain().train() if name == "original" else tiny_run.chain().distill()
    assert "--force" in found.value.fix
    assert (folder / "unet/diffusion_pytorch_model.safetensors").read_bytes() == before
    row = next(
        row for row in inspection.run(tiny_run.folder().path)["models"] if row["name"] == name
    )
    assert row["state"] == "damaged"
    assert "vdiff.json" in row["problems"][0]
    if name == "base_0":
        tiny_run.chain().distill(count=1, force=True)
    else:
        tiny_run.chain().train(force=True)
    assert not tiny_run.folder().without_manifest()


@pytest.mark.parametrize("name", ["log.jsonl", "recipe.yaml"])
def test_bytes_that_are_no_text_in_what_only_tells_are_in_nobodys_way(
    tiny_run: TinyRun, name: str
) -> None:
    tiny_run.base()
    path = tiny_run.folder().path / name
    before = path.read_bytes()
    path.write_bytes(b'{"stage": "original", "up\xffdate": 1}\n' + before)
    tiny_run.chain().distill(count=1)
    assert path.read_bytes().startswith(before)


def reseal(point: Path, *left_out: str) -> None:
    """Make the manifest of a save right again for what the folder holds now, all but some files."""
    content = whole_folder.read(point, STATE_FILE)
    (point / STATE_FILE).unlink()
    files = {name: entry for name, entry in manifest(point).items() if name not in left_out}
    (point / STATE_FILE).write_text(whole_folder.sealed({**content, "files": files}))


def test_a_file_that_the_mark_of_a_save_does_not_list_is_not_used(tiny_run: TinyRun) -> None:
    with pytest.raises(Stopped):
        tiny_run.chain(stop_after=3).train()
    for point in tiny_run.folder().points("original"):
        reseal(point, "weights.safetensors")
    with pytest.raises(ModelFileError, match="no save of this stage is whole"):
        tiny_run.base()


@pytest.mark.parametrize("part", ["weights", "average", "optimizer"])
def test_a_save_of_another_network_is_refused(tiny_run: TinyRun, part: str) -> None:
    with pytest.raises(Stopped):
        tiny_run.chain(stop_after=3).train()
    for point in tiny_run.folder().points("original"):
        tensors = load_tensors(point / f"{part}.safetensors")
        name = next(name for name, tensor in tensors.items() if tensor.ndim and len(tensor) > 1)
        save_tensors(point / f"{part}.safetensors", {**tensors, name: tensors[name][:1].clone()})
        reseal(point)
    with pytest.raises(ModelFileError, match="does not fit the network"):
        tiny_run.base()
