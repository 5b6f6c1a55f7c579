"""A teacher that goes by 2M: what a recipe and a chain may ask of it, and what its students say."""

from pathlib import Path

import pytest

from tests.test_stages import with_stages
from tests.tiny import TinyRun
from vdiff.chain.plan import doubts, plan
from vdiff.cli import main
from vdiff.model_folder.card import read_card

DPMPP = "{kind: progressive, teacher: dpmpp}"


def told(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_only_the_stage_that_learns_from_the_base_may_have_it(
    distilled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--set", f"distill.objective={DPMPP}"]
    assert main(["recipes", "check", "recipe.yaml", *asked]) == 2
    found = told(capsys)
    assert "`base_1` is to learn from a second-order way of the student `base_0`" in found
    assert f"objective: {DPMPP}" in found


def test_a_student_is_no_teacher_of_it(distilled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--set", f"distill.objective={DPMPP}", "--set", "distill.start_steps=4"]
    asked += ["--set", "distill.factor=4", "--set", "name=other"]
    assert main(["distill", "--from", str(distilled / "base_0"), *asked]) == 2
    found = told(capsys)
    assert "is no denoiser of all times" in found
    assert "distill.objective.teacher=ddim" in found
    assert not (Path("runs/other") / "base_0").exists()


def test_few_points_for_a_step_are_doubted(tiny_run: TinyRun) -> None:
    few = with_stages(tiny_run, f"[{{steps: 4, objective: {DPMPP}}}, {{steps: 2}}]")
    (doubt,) = doubts(plan(few.recipe()))
    assert doubt == (
        "`base_0` has 2 of its teacher's steps for one of its own, and its `objective` wants 8 or "
        "more: let it start at 32 steps (`distill.start_steps`)"
    )
    enough = with_stages(tiny_run, f"[{{steps: 1, objective: {DPMPP}}}]")
    assert doubts(plan(enough.recipe())) == []


def test_a_stage_learns_from_it_and_its_student_says_so(
    distilled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--set", f"distill.objective={DPMPP}", "--set", "distill.factor=8"]
    base = str(distilled / "original")
    assert main(["distill", "--from", base, *asked, "--set", "name=second", "--device", "cpu"]) == 0
    second = read_card(Path("runs/second/base_0"))
    assert second.trajectory["distill.objective.teacher"] == "dpmpp"
    assert (second.num_steps, second.is_denoiser) == (1, False)
    first = ["--set", "distill.factor=8", "--set", "name=first", "--device", "cpu"]
    assert main(["distill", "--from", base, *first]) == 0
    card = read_card(Path("runs/first/base_0"))
    assert card.trajectory["distill.objective.teacher"] == "ddim"
    assert card.hash != second.hash
