"""The demo: the whole way on the digits inside the package, with trainings that take no time."""

import json
import signal
from pathlib import Path

import pytest
from PIL import Image

from vdiff.chain.chain import Chain
from vdiff.cli import main
from vdiff.cli.signals import StopRequest

CHANGES = (
    "network.width=8",
    "network.multipliers=[1]",
    "network.attention_at=[]",
    "train.updates=2",
    "distill.start_steps=8",
    "distill.factor=2",
    "distill.updates=1",
    "distill.overrides={}",
    "sample.num_images=4",
)
QUICK = [word for change in CHANGES for word in ("--set", change)]


def demo(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, list[dict[str, str]]]:
    monkeypatch.chdir(folder.parent)
    assert main(["demo", "--json", "--out", folder.name, *QUICK]) == 0
    shown: dict[str, list[dict[str, str]]] = json.loads(capsys.readouterr().out)
    return shown


def test_the_demo_goes_the_whole_way_and_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "demo"
    first = demo(folder, monkeypatch, capsys)
    picture = Image.open(folder / "digits.png")
    assert picture.width > 16 * 48
    assert picture.text["vdiff.model"]  # type: ignore[attr-defined]
    assert 'name="generator" content="vdiff report' in (folder / "report.html").read_text("utf-8")
    assert [stage["num_steps"] for stage in first["stages"]][-3:] == [4, 2, 1]
    last = folder / "runs" / "digits" / first["stages"][-1]["name"]
    for file in sorted(last.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    last.rmdir()
    second = demo(folder, monkeypatch, capsys)
    assert [stage["hash"] for stage in second["stages"]] == [
        stage["hash"] for stage in first["stages"]
    ]


def test_a_mistake_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--out", "demo", "--set", "wrong.key=1"]) == 2
    assert not (tmp_path / "demo" / "digits").exists()


def test_a_signal_that_comes_when_the_base_is_complete_ends_the_demo_before_the_next_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(chain: Chain, force: bool = False) -> None:
        monkeypatch.setattr(StopRequest, "__call__", lambda request: signal.SIGTERM)

    def begun(*given: object) -> None:
        pytest.fail("the next stage is begun")

    monkeypatch.setattr(Chain, "train", trained)
    monkeypatch.setattr(Chain, "distill", begun)
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--out", "demo", *QUICK]) == 143
