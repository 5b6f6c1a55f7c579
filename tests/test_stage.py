"""One stage of a chain: its teacher, what it learns from and what it hands on."""

import json
import shutil
from typing import Any

import pytest
import torch

from tests.tiny import TinyRun
from vdiff.chain import stage_run
from vdiff.chain.plan import Stage
from vdiff.chain.stage_parts import objective_of
from vdiff.chain.trend import Trend
from vdiff.diffusion.denoiser import Denoiser
from vdiff.errors import Stopped
from vdiff.machine import precision as machines
from vdiff.machine.machine import Machine
from vdiff.model_folder import checkpoint
from vdiff.model_folder.checkpoint import Checkpoint
from vdiff.objectives.objective import Objective
from vdiff.recipe.recipe import Recipe
from vdiff.training import loop
from vdiff.training.loop import Chore, Moment


def test_whoever_asks_the_teacher_finds_it_frozen_and_the_student_starts_from_its_whole_weights(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The objective and the trend get the teacher in the run's precision,
    and neither of them puts it there.
    """
    # emulated where the CPU does not
    monkeypatch.setattr(machines, "cpu_multiplies_bf16", lambda: True)
    found: list[tuple[str, bool, set[torch.dtype]]] = []

    def see(who: str, teacher: Denoiser) -> None:
        weights = list(teacher.network.parameters())
        learns = teacher.network.training or any(weight.requires_grad for weight in weights)
        found.append((who, learns, {weight.dtype for weight in weights}))

    class SeenTrend(Trend):
        def __init__(self, recipe: Recipe, stage: Stage, teacher: Checkpoint, *more: Any) -> None:
            see("trend", teacher.denoiser)
            super().__init__(recipe, stage, teacher, *more)

    def seen(stage: Stage, teacher: Denoiser, *more: Any) -> Objective:
        before = {name: weight.clone() for name, weight in teacher.network.state_dict().items()}
        made = objective_of(stage, teacher, *more)
        assert all(
            torch.equal(weight, before[name])
            for name, weight in teacher.network.state_dict().items()
        )
        see("objective", teacher)
        return made

    tiny_run.base("precision=bf16")
    monkeypatch.setattr(stage_run, "Trend", SeenTrend)
    monkeypatch.setattr(stage_run, "objective_of", seen)
    changes = ("precision=bf16", "distill.end_steps=4", "distill.learning_rate=1e-30")
    tiny_run.chain(*changes, machine=Machine("bf16", "cpu")).distill()
    assert found == [(who, False, {torch.bfloat16}) for who in ("objective", "trend")]
    teacher, student = (
        checkpoint.load(tiny_run.folder().model(name)) for name in ("original", "base_0")
    )
    pairs = zip(
        teacher.denoiser.network.parameters(), student.denoiser.network.parameters(), strict=True
    )
    for weight, other in pairs:
        torch.testing.assert_close(weight, other, rtol=0, atol=1e-20)  # not rounded to bf16


Seen = list[tuple[int, str]]


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What chores a stage does, with the updates that are done then."""
    seen: Seen = []

    def noting(chore: Chore) -> Chore:
        def do(now: Moment) -> None:
            seen.append((now.update, chore.do.__name__))
            chore.do(now)

        return Chore(chore.is_due, do)

    def fit(*given: Any, chores: list[Chore], **more: Any) -> bool:
        return loop.fit(*given, chores=[noting(chore) for chore in chores], **more)

    monkeypatch.setattr(stage_run, "fit", fit)
    return seen


CHORES = ("train.updates=7", "train.save_every=3", "train.preview_every=2", "train.log_every=3")
TREND = ("evaluate.every=4", "evaluate.num_images=4", "evaluate.metrics=[swd]")


def test_every_chore_is_done_when_it_is_due_and_the_trend_before_the_save(
    tiny_run: TinyRun, done: Seen
) -> None:
    tiny_run.base(*CHORES, *TREND)
    assert [each for each in done if each[1] not in ("tell", "tell_saved")] == [
        (2, "preview"),
        (3, "save"),
        (4, "measure_trend"),
        (4, "preview"),
        (6, "save"),
        (6, "preview"),
        (7, "measure_trend"),
        (7, "save"),
    ]
    assert [update for update, name in done if name == "tell"] == [*range(1, 8)]
    assert [update for update, name in done if name == "tell_saved"] == [*range(1, 8)]
    folder = tiny_run.folder()
    assert sorted(path.name for path in folder.previews.iterdir()) == [
        f"original-000000{n}.png" for n in (2, 4, 6)
    ]
    lines = [json.loads(line) for line in folder.log.read_text().splitlines()]
    assert [line["update"] for line in lines if "loss" in line] == [3, 6, 7]
    assert [line["update"] for line in lines if "trend" in line] == [4, 7]


def test_a_stage_that_is_stopped_saves_and_draws_no_more(tiny_run: TinyRun, done: Seen) -> None:
    with pytest.raises(Stopped, match="`original` is saved at update 4"):
        tiny_run.chain(*CHORES, *TREND, stop_after=4).train()
    assert [name for update, name in done if update == 4] == [
        "tell",
        "measure_trend",
        "tell_saved",
        "save",
    ]


def test_without_trend_and_previews_there_is_nothing_but_the_log_and_the_saves(
    tiny_run: TinyRun, done: Seen
) -> None:
    tiny_run.base()
    assert {name for _, name in done} == {"tell", "tell_saved", "save"}
    assert [update for update, name in done if name == "save"] == [2, 4, 5]


HALVED = ("distill.start_steps=4", "distill.end_steps=1")


def test_the_next_teacher_is_what_was_just_written_and_has_its_bits(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_run.base(*HALVED, run="apart")
    shutil.copytree(tiny_run.folder("apart").path, tiny_run.folder("at once").path)
    for _ in range(2):
        tiny_run.chain(*HALVED, run="apart").distill(count=1)
    read: list[str] = []
    load_tensors = checkpoint.load_tensors
    monkeypatch.setattr(
        checkpoint,
        "load_tensors",
        lambda path, *more: (read.append(path.parts[-3]), load_tensors(path, *more))[1],
    )
    tiny_run.chain(*HALVED, run="at once").distill()
    assert read == ["original"]
    assert tiny_run.hashes("at once") == tiny_run.hashes("apart")


def test_a_kept_student_is_the_next_teacher_and_not_what_was_written_before_it(
    tiny_run: TinyRun,
) -> None:
    tiny_run.base()
    tiny_run.chain().distill()
    whole = {**tiny_run.hashes(), "log.jsonl": ""}
    for name in (
        "base_0",
        "base_2",
    ):  # made again, base_0 has the bits that base_1 was distilled from
        shutil.rmtree(tiny_run.folder().model(name))
    tiny_run.chain().distill()
    assert {**tiny_run.hashes(), "log.jsonl": ""} == whole
