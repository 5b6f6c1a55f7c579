"""Trackers: curves and pictures of a chain on one axis, on which nothing is there twice;
and what is not installed.
"""

import inspect
import json
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, get_args

import numpy as np
import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from PIL import Image

from tests.tiny import TinyRun
from vdiff.choices import TrackerKind
from vdiff.errors import MachineError, Stopped, UsageError
from vdiff.machine import trackers, weights_and_biases
from vdiff.machine.machine import Machine

MEASURED = (
    "evaluate.every=2",
    "evaluate.num_images=6",
    "evaluate.metrics=[agreement,swd]",
    "distill.end_steps=2",
)
PICTURES = ("train.preview_every=2", "train.save_every=2")


def events(folder: Path) -> Any:
    """What TensorBoard would show of all files together."""
    found = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard"
    )
    everything = {found.SCALARS: 0, found.IMAGES: 0}
    return found.EventAccumulator(str(folder), size_guidance=everything).Reload()


def shown(folder: Path) -> dict[str, list[int]]:
    """The steps of every curve and row of pictures."""
    found = events(folder)
    tags = found.Tags()
    curves = {tag: [each.step for each in found.Scalars(tag)] for tag in tags["scalars"]}
    return curves | {tag: [each.step for each in found.Images(tag)] for tag in tags["images"]}


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = events(folder)
    return {
        tag: [(each.step, each.value) for each in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def test_a_chain_has_one_axis_for_curves_trends_and_pictures(tiny_run: TinyRun) -> None:
    tiny_run.base(*MEASURED, *PICTURES)
    tiny_run.chain(*MEASURED, *PICTURES).distill()
    assert {
        name: steps
        for name, steps in shown(tiny_run.folder().tracker).items()
        if "rate" not in name
    } == {
        **{
            f"original/{name}": [2, 4, 5]
            for name in ("loss", "grad_norm", "skipped", "trend-6/swd")
        },
        "original/samples": [2, 4, 5],
        **{f"base_0/{name}": [6, 7] for name in ("loss", "grad_norm", "skipped")},
        **{f"base_0/trend-6/{name}": [7] for name in ("mse", "psnr", "ssim", "swd")},
        "base_0/samples": [7],
        **{f"base_1/{name}": [8, 9] for name in ("loss", "grad_norm", "skipped")},
        **{f"base_1/trend-6/{name}": [9] for name in ("mse", "psnr", "ssim", "swd")},
        "base_1/samples": [9],
    }


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_updates_that_are_done_again_are_not_shown_twice(tiny_run: TinyRun, stop: int) -> None:
    """As after a power cut: all that was told since the save is told again."""
    tiny_run.base(*MEASURED, *PICTURES, run="unbroken")
    with pytest.raises(Stopped):
        tiny_run.chain(*MEASURED, *PICTURES, stop_after=stop).train()
    run = tiny_run.folder()
    shutil.copytree(run.saves("original"), tiny_run.path / "kept")
    tiny_run.base(*MEASURED, *PICTURES)
    shutil.rmtree(run.model("original"))
    shutil.copytree(tiny_run.path / "kept", run.saves("original"), dirs_exist_ok=True)
    tiny_run.base(*MEASURED, *PICTURES)
    assert len(list(run.tracker.iterdir())) == 3
    assert curves(run.tracker) == curves(tiny_run.folder("unbroken").tracker)
    previews = [step for step in (2, 4) if step != stop]  # who stops draws none
    assert shown(run.tracker)["original/samples"] == [*previews, 5]


def test_files_of_one_second_are_read_in_the_order_they_were_written(tmp_path: Path) -> None:
    """Their names begin with the second; what follows is no order."""
    folder, machine = tmp_path / "tracker", Machine("fp32", "cpu")
    pytest.importorskip("torch.utils.tensorboard", reason="no tensorboard")
    folder.mkdir()
    time.sleep(1 - time.time() % 1)
    earlier = folder / f"events.out.tfevents.{int(time.time()):010d}.zzz"
    earlier.touch()
    with machine.trackers(folder, ["tensorboard"], "tiny", 1) as found:
        found.log({"loss": 0.5}, 1)
    assert min(folder.iterdir()) == earlier
    assert len(list(folder.iterdir())) == 2
    assert shown(folder) == {"loss": [1]}


def test_no_tracker_is_asked_when_the_recipe_wants_none(tiny_run: TinyRun) -> None:
    tiny_run.base("trackers=[]")
    assert not tiny_run.folder().tracker.exists()


def test_an_unknown_tracker_is_refused(tiny_run: TinyRun) -> None:
    with pytest.raises(UsageError):
        tiny_run.recipe("trackers=[abacus]")


def test_trackers_change_no_weights(tiny_run: TinyRun) -> None:
    tiny_run.base("trackers=[]", run="without")
    tiny_run.base(*PICTURES)
    assert tiny_run.hashes() == tiny_run.hashes("without")


@pytest.mark.parametrize("kind", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_named_before_anything_is_trained(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setitem(trackers._PACKAGES, kind, ("not_installed",))
    with pytest.raises(MachineError) as caught:
        tiny_run.base(f"trackers=[{kind}]")
    assert (caught.value.fix, caught.value.exit_code) == (f"pip install {kind}", 6)
    assert not tiny_run.folder().log.exists()


def test_every_tracker_of_accelerate_can_be_asked_for() -> None:
    assert set(LOGGER_TYPE_TO_CLASS) == set(get_args(TrackerKind))


class Kept:
    """What a tracker of accelerate is told, in all sittings."""

    told: ClassVar[list[tuple[str, Any]]] = []

    def __init__(self, **options: Any) -> None:
        self.told.append(("made", options))
        self.tracker = SimpleNamespace(info=SimpleNamespace(run_id="0123abcd"))

    def start(self) -> None:
        """Nothing is to be opened."""

    def log(self, values: dict[str, float], step: int) -> None:
        self.told.append(("curve", step))

    def log_images(self, values: dict[str, Any], step: int) -> None:
        for shown in values.values():
            picture = shown[0] if isinstance(shown, list) else shown
            self.told.append(("picture", (step, picture.size)))

    def finish(self) -> None:
        self.told.append(("closed", None))


OTHERS = sorted(set(get_args(TrackerKind)) - {"tensorboard", "wandb"})


@pytest.mark.parametrize("kind", OTHERS)
def test_a_tracker_of_accelerate_is_told_no_step_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: TrackerKind
) -> None:
    """Its options are those that its class and its package take."""
    real = inspect.signature(LOGGER_TYPE_TO_CLASS[kind].__init__)
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, kind, Kept)
    monkeypatch.setattr(trackers, "_is_installed", lambda kind: True)
    monkeypatch.setattr(Kept, "told", [])
    folder, said = tmp_path / "tracker", list[str]()
    for first in (0, 1):
        with trackers.opened([kind], folder, "tiny", first, said.append) as found:
            for step in (first, first + 1):
                found.log({"loss": 1.0}, step)
            found.picture("samples", torch.zeros(3, 8, 6, dtype=torch.uint8), first + 1)
    assert said == []
    made = [told for what, told in Kept.told if what == "made"]
    for options in made:
        real.bind(None, **options)
    assert [step for what, step in Kept.told if what == "curve"] == [0, 1, 2]
    has_pictures = kind in ("aim", "clearml", "swanlab")
    shown = [told for what, told in Kept.told if what == "picture"]
    assert shown == ([(1, (6, 8)), (2, (6, 8))] if has_pictures else [])
    if kind == "mlflow":
        assert "run_id" not in made[0]
        assert made[1]["run_id"] == "0123abcd"
    trackers.begin_anew(folder)
    with trackers.opened([kind], folder, "tiny", 0, said.append) as found:
        found.log({"loss": 1.0}, 0)
    assert [step for what, step in Kept.told if what == "curve"] == [0, 1, 2, 0]
    assert said == []


def test_pictures_go_to_every_tracker_that_accelerate_has_pictures_for() -> None:
    has_them = {kind for kind in OTHERS if hasattr(LOGGER_TYPE_TO_CLASS[kind], "log_images")}
    assert has_them == {"aim", "clearml", "swanlab"}


@pytest.mark.parametrize(
    ("text", "has_key"), [("machine api.wandb.ai login user password abc", True), ("", False)]
)
def test_a_key_is_looked_for_without_asking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, has_key: bool
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text(text)
    (tmp_path / ".netrc").chmod(0o600)
    assert weights_and_biases._has_key("https://api.wandb.ai") == has_key
    assert not weights_and_biases._has_key("https://elsewhere.org")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert weights_and_biases._has_key("https://elsewhere.org")


def test_a_stage_that_is_made_again_begins_a_further_run_of_weights_and_biases(
    tiny_run: TinyRun,
) -> None:
    tiny_run.base("trackers=[]")
    memory = tiny_run.folder().tracker / "wandb.json"
    memory.parent.mkdir()
    memory.write_text('{"id": "known", "last_step": 5}')
    tiny_run.chain("trackers=[]").distill(force=True)  # no student was there: nothing is made again
    assert json.loads(memory.read_text()) == {"id": "known", "last_step": 5}
    tiny_run.chain("trackers=[]").distill(force=True)
    assert json.loads(memory.read_text()) == {}


def test_weights_and_biases_work_without_key_and_network_and_skip_what_they_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "runs" / "tiny" / "tracker"
    known = []
    for first in (0, 1):
        with Machine("fp32", "cpu").trackers(folder, ["wandb"], "tiny", first) as found:
            for step in range(first, first + 2):
                found.log({"loss": 1.0}, step)
            found.picture("samples", torch.arange(192).view(3, 8, 8).byte(), first + 1)
        known.append(json.loads((folder / "wandb.json").read_text()))
    assert [each["last_step"] for each in known] == [1, 2]
    assert known[0]["id"] == known[1]["id"]
    trackers.begin_anew(folder)  # a stage is made again: its steps are told again, to a further run
    with Machine("fp32", "cpu").trackers(folder, ["wandb"], "tiny", 1) as found:
        found.log({"loss": 1.0}, 1)
    again = json.loads((folder / "wandb.json").read_text())
    assert again["last_step"] == 1
    assert again["id"] != known[0]["id"]
    assert list((folder / "wandb").glob("offline-run-*")), sys.modules["wandb"].__version__
    pictures = sorted((folder / "wandb").glob("offline-run-*/files/media/images/samples_*.png"))
    assert len(pictures) == 2
    with Image.open(pictures[0]) as picture:
        assert picture.size == (8, 8)
        assert np.array(picture).std() > 0
