"""What `--dry-run` tells of time and memory: every part of a run is in it, and grows as the run does."""

import json
import time
from pathlib import Path

import pytest
import torch

from tests.tiny import TinyRun
from vdiff.chain import Chain
from vdiff.cli import main
from vdiff.cli.progress import FitLines
from vdiff.estimate import Estimate, estimate
from vdiff.plan import plan
from vdiff.stage_run import Surroundings
from vdiff.training import memory
from vdiff.training.machine import Machine


def estimated(run: TinyRun, *changes: str, stages: int = 2) -> Estimate:
    recipe = run.recipe(*changes)
    return estimate(recipe, plan(recipe)[:stages], Machine("fp32", "cpu"))


def test_every_part_of_a_run_is_in_the_estimate(tiny_run: TinyRun) -> None:
    found = estimated(tiny_run, "evaluate.every=2", "evaluate.metrics=[agreement, swd]", "evaluate.num_images=8")
    assert [each.stage.name for each in found.stages] == ["original", "base_0"]
    for each in found.stages:
        assert min(each.updates, each.saves, each.pictures, each.trend, each.start) > 0, each
    assert found.seconds == pytest.approx(sum(each.seconds for each in found.stages))
    quiet = estimated(tiny_run)
    assert [each.trend for each in quiet.stages] == [0, 0]


def test_what_is_done_more_often_costs_more(tiny_run: TinyRun) -> None:
    few = estimated(tiny_run, "train.updates=8", "train.save_every=4", "train.preview_every=4", stages=1).stages[0]
    many = estimated(tiny_run, "train.updates=800", "train.save_every=4", "train.preview_every=4", stages=1).stages[0]
    assert 20 < many.updates / few.updates < 500
    assert many.saves > 10 * few.saves
    assert many.pictures > 10 * few.pictures


def test_an_estimate_is_near_what_the_run_takes(tiny_run: TinyRun) -> None:
    """Roughly: other work on the machine disturbs both. The benchmark compares them closely."""
    changes = ("train.updates=150", "train.save_every=1000", "train.log_every=50")
    recipe = tiny_run.recipe(*changes)
    expected = estimate(recipe, plan(recipe)[:1], Machine("fp32", "cpu")).seconds
    begun = time.monotonic()
    progress = FitLines(tiny_run.said.append)
    Chain(Surroundings(recipe, tiny_run.text, tiny_run.folder(), Machine("fp32", "cpu"), progress, lambda: 0)).train()
    assert 0.25 < expected / (time.monotonic() - begun) < 4


def test_memory_grows_with_the_pictures_that_are_in_it_at_once(tiny_run: TinyRun) -> None:
    wide = ("network.width=32", "data.size=16", "train.batch_size=256")
    whole, parts = (
        estimated(tiny_run, *wide, f"train.micro_batch={size}", stages=1).memory_bytes for size in (256, 16)
    )
    assert whole > parts + 30e6


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can only be forgotten on Linux")
def test_the_peak_is_of_what_came_after_it_was_forgotten() -> None:
    cpu = torch.device("cpu")
    torch.ones(50_000_000)
    memory.forget_peak(cpu)
    low = memory.peak_bytes(cpu)
    torch.ones(25_000_000)
    assert 80e6 < memory.peak_bytes(cpu) - low < 150e6


def test_a_dry_run_tells_the_costs_and_writes_nothing(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny_run.path)
    before = sorted(tiny_run.path.rglob("*"))
    assert main(["distill", "--dry-run", "--json", "--device", "cpu"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert sorted(tiny_run.path.rglob("*")) == before
    assert told["seconds"] >= sum(told["parts"].values()) > 0
    assert told["memory_bytes"] > 1e7
    assert main(["train", "--dry-run", "--device", "cpu"]) == 0
    assert "memory at most" in " ".join(capsys.readouterr().err.split())
