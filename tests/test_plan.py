"""The plan of a chain: which stages a recipe means, and what each of them does differently."""

import json
import re
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.tiny import TinyRun
from vdiff.chain.plan import Stage, chosen, doubts, plan, shaping_values, stages_after
from vdiff.config import values_that_shape_weights
from vdiff.errors import UsageError
from vdiff.recipe import text as recipe_text
from vdiff.recipe.recipe import DistillSection, Recipe
from vdiff.training.step_counts import step_counts


def steps(stages: list[Stage]) -> list[tuple[str, int, int]]:
    return [(stage.name, stage.start_steps, stage.num_steps) for stage in stages]


def test_halving_makes_a_stage_per_power_of_two(tiny_run: TinyRun) -> None:
    stages = plan(tiny_run.recipe())
    assert steps(stages) == [
        ("original", 8, 8),
        ("base_0", 8, 4),
        ("base_1", 4, 2),
        ("base_2", 2, 1),
    ]
    assert [stage.index for stage in stages] == [0, 1, 2, 3]
    assert [stage.teacher_steps for stage in stages] == [1, 2, 2, 2]


def test_a_factor_of_four_takes_two_halvings_at_once(tiny_run: TinyRun) -> None:
    stages = plan(tiny_run.recipe("distill.factor=4", "distill.start_steps=1024"))
    assert steps(stages)[1:] == [
        ("base_0", 1024, 256),
        ("base_1", 256, 64),
        ("base_2", 64, 16),
        ("base_3", 16, 4),
        ("base_4", 4, 1),
    ]
    assert {stage.teacher_steps for stage in stages[1:]} == {4}


def test_every_stage_can_have_a_factor_of_its_own(tiny_run: TinyRun) -> None:
    stages = plan(tiny_run.recipe("distill.start_steps=24", "distill.factor=[4, 3, 2]"))
    assert [stage.num_steps for stage in stages] == [24, 6, 2, 1]
    assert [stage.teacher_steps for stage in stages] == [1, 4, 3, 2]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            ["distill.start_steps=6"],
            (
                "`factor` 2 leads from 6 steps to 3, which 2 does not divide: "
                "`factor: [2, 3]` leads to 1; with `factor` as it is, `end_steps` may be 3"
            ),
        ),
        (["distill.factor=3"], "`factor` 3 does not divide 8 steps: `factor: 2` leads to 1"),
        (
            ["distill.factor=[3, 2]"],
            "begins with 3, which does not divide 8 steps: `factor: 2` leads to 1",
        ),
        (
            ["distill.factor=1"],
            "`factor` 1 makes nothing shorter (1 is less than 2): `factor: 2` leads to 1",
        ),
        (
            ["distill.factor=[-2, -4]"],
            "makes nothing shorter (-2 is less than 2): `factor: 2` leads to 1",
        ),
        (
            ["distill.factor=[2, 2]"],
            (
                "`factor` [2, 2] leads from 8 steps to 2, and `end_steps` is 1: "
                "`factor: 2` leads to 1; with `factor` as it is, `end_steps` may be 2"
            ),
        ),
        (
            ["distill.factor=[4, 2, 2]"],
            (
                "`factor` [4, 2, 2] is at `end_steps` 1 before its last number: "
                "`factor: [4, 2]` leads to 1"
            ),
        ),
        (
            ["distill.factor=4", "distill.end_steps=4"],
            "`factor` 4 leads from 8 steps to 2, past `end_steps` 4: `factor: 2` leads to 4; "
            "with `factor` as it is, `end_steps` may be 2",
        ),
        (
            ["distill.start_steps=1024", "distill.end_steps=3"],
            (
                "`factor` 2 leads from 4 steps to 2, past `end_steps` 3: no factors lead from 1024 "
                "steps to 3, which does not divide it; with `factor` as it is, `end_steps` may be "
                "4 or 2"
            ),
        ),
        (
            ["distill.end_steps=16"],
            "`end_steps` 16 is more than `start_steps` 8: students have fewer steps, not more",
        ),
        (
            ["distill.end_steps=8", "distill.factor=[2]"],
            "leave it out, there is no stage between them",
        ),
        (["distill.overrides={3: {updates: 1}}"], "`overrides` names 3 steps"),
    ],
)
def test_factors_that_do_not_lead_to_the_end_are_refused(
    tiny_run: TinyRun, changes: list[str], problem: str
) -> None:
    with pytest.raises(UsageError) as found:
        tiny_run.recipe(*changes)
    assert problem in str(found.value)


FACTORS = st.integers(-1, 12) | st.lists(st.integers(-1, 12), max_size=4).map(tuple)


@given(st.integers(2, 3000), st.integers(1, 3000), FACTORS)
@example(8, 2, (4, 2, 2))
@settings(deadline=None, max_examples=400)
def test_factors_lead_to_the_end_or_the_advice_does(
    start: int, end: int, factor: int | tuple[int, ...]
) -> None:
    try:
        found = step_counts(start, end, factor)
    except ValueError as err:
        assert_advice_holds(str(err), start, end, factor)
        return
    assert (found[0], found[-1]) == (start, end)
    factors = [before // after for before, after in pairwise(found)]
    assert [before / after for before, after in pairwise(found)] == factors
    assert factors == (list(factor) if isinstance(factor, tuple) else [factor] * len(factors))


def assert_advice_holds(advice: str, start: int, end: int, factor: int | tuple[int, ...]) -> None:
    better = re.search(r"`factor: ([^`]*)` leads to (\d+)", advice)
    ends = re.search(r"with `factor` as it is, `end_steps` may be (\d+)(?: or (\d+))?", advice)
    if start % end == 0 and start > end:
        assert better is not None
        wanted = json.loads(better[1])
        assert int(better[2]) == end
        assert (
            step_counts(start, end, tuple(wanted) if isinstance(wanted, list) else wanted)[-1]
            == end
        )
    else:
        assert better is None
    for other in ends.groups() if ends else ():
        assert other is None or step_counts(start, int(other), factor)[-1] == int(other)


def test_an_override_changes_one_stage_alone(tiny_run: TinyRun) -> None:
    recipe = tiny_run.recipe(
        "distill.overrides={1: {updates: 7, weighting: snr}, 4: {batch_size: 3}}"
    )
    found = [
        (stage.settings.updates, stage.settings.batch_size, stage.settings.weighting)
        for stage in plan(recipe)
    ]
    assert found[1:] == [(2, 3, "truncated_snr"), (2, 6, "truncated_snr"), (7, 6, "snr")]


def test_what_shapes_the_weights_of_a_stage_is_its_own_settings(tiny_run: TinyRun) -> None:
    plain, changed = (
        tiny_run.recipe(),
        tiny_run.recipe("distill.overrides={1: {updates: 7}}", "train.updates=6"),
    )
    before, after = (
        [shaping_values(recipe, stage, "fp32") for stage in plan(recipe)]
        for recipe in (plain, changed)
    )
    different = [
        {name for name in {*old, *new} if old.get(name) != new.get(name)}
        for old, new in zip(before, after, strict=True)
    ]
    assert different == [{"train.updates"}, set(), set(), {"distill.updates"}]


def test_the_end_of_the_chain_does_not_change_its_beginning(tiny_run: TinyRun) -> None:
    long, short = (plan(tiny_run.recipe(f"distill.end_steps={end}")) for end in (1, 4))
    recipes = tiny_run.recipe(), tiny_run.recipe("distill.end_steps=4")
    assert shaping_values(recipes[0], long[1], "fp32") == shaping_values(
        recipes[1], short[1], "fp32"
    )


def test_every_value_that_shapes_weights_is_in_the_trajectory_of_a_stage(tiny_run: TinyRun) -> None:
    recipe = tiny_run.recipe()
    base = shaping_values(recipe, plan(recipe)[0], "fp32")
    for part in ("data", "network", "diffusion", "train"):
        assert values_that_shape_weights(getattr(recipe, part), f"{part}.").items() <= base.items()
    assert base["seed"] == 3
    student = shaping_values(recipe, plan(recipe)[1], "fp32")
    of_the_chain = ("start_steps", "end_steps", "factor", "guidance", "overrides", "stages")
    left_out = {f"distill.{name}" for name in of_the_chain}
    assert values_that_shape_weights(recipe.distill, "distill.").keys() - left_out <= student.keys()


def test_a_teacher_is_followed_by_the_stages_that_start_at_its_steps(tiny_run: TinyRun) -> None:
    stages = plan(tiny_run.recipe())
    assert [stage.name for stage in stages_after(stages, 4, "base_0")] == ["base_1", "base_2"]
    with pytest.raises(UsageError, match="no stage of the recipe starts there"):
        stages_after(stages, 6, "odd")
    with pytest.raises(UsageError, match="nothing is left to distill"):
        stages_after(stages, 1, "base_2")


@pytest.mark.parametrize(
    ("count", "to", "names"),
    [
        (None, None, ["base_0", "base_1", "base_2"]),
        (2, None, ["base_0", "base_1"]),
        (9, None, ["base_0", "base_1", "base_2"]),
        (None, 4, ["base_0"]),
        (1, 1, ["base_0"]),
    ],
)
def test_a_number_of_stages_or_of_steps_chooses_the_first_ones(
    tiny_run: TinyRun, count: int | None, to: int | None, names: list[str]
) -> None:
    assert [stage.name for stage in chosen(plan(tiny_run.recipe())[1:], count, to)] == names


@pytest.mark.parametrize("count", [0, -1])
def test_a_choice_of_nothing_is_refused(tiny_run: TinyRun, count: int) -> None:
    with pytest.raises(UsageError, match=f"--stages {count} asks for nothing"):
        chosen(plan(tiny_run.recipe())[1:], count, None)


def test_a_section_checks_its_steps_when_it_is_made() -> None:
    assert DistillSection(updates=1, start_steps=16, end_steps=2).steps() == (16, 8, 4, 2)


def test_a_training_that_ends_in_its_warm_up_is_doubted() -> None:
    short = recipe("train.updates=20", "train.warmup_updates=1000", "distill.warmup_updates=0")
    [doubt] = doubts(plan(short))
    assert "`original` ends before its warm-up of 1,000 updates does" in doubt
    assert "reaches 0.02 of the 0.002" in doubt
    assert "`--set train.warmup_updates=2`" in doubt
    assert doubts(plan(recipe("train.updates=20", "train.warmup_updates=2"))) == []
    at_its_end = recipe("train.updates=20", "train.warmup_updates=20")
    assert doubts(plan(at_its_end)) == [], "its last update has the whole rate"
    students = doubts(plan(recipe("distill.warmup_updates=200")))
    assert [doubt.split("`")[1] for doubt in students] == [
        "base_0",
        "base_1",
    ]  # the others have 400 updates and more


def recipe(*changes: str) -> Recipe:
    return recipe_text.validate(Recipe, recipe_text.set_values(recipe_text.find("digits"), changes))


# What messages advise where no stage starts at the teacher's steps


def listing(tiny_run: TinyRun, stages: str, start: int = 16) -> list[Stage]:
    """The plan of a recipe that lists its stages."""
    text = tiny_run.text.replace(
        "start_steps: 8, end_steps: 1,", f"start_steps: {start}, stages: {stages},"
    )
    assert text != tiny_run.text
    return plan(recipe_text.validate(Recipe, recipe_text.parse(text, "recipe.yaml")))


def advised(stages: list[Stage], teacher_steps: int) -> UsageError:
    with pytest.raises(UsageError) as found:
        stages_after(stages, teacher_steps, "given")
    return found.value


def test_where_stages_are_listed_the_advice_is_a_change_of_the_list(tiny_run: TinyRun) -> None:
    before = listing(tiny_run, "[{steps: 8}, {factor: 4}, {steps: 1}]")
    found = advised(before, 4)
    assert found.problem.endswith("no stage of the recipe starts there (they start at 16, 8, 2)")
    assert found.fix == (
        "in `distill.stages`, put a stage `{steps: 4}` before that of `base_1`, "
        "and give that one `steps: 2`"
    )
    after = listing(tiny_run, "[{steps: 8}, {steps: 4}, {steps: 2}, {steps: 1}]")
    assert [stage.num_steps for stage in stages_after(after, 4, "given")] == [2, 1]


def test_a_list_that_passes_over_the_teachers_steps_at_its_end_is_no_finished_chain(
    tiny_run: TinyRun,
) -> None:
    found = advised(listing(tiny_run, "[{steps: 8}, {steps: 1}]"), 4)
    assert "no stage of the recipe starts there" in found.problem
    assert "put a stage `{steps: 4}` before that of `base_1`, and give that one `steps: 1`" in str(
        found.fix
    )
    short = plan(tiny_run.recipe("distill.start_steps=16", "distill.factor=[2, 8]"))
    assert advised(short, 4).fix == (
        "set `distill.start_steps` to 4, as in --set distill.start_steps=4"
    )


def test_a_list_that_starts_below_the_teacher_has_to_lead_on_from_there(tiny_run: TinyRun) -> None:
    fix = advised(listing(tiny_run, "[{steps: 8}, {steps: 1}]"), 32).fix
    assert "--set distill.start_steps=32" in fix
    assert "let the first of `distill.stages` lead on from there" in fix
    after = listing(tiny_run, "[{steps: 8}, {steps: 1}]", start=32)
    assert [stage.num_steps for stage in stages_after(after, 32, "given")] == [8, 1]


def test_a_number_of_steps_that_has_no_place_in_the_list_is_given_none(tiny_run: TinyRun) -> None:
    fix = advised(listing(tiny_run, "[{steps: 8}, {steps: 2}]"), 3).fix
    assert "put a stage" not in fix
    assert "list in `distill.stages` what follows 3 steps" in fix


@pytest.mark.parametrize(
    ("teacher_steps", "fix"),
    [
        (4, "add another stage to `distill.stages`"),
        (2, "add a stage `{steps: 2}` to `distill.stages`, and what follows it"),
    ],
)
def test_a_list_that_ends_at_the_teacher_or_before_goes_on_with_another_stage(
    tiny_run: TinyRun, teacher_steps: int, fix: str
) -> None:
    found = advised(listing(tiny_run, "[{steps: 8}, {steps: 4}]"), teacher_steps)
    assert "nothing is left to distill" in found.problem
    assert found.fix == fix
