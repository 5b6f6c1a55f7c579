"""`--profile`: a few updates are measured, part by part, and the run goes on as ever."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from tests.tiny import TinyRun
from vdiff import phases
from vdiff.cli import app
from vdiff.phases import PHASES
from vdiff.training.profile import MEASURED


def test_a_profile_tells_the_parts_of_an_update_and_changes_nothing(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny_run.path)
    more = [
        "--set",
        "train.updates=9",
        "--set",
        "distill.updates=9",
        "--set",
        "distill.start_steps=2",
    ]
    hashes = []
    for run, option in (("plain", []), ("profiled", ["--profile"])):
        assert app.run(["train", "--device", "cpu", "--run", run, *more, *option]) == 0
        assert app.run(["distill", "--device", "cpu", "--run", run, *more, *option]) == 0
        hashes.append(tiny_run.hashes(run))
    assert hashes[0] == hashes[1]
    said = capsys.readouterr().err
    for name in PHASES:
        assert f"  {name} " in said
    for stage, parts in (
        ("original", set(PHASES) - {"teacher"}),
        ("base_0", set(PHASES) - {"average"}),
    ):
        trace = json.loads(
            gzip.decompress(Path("profiled/profile", f"{stage}.json.gz").read_bytes())
        )
        names = [
            event.get("name", "")
            for event in trace["traceEvents"]
            if event.get("cat") == "user_annotation"
        ]
        assert {name.removeprefix("vdiff ") for name in names if name.startswith("vdiff ")} == parts
        assert names.count("vdiff backward") == MEASURED
    assert not Path("plain/profile").exists()


def test_a_stage_that_is_too_short_to_be_measured_says_so(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny_run.path)
    assert app.run(["train", "--device", "cpu", "--profile"]) == 0
    assert "no profile: it needs 8 updates, there were 5" in capsys.readouterr().err
    assert not list(Path().rglob("profile"))


def test_on_a_gpu_every_phase_is_over_when_the_gpu_has_done_it(
    monkeypatch: pytest.MonkeyPatch, tiny_run: TinyRun
) -> None:
    waits: list[None] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(None))
    tiny_run.chain("train.updates=1").train()
    assert not waits
    monkeypatch.setattr(phases, "gpu_is_measured", True)
    marked: list[str] = []
    plain = torch.profiler.record_function
    monkeypatch.setattr(
        torch.profiler, "record_function", lambda name: (marked.append(name), plain(name))[1]
    )
    tiny_run.chain(
        "train.updates=1", "distill.updates=1", "distill.end_steps=4", "distill.ema=0.9"
    ).distill()
    assert set(marked) == {f"vdiff {name}" for name in PHASES}
    assert len(waits) == len(marked)
