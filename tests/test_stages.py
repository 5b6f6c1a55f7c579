"""Stages that a recipe lists one by one: what they mean, that the old words mean the same,
and which comes next.
"""

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor

from tests.test_chain import finish
from tests.tiny import TinyRun
from vdiff.chain.chain import choose
from vdiff.chain.plan import Stage, chosen, doubts, plan, same_start, shaping_values, stages_after
from vdiff.cli import main
from vdiff.config import shapes_weights as trajectory_field
from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.diffusion.denoiser import Denoiser
from vdiff.errors import UsageError
from vdiff.model_folder import checkpoint
from vdiff.objectives import OBJECTIVES
from vdiff.objectives.objective import Objective, ObjectiveSection, Task, add_noise
from vdiff.randomness import Randomness
from vdiff.recipe import text as recipe_text
from vdiff.recipe.recipe import Recipe
from vdiff.reporting.pictures import Studio
from vdiff.runs.values import changed

SHORT = "start_steps: 8, end_steps: 1,"


def with_stages(tiny_run: TinyRun, stages: str) -> TinyRun:
    """The tiny run with this list in the place of `end_steps`."""
    text = tiny_run.text.replace(SHORT, f"start_steps: 8, stages: {stages},")
    assert text != tiny_run.text
    (tiny_run.path / "recipe.yaml").write_text(text)
    return TinyRun(tiny_run.path, text)


@pytest.fixture
def listed(tiny_run: TinyRun) -> TinyRun:
    return with_stages(
        tiny_run,
        "[{factor: 1}, {steps: 4, updates: 3}, {steps: 4, objective: {kind: "
        "progressive, stratified: false}}]",
    )


def steps(stages: list[Stage]) -> list[tuple[str, int, int]]:
    return [(stage.name, stage.start_steps, stage.num_steps) for stage in stages]


def test_a_list_may_keep_the_number_of_steps_and_name_another_objective(listed: TinyRun) -> None:
    stages = plan(listed.recipe())
    assert steps(stages) == [
        ("original", 8, 8),
        ("base_0", 8, 8),
        ("base_1", 8, 4),
        ("base_2", 4, 4),
    ]
    assert [stage.teacher_steps for stage in stages] == [1, 1, 2, 1]
    assert [stage.settings.updates for stage in stages[1:]] == [2, 3, 2]
    objectives = [stage.settings.objective.model_dump() for stage in stages[1:]]
    assert [objective["stratified"] for objective in objectives] == [True, True, False]


@pytest.mark.parametrize(
    ("short", "stages"),
    [
        ("end_steps: 1", "[{steps: 4}, {steps: 2}, {steps: 1}]"),
        ("end_steps: 2, factor: 4", "[{factor: 4}]"),
        ("end_steps: 1, factor: [2, 4]", "[{factor: 2}, {steps: 1}]"),
        (
            (
                "end_steps: 2, overrides: {2: {updates: 7, batch_size: 3, learning_rate: "
                "0.5, weighting: snr}}"
            ),
            (
                "[{factor: 2}, {factor: 2, updates: 7, batch_size: 3, learning_rate: "
                "0.5, weighting: snr}]"
            ),
        ),
    ],
)
def test_the_short_words_mean_such_a_list(tiny_run: TinyRun, short: str, stages: str) -> None:
    first, second = (
        recipe_text.validate(
            Recipe, recipe_text.parse(tiny_run.text.replace(SHORT, f"start_steps: 8, {each},"), "r")
        )
        for each in (short, f"stages: {stages}")
    )
    assert steps(plan(first)) == steps(plan(second))
    for one, other in zip(plan(first), plan(second), strict=True):
        assert shaping_values(first, one, "fp32") == shaping_values(second, other, "fp32")


@pytest.mark.parametrize(
    ("version", "others"), [("format_1", {"precision", "distill.log_every"}), ("format_2", set())]
)
def test_a_stage_of_an_old_recipe_is_shaped_by_what_its_saves_name(
    version: str, others: set[str]
) -> None:
    """Else a run that an older version has begun could not be gone on with."""
    golden = Path(__file__).parent / "golden" / version
    recipe = recipe_text.validate(Recipe, recipe_text.read_file(golden / "recipe.yaml"))
    state = json.loads((golden / "runs/golden/saves/base_0/000000004/state.json").read_text())[
        "trajectory"
    ]
    known = {
        name: value for name, value in state.items() if name not in {"data", "teacher"} | others
    }
    now = json.loads(json.dumps(shaping_values(recipe, plan(recipe)[1], "fp32")))
    # fields that are new since then say nothing until a recipe names them
    new = {"distill.predicts", "distill.objective.clip"}
    assert all(now[name] is None for name in new)
    assert now.pop("distill.objective.teacher") == "ddim"
    assert {name: value for name, value in now.items() if name not in others | new} == known
    # and this one says what was done then
    assert changed(known, {**known, "distill.objective.teacher": "ddim"}) == []
    assert changed(known, {**known, "distill.objective.teacher": "dpmpp"}) != []


@pytest.mark.parametrize(
    ("distill", "line", "problem"),
    [
        (
            "stages: [{factor: 1}]\n  end_steps: 2",
            5,
            "`distill.end_steps`: `stages` says every stage by itself",
        ),
        (
            "stages: [{factor: 1}]\n  factor: 4",
            5,
            "`distill.factor`: `stages` says every stage by itself",
        ),
        (
            "stages: [{factor: 1}]\n  overrides: {8: {updates: 2}}",
            5,
            "`distill.overrides`: `stages` says every stage",
        ),
        (
            "stages:\n  - {factor: 1}\n  - {factor: 3}",
            6,
            "`factor` 3 does not divide the 8 steps of its teacher",
        ),
        (
            "stages:\n  - {factor: 1}\n  - {steps: 3}",
            6,
            "3 steps do not divide the 8 of its teacher",
        ),
        (
            "stages:\n  - {steps: 4}\n  - {steps: 8}",
            6,
            "its teacher has 4 steps and it would have 8",
        ),
        ("stages:\n  - {steps: 4}\n  - {updates: 8}", 6, "this one says neither"),
        ("stages:\n  - {steps: 4, factor: 2}", 5, "this one says both"),
        ("stages:\n  - {factor: 0}", 5, "`distill.stages.0.factor`: should be at least 1, is 0"),
        (
            "stages:\n  - {factor: 1}\n  - {step: 4}",
            6,
            "`distill.stages.1.step`: is unknown; did you mean `steps`?",
        ),
        ("stages:\n  - {factor: 1, objective: denoising}", 5, "it belongs into `train`"),
        ("stages: []", 4, "should be a list of at least 1"),
        ("stages: 4", 4, "`distill.stages`: should be a list, is 4"),
    ],
)
def test_a_mistake_in_a_list_is_told_where_it_is(
    tiny_run: TinyRun, distill: str, line: int, problem: str
) -> None:
    before, _, rest = tiny_run.text.partition("distill:")
    others = before + rest[rest.index("sample:") :]
    text = f"distill:\n  updates: 2\n  start_steps: 8\n  {distill}\n{others}"
    with pytest.raises(UsageError) as found:
        recipe_text.validate(Recipe, recipe_text.parse(text, "recipe.yaml"))
    said = f"{found.value.problem} {found.value.where}"
    assert problem in said
    assert f"recipe.yaml:{line}:" in found.value.where


def test_the_schema_describes_a_list_of_stages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    stage = schema["$defs"]["StageSection"]["properties"]
    assert {
        "objective",
        "steps",
        "factor",
        "updates",
        "batch_size",
        "learning_rate",
        "weighting",
    } == stage.keys()
    assert all(field["description"] for field in stage.values())


def test_a_listed_chain_can_be_stopped_anywhere(listed: TinyRun) -> None:
    listed.base(run="a")
    shutil.copytree(listed.path / "a", listed.path / "b")
    cards = listed.chain(run="a").distill()
    assert [(card.name, card.stage, card.num_steps, card.times) for card in cards] == [
        ("base_0", 1, 8, 8),
        ("base_1", 2, 4, 4),
        ("base_2", 3, 4, 4),
    ]
    base = checkpoint.read_card(listed.path / "a/original")
    assert cards[0].hash == base.hash != cards[1].hash == cards[2].hash, (
        "with as many steps there is nothing to learn"
    )
    assert finish(listed, distill=True, run="b") > 3
    assert listed.hashes("a") == listed.hashes("b")
    assert not [line for line in listed.said if "has changed" in line]


class HalvingSection(ObjectiveSection):
    """A way of learning that differs: half of what the teacher predicts, at all times i / 64."""

    needs_teacher: ClassVar[bool] = True
    is_denoiser: ClassVar[bool] = False
    kind: Literal["halving"] = trajectory_field("halving")
    """How the student learns."""

    def known_times(self, num_steps: int) -> int | None:
        return 64

    def advised_sampler(self) -> dict[str, Any] | None:
        return {"kind": "ancestral"}

    def build(self, task: Task) -> Objective:
        return Halving(task.taught_by)


class Halving(Objective):
    def __init__(self, teacher: Denoiser) -> None:
        self.teacher = teacher

    def __call__(
        self, student: Denoiser, x: Tensor, rng: Randomness, condition: Condition = NOTHING
    ) -> Tensor:
        t = ((rng.uniform() * 64).floor() + 1) / 64
        z = add_noise(x, *student.schedule.alpha_sigma(t), rng)
        with torch.no_grad():
            wanted = self.teacher(z, t, condition).x / 2
        return (student(z, t, condition, rng).x - wanted).square().mean((1, 2, 3))


def test_progressive_distillation_can_be_followed_by_another_objective(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OBJECTIVES._builtin, "halving", f"{__name__}:HalvingSection")
    mixed = with_stages(
        tiny_run, "[{steps: 4}, {steps: 4, objective: halving}, {steps: 1, objective: halving}]"
    )
    mixed.base(run="a")
    shutil.copytree(mixed.path / "a", mixed.path / "b")
    cards = mixed.chain(run="a").distill()
    assert [(card.num_steps, card.times, card.is_denoiser, card.format) for card in cards] == [
        (4, 4, False, 1),
        (4, 64, False, 2),
        (1, 64, False, 2),
    ]
    assert [card.sampler for card in cards] == [None, {"kind": "ancestral"}, {"kind": "ancestral"}]
    assert len({card.hash for card in cards}) == 3
    assert finish(mixed, distill=True, run="b") > 3
    assert mixed.hashes("a") == mixed.hashes("b")


def test_the_report_measures_no_student_by_a_target_that_it_did_not_learn(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OBJECTIVES._builtin, "halving", f"{__name__}:HalvingSection")
    mixed = with_stages(
        tiny_run, "[{steps: 4}, {steps: 4, objective: halving}, {steps: 2, objective: halving}]"
    )
    mixed.base()
    assert [card.learned_by for card in mixed.chain().distill()] == [
        "progressive",
        "halving",
        "halving",
    ]
    names = ["original", "base_0", "base_1", "base_2"]
    studio = Studio(
        {name: mixed.folder().model(name) for name in names}, mixed.path / "kept", range(2)
    )
    found = studio.gallery("original", names[1:])
    assert list(found.errors) == ["base_0"]
    strips = [
        (strip.role, strip.num_steps) for strip in found.strips if strip.role == "undistilled"
    ]
    assert strips == [("undistilled", 4), ("undistilled", 2)]


def test_a_student_that_knows_too_few_times_is_no_teacher(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OBJECTIVES._builtin, "halving", f"{__name__}:HalvingSection")
    text = tiny_run.text.replace(
        SHORT, "start_steps: 96, stages: [{factor: 1, objective: halving}],"
    )
    with pytest.raises(
        UsageError,
        match="`halving` the student `base_0` knows 64 times, and is to be drawn with in 96",
    ):
        recipe_text.validate(Recipe, recipe_text.parse(text, "recipe.yaml"))


def test_a_stage_that_would_learn_nothing_is_doubted(
    listed: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = doubts(plan(listed.recipe()))
    assert [line.partition(":")[0] for line in told] == [
        "`base_0` has as many steps as its teacher",
        "`base_2` has as many steps as its teacher",
    ]
    assert doubts(plan(listed.recipe("distill.stages=[{factor: 2}]"))) == []


def test_what_follows_a_teacher_of_the_run_follows_its_place_and_not_its_steps(
    listed: TinyRun,
) -> None:
    listed.base()
    stages, run = plan(listed.recipe()), listed.folder()
    assert [stage.name for stage in choose(run, stages, "original", None, None)[1]] == [
        "base_0",
        "base_1",
        "base_2",
    ]
    listed.chain().distill()
    assert [stage.name for stage in choose(run, stages, "base_0", None, None)[1]] == [
        "base_1",
        "base_2",
    ]
    assert [
        stage.name for stage in choose(run, stages, str(run.model("base_1")), None, None)[1]
    ] == ["base_2"]
    with pytest.raises(UsageError, match="`base_2` is the last stage") as found:
        choose(run, stages, "base_2", None, None)
    assert found.value.fix == "add another stage to `distill.stages`"
    listed.said.clear()
    listed.chain().distill("base_0", count=1)
    assert [
        line
        for line in listed.said
        if "`base_0`, `base_1` all start at 8 steps: `base_1` is what comes" in line
    ]


def test_a_teacher_from_elsewhere_is_followed_by_the_first_stage_that_starts_at_its_steps(
    listed: TinyRun,
) -> None:
    listed.base(run="other")
    listed.chain(run="other").distill(count=1)
    stages = plan(listed.recipe())
    shutil.copytree(listed.path / "other/base_0", listed.path / "given")
    following = choose(listed.folder(), stages, str(listed.path / "given"), None, None)[1]
    assert [stage.name for stage in following] == ["base_0", "base_1", "base_2"]
    assert same_start(stages, following).endswith("`base_0` is what comes next")
    assert checkpoint.read_card(listed.path / "given").num_steps == 8


def test_a_recipe_that_has_changed_is_followed_by_steps(tiny_run: TinyRun) -> None:
    stages = plan(tiny_run.recipe())
    assert [stage.name for stage in stages_after(stages, 4, "x", index=3)] == ["base_1", "base_2"]
    assert [stage.name for stage in stages_after(stages, 4, "x", index=99)] == ["base_1", "base_2"]
    assert same_start(stages, stages[2:]) == ""


def test_to_a_number_of_steps_are_all_stages_that_end_there(listed: TinyRun) -> None:
    stages = plan(listed.recipe())[1:]
    assert [stage.name for stage in chosen(stages, None, 8)] == ["base_0"]
    assert [stage.name for stage in chosen(stages, None, 4)] == ["base_0", "base_1", "base_2"]
    assert [stage.name for stage in chosen(stages, 2, 4)] == ["base_0", "base_1"]


def test_a_plan_and_a_recipe_show_stages_that_keep_their_steps(
    listed: TinyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(listed.path)
    assert main(["inspect", "recipe.yaml"]) == 0
    assert "8 -> 8" in capsys.readouterr().out
    assert main(["--json", "distill", "--dry-run", "--device", "cpu"]) == 0
    rows = json.loads(capsys.readouterr().out)["stages"]
    assert [(row["name"], row["start_steps"], row["num_steps"]) for row in rows] == steps(
        plan(listed.recipe())[1:]
    )
    assert {row["objective"] for row in rows} == {"progressive"}
