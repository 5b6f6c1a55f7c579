"""What `--dry-run` tells of time and memory:
every part of a run is in it, and grows as the run does.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import TinyRun
from vdiff.chain import estimate as estimating
from vdiff.chain.costs import Cost, Estimate, stage_estimate
from vdiff.chain.estimate import estimate
from vdiff.chain.plan import Stage, plan
from vdiff.chain.stage_parts import fresh, objective_of
from vdiff.cli import launch, main
from vdiff.diffusion.denoiser import Denoiser
from vdiff.machine import memory
from vdiff.machine.machine import Machine
from vdiff.objectives import OBJECTIVES
from vdiff.objectives.objective import Objective
from vdiff.samplers.ancestral import AncestralSection
from vdiff.samplers.ddim import DdimSection
from vdiff.samplers.draw import draw
from vdiff.samplers.sampler import Sampler


def estimated(run: TinyRun, *changes: str, stages: int = 2) -> Estimate:
    recipe = run.recipe(*changes)
    return estimate(recipe, plan(recipe)[:stages], Machine("fp32", "cpu"))


def test_every_part_of_a_run_is_in_the_estimate(tiny_run: TinyRun) -> None:
    found = estimated(
        tiny_run, "evaluate.every=2", "evaluate.metrics=[agreement, swd]", "evaluate.num_images=8"
    )
    assert [each.stage.name for each in found.stages] == ["original", "base_0"]
    for each in found.stages:
        assert min(each.updates, each.saves, each.pictures, each.trend, each.start) > 0, each
    assert found.seconds == pytest.approx(sum(each.seconds for each in found.stages))
    quiet = estimated(tiny_run)
    assert [each.trend for each in quiet.stages] == [0, 0]


COST = Cost(start=0.5, update=3.0, call=0.01, save=7.0, memory_bytes=0)


def test_a_stage_costs_what_its_parts_cost_as_often_as_they_are_done(tiny_run: TinyRun) -> None:
    recipe = tiny_run.recipe(
        *("train.updates=10", "train.save_every=4", "train.preview_every=3", "sample.num_images=5"),
        *("distill.start_steps=4", "evaluate.every=5", "evaluate.num_images=6"),
    )
    base, student = plan(recipe)[:2]
    found = stage_estimate(recipe, base, COST, (100.0, 10.0))
    assert (found.start, found.updates) == (0.5, 30.0)
    assert found.saves == 7.0 * (3 + 1)  # at updates 4, 8 and 10, and the model folder
    # previews at 3, 6 and 9, and the last grid
    assert found.pictures == pytest.approx(0.01 * (3 + 1) * 4 * 5)
    assert found.trend == pytest.approx(100.0 + 2 * 10.0 + 0.01 * 2 * 4 * 6)  # at updates 5 and 10
    assert found.seconds == pytest.approx(0.5 + 30 + 28 + 0.8 + 120.48)
    measured = (student.settings.updates - 1) // 5 + 1
    drawn = 4 + measured * student.num_steps  # by the teacher once
    told = stage_estimate(recipe, student, COST, (100.0, 10.0)).trend
    assert told == pytest.approx(100.0 + measured * 10.0 + 0.01 * drawn * 6)


def test_what_is_measured_is_built_as_training_builds_it(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same seed, a frozen teacher has the weights with which the base begins."""
    teachers: list[Denoiser] = []

    def watched(stage: Stage, teacher: Denoiser | None, **more: Any) -> Objective:
        if teacher is not None:
            teachers.append(teacher)
        return objective_of(stage, teacher, **more)

    monkeypatch.setattr(estimating, "objective_of", watched)
    recipe = tiny_run.recipe()
    estimate(recipe, plan(recipe)[:2], Machine("fp32", "cpu"))
    (teacher,) = teachers
    begun = fresh(recipe, (recipe.data.channels, recipe.data.size, recipe.data.size)).network
    assert not any(weight.requires_grad for weight in teacher.network.parameters())
    weights = zip(teacher.network.parameters(), begun.parameters(), strict=True)
    assert all(torch.equal(frozen, first) for frozen, first in weights)


def test_drawing_is_measured_with_the_sampler_that_the_stage_is_drawn_with(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = "tests.test_advised_sampler:AdvisingSection"
    monkeypatch.setitem(OBJECTIVES._builtin, "advising", section)
    used: set[str] = set()

    def watched(denoiser: Denoiser, sampler: Sampler, *given: Any, **options: Any) -> Tensor:
        used.add(str(sampler))
        return draw(denoiser, sampler, *given, **options)

    monkeypatch.setattr(estimating, "draw", watched)
    estimated(tiny_run, "train.objective=advising", stages=1)
    assert used == {str(AncestralSection(variance="small").build())}
    used.clear()
    estimated(tiny_run, "train.objective=advising", "sample.sampler=ddim", stages=1)
    assert used == {str(DdimSection().build())}


def test_memory_grows_with_the_pictures_that_are_in_it_at_once(tiny_run: TinyRun) -> None:
    wide = ("network.width=32", "data.size=16", "train.batch_size=256")
    memory.set_malloc_policy(sparing=False)
    torch.ones(250_000_000)  # an earlier piece of work leaves 1 GB that is free but kept
    whole, parts = (
        estimated(tiny_run, *wide, f"train.micro_batch={size}", stages=1).memory_bytes
        for size in (256, 16)
    )
    assert whole > parts + 30e6


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak can only be forgotten on Linux"
)
def test_the_peak_is_of_what_came_after_it_was_forgotten() -> None:
    cpu = torch.device("cpu")
    memory.set_malloc_policy(sparing=True)  # else what was kept for later would serve
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


@pytest.mark.parametrize("shard", ["off", "on"])
def test_several_processes_measure_together_and_one_tells(shard: str, tiny_run: TinyRun) -> None:
    asked = [
        "distill",
        "--dry-run",
        "--json",
        "--device",
        "cpu",
        "--gpus",
        "2",
        "--set",
        f"shard={shard}",
    ]
    asked += [
        "--set",
        "evaluate.every=2",
        "--set",
        "evaluate.metrics=[swd]",
        "--set",
        "evaluate.num_images=4",
    ]
    before = sorted(tiny_run.path.rglob("*"))
    command = [sys.executable, "-m", "vdiff", *asked]
    done = subprocess.run(
        command, cwd=tiny_run.path, capture_output=True, text=True, check=True, timeout=180
    )
    told = json.loads(done.stdout)
    assert told["processes"] == 2
    assert min(told["parts"].values()) > 0
    assert told["memory_bytes"] > 1e7
    assert sorted(tiny_run.path.rglob("*")) == before


def test_a_mistake_is_told_before_several_processes_start(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny_run.path)
    monkeypatch.setattr(launch, "start", lambda *given: pytest.fail("they were started"))
    asked = ["distill", "--dry-run", "--json", "--device", "cpu", "--gpus", "2", "--from", "nosuch"]
    assert main(asked) == json.loads(capsys.readouterr().out)["exit_code"] == 4


def test_of_several_processes_one_tells_a_mistake(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny_run.path)
    asked = ["distill", "--dry-run", "--json", "--device", "cpu", "--from", "nosuch"]
    for is_echo in (False, True):
        monkeypatch.setattr(launch, "is_echo", lambda is_echo=is_echo: is_echo)
        assert main(asked) == 4
        assert bool(capsys.readouterr().out) is not is_echo
