"""One stage of a chain: its teacher, what it learns from and what it hands on."""

from typing import Any

import pytest
import torch

from tests.tiny import TinyRun
from vdiff import checkpoint, stage_run
from vdiff.checkpoint import Checkpoint
from vdiff.diffusion.denoiser import Denoiser
from vdiff.objectives.objective import Objective
from vdiff.plan import Stage
from vdiff.recipe import Recipe
from vdiff.stage_parts import objective_of
from vdiff.training import machine as machines
from vdiff.training.machine import Machine
from vdiff.trend import Trend


def test_whoever_asks_the_teacher_finds_it_frozen_and_the_student_starts_from_its_whole_weights(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The objective and the trend get the teacher in the run's precision, and neither of them puts it there."""
    monkeypatch.setattr(machines, "cpu_multiplies_bf16", lambda: True)  # emulated where the CPU does not
    found: list[tuple[str, bool, set[torch.dtype]]] = []

    def see(who: str, teacher: Denoiser) -> None:
        weights = list(teacher.network.parameters())
        learns = teacher.network.training or any(weight.requires_grad for weight in weights)
        found.append((who, learns, {weight.dtype for weight in weights}))

    class Seen(Trend):
        def __init__(self, recipe: Recipe, stage: Stage, teacher: Checkpoint, *more: Any) -> None:
            see("trend", teacher.denoiser)
            super().__init__(recipe, stage, teacher, *more)

    def seen(stage: Stage, teacher: Denoiser) -> Objective:
        before = {name: weight.clone() for name, weight in teacher.network.state_dict().items()}
        made = objective_of(stage, teacher)
        assert all(torch.equal(weight, before[name]) for name, weight in teacher.network.state_dict().items())
        see("objective", teacher)
        return made

    tiny_run.base("precision=bf16")
    monkeypatch.setattr(stage_run, "Trend", Seen)
    monkeypatch.setattr(stage_run, "objective_of", seen)
    changes = ("precision=bf16", "distill.end_steps=4", "distill.learning_rate=1e-30")
    tiny_run.chain(*changes, machine=Machine("bf16", "cpu")).distill()
    assert found == [(who, False, {torch.bfloat16}) for who in ("objective", "trend")]
    teacher, student = (checkpoint.load(tiny_run.folder().model(name)) for name in ("original", "base_0"))
    pairs = zip(teacher.denoiser.network.parameters(), student.denoiser.network.parameters(), strict=True)
    for weight, other in pairs:
        torch.testing.assert_close(weight, other, rtol=0, atol=1e-20)  # not rounded to bf16
