"""Grey, colour and transparent pictures go through every command and every tracker."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import noise_picture
from tests.tiny import TinyRun
from vdiff.cli import main
from vdiff.errors import MachineError
from vdiff.images.images import on_white, write_gif
from vdiff.machine import tracker_kinds, trackers
from vdiff.machine.trackers import Trackers

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
TRACKERS = [kind for kind in ("tensorboard", "wandb") if importlib.util.find_spec(kind) is not None]

RECIPE = """\
name: tiny
data: {{source: pictures, path: store, size: 8, channels: {channels}}}
network: {{width: 4, multipliers: [1, 2], blocks: 1}}
train: {{updates: 6, batch_size: 4, warmup_updates: 0, save_every: 5,
        preview_every: 3, log_every: 2}}
distill: {{start_steps: 4, end_steps: 2, updates: 2, batch_size: 4}}
sample: {{num_images: 4, batch_size: 4}}
evaluate: {{every: 3, num_images: 4, metrics: [swd]}}
trackers: {trackers}
"""


@pytest.mark.parametrize("channels", MODES)
def test_every_command_takes_them(
    channels: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "pictures").mkdir()
    for index in range(8):
        noise_picture(10, 10, index, MODES[channels]).save(tmp_path / "pictures" / f"{index}.png")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(channels=channels, trackers=TRACKERS))
    draw = ["sample", "--checkpoint", "base_0", "-n", "2"]
    commands = [
        ["prepare"],
        ["train"],
        ["distill"],
        [*draw, "--out", "grid.png"],
        [*draw, "--out", "folder/"],
        [*draw, "--out", "file.npz"],
        [*draw, "--out", "file.zip"],
        [*draw, "--strip", "--out", "strip.png"],
        [*draw, "--gif", "--out", "film.gif"],
        ["evaluate", "--n", "4", "--metrics", "swd,agreement"],
        ["report", "-n", "2"],
        ["compare", "original", "base_0", "--seeds", "0-1"],
        ["compare", "original", "base_0", "--seeds", "0-1", "--out", "compare.html"],
        ["inspect"],
        ["inspect", "store", "--verify"],
    ]
    for command in commands:
        if command[0] not in ("prepare", "inspect"):
            command += ["--device", "cpu"]
        assert main(command) == 0, (command, capsys.readouterr().err)
    assert "failed and is left out" not in capsys.readouterr().err
    for picture in (
        "grid.png",
        "strip.png",
        "store/preview.png",
        "runs/tiny/previews/original-0000003.png",
        "runs/tiny/base_0/samples.png",
    ):
        assert mode_of(tmp_path / picture) == MODES[channels], picture
    assert shown_by_tensorboard(tmp_path / "runs/tiny/tracker") == 3, (
        "a preview, and one at the end of each stage"
    )


def mode_of(path: Path) -> str:
    with Image.open(path) as picture:
        return picture.mode


def shown_by_tensorboard(folder: Path) -> int:
    """How many pictures TensorBoard can show."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    return sum(len(events.Images(tag)) for tag in events.Tags()["images"])


def test_transparent_parts_are_white_where_transparency_is_not_known(tmp_path: Path) -> None:
    picture = torch.tensor(
        [[[0, 0, 255]], [[0, 100, 255]], [[0, 0, 255]], [[255, 128, 0]]], dtype=torch.uint8
    )
    expected = Image.alpha_composite(
        Image.new("RGBA", (3, 1), "white"), Image.fromarray(picture.permute(1, 2, 0).numpy())
    ).convert("RGB")
    found = on_white(picture)
    assert found.shape == (3, 1, 3)
    assert (
        np.abs(found.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected).astype(int)).max()
        <= 1
    )
    assert torch.equal(on_white(found), found)
    assert on_white(torch.zeros(5, 1, 8, 8, dtype=torch.uint8)).shape == (5, 1, 8, 8)
    write_gif(tmp_path / "film.gif", torch.stack([picture, torch.zeros_like(picture)]))
    with Image.open(tmp_path / "film.gif") as film:
        film.seek(1)
        assert np.asarray(film.convert("RGB")).min() == 255, (
            "nothing of the frame before is left in a transparent one"
        )


class Broken:
    """A tracker that fails in one of its calls."""

    def __init__(self, where: str) -> None:
        self.where, self.told = where, 0

    def _do(self, what: str) -> None:
        self.told += 1
        if what == self.where:
            raise AssertionError(f"{what} does not work\nat all")

    def log(self, values: object, step: int) -> None:
        self._do("log")

    def picture(self, name: str, picture: object, step: int) -> None:
        self._do("picture")

    def close(self) -> None:
        self._do("close")


@pytest.mark.parametrize("where", ["open", "log", "picture", "close"])
def test_a_tracker_that_fails_is_left_out_which_is_said_once(where: str) -> None:
    said: list[str] = []
    found, broken, sound = Trackers(said.append), Broken(where), Broken("nowhere")

    def opened() -> Broken:
        broken._do("open")
        return broken

    found.open("broken", opened)  # type: ignore[arg-type]
    found.open("sound", lambda: sound)  # type: ignore[arg-type,return-value]
    for step in range(3):
        found.log({"loss": 1.0}, step)
        found.picture("samples", torch.zeros(4, 8, 8, dtype=torch.uint8), step)
    found.close()
    assert said == [
        (
            "the tracker `broken` failed and is left out from here on: AssertionError: "
            f"{where} does not work"
        )
    ]
    assert sound.told == 7


def test_a_training_ends_well_although_its_tracker_fails(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_run.base("trackers=[]", run="without")
    monkeypatch.setattr(tracker_kinds.TensorBoard, "picture", lambda *given: 1 / 0)
    monkeypatch.setattr(tracker_kinds.TensorBoard, "log", lambda *given: json.loads("{"))
    tiny_run.base("trackers=[tensorboard]", "train.preview_every=2")
    assert sum("the tracker `tensorboard` failed" in line for line in tiny_run.said) == 1
    assert tiny_run.hashes()["original"] == tiny_run.hashes("without")["original"]


def test_what_the_user_types_wrong_is_still_an_error(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match="is not installed"):
        trackers.check(["tensorboard"])
