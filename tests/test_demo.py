"""The demo: the whole way on the digits inside the package, with trainings that take no time."""

import json
from pathlib import Path

import pytest
from PIL import Image

from vdiff.cli import main

QUICK = ["--set", "network.width=8", "--set", "network.attention_at=[]", "--set", "train.updates=2"]
QUICK += ["--set", "distill.updates=1", "--set", "distill.overrides={}", "--set", "sample.num_images=4"]


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
    assert [stage["hash"] for stage in second["stages"]] == [stage["hash"] for stage in first["stages"]]
