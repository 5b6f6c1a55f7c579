"""The report's sentence: which students are as good as the original,
whichever way a metric is to be read.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from vdiff.metrics import METRICS
from vdiff.metrics.metric import words_for
from vdiff.metrics.table import EvaluationRow, EvaluationTable, PairNumbers, Protocol, Value
from vdiff.reporting.pictures import Gallery, Strip
from vdiff.reporting.record import Record
from vdiff.reporting.verdict import measured, verdict
from vdiff.runs.folder import RunFolder

ORIGINAL = Value(value=0.5, low=0.4, high=0.6)
BETTER = {"less": 0.1, "more": 0.9}
WORSE = {"less": 0.9, "more": 0.1}

OF_SETS = [kind for kind in METRICS if kind != "agreement"]
every_metric = pytest.mark.parametrize("metric", OF_SETS)


def row(
    model: str,
    role: Any,
    num_steps: int,
    metric: str | None = None,
    value: Value | None = None,
    **more: Any,
) -> EvaluationRow:
    metrics = {metric: value} if metric is not None and value is not None else {}
    return EvaluationRow(
        model=model, hash="a" * 64, num_steps=num_steps, role=role, metrics=metrics, **more
    )


def table(*rows: EvaluationRow) -> EvaluationTable:
    protocol = Protocol(
        num_images=100,
        first_seed=0,
        sampler="ddim eta=0.0",
        shape=(3, 8, 8),
        resizing="none",
        reference=None,
        features={},
    )
    return EvaluationTable(protocol=protocol, made="2026", made_by="vdiff", machine="x", rows=rows)


def students(metric: str, values: dict[int, float], best: Value = ORIGINAL) -> EvaluationTable:
    """An original of 1,024 steps, and students of so many steps with these numbers."""
    found = [
        row(f"student_{steps}", "student", steps, metric, Value(value=value))
        for steps, value in values.items()
    ]
    return table(row("original", "original", 1024, metric, best), *found)


def direction(metric: str) -> str:
    return words_for(metric).better.split()[0]


def equal_down_to(found: EvaluationTable) -> str | None:
    """Down to how many steps the sentence calls students as good."""
    said = measured(found)
    return (
        said.split(" the students'")[0].removeprefix("Down to ")
        if said.startswith("Down to")
        else None
    )


@every_metric
def test_a_better_number_is_as_good_and_a_worse_one_is_not(metric: str) -> None:
    assert equal_down_to(students(metric, {4: BETTER[direction(metric)]})) == "4 steps"
    assert equal_down_to(students(metric, {4: WORSE[direction(metric)]})) is None


@every_metric
def test_a_number_within_the_originals_interval_is_as_good_up_to_its_ends(metric: str) -> None:
    for value, is_as_good in ((0.4, True), (0.5, True), (0.6, True)):
        assert (equal_down_to(students(metric, {4: value})) == "4 steps") == is_as_good
    beyond = 0.6001 if direction(metric) == "less" else 0.3999
    assert equal_down_to(students(metric, {4: beyond})) is None


@every_metric
def test_students_count_from_the_most_steps_down_to_the_first_that_is_worse(metric: str) -> None:
    better, worse = BETTER[direction(metric)], WORSE[direction(metric)]
    assert equal_down_to(students(metric, {8: better, 4: better, 2: worse, 1: worse})) == "4 steps"
    assert equal_down_to(students(metric, {2: worse, 8: better, 1: better, 4: better})) == "4 steps"
    assert equal_down_to(students(metric, {8: worse, 4: better})) is None
    assert equal_down_to(students(metric, {8: better, 1: better})) == "1 step"


@every_metric
def test_without_an_interval_nothing_is_called_as_good(metric: str) -> None:
    for best in (Value(value=0.5), Value(value=0.5, low=0.4), Value(value=0.5, high=0.6)):
        assert equal_down_to(students(metric, {4: BETTER[direction(metric)]}, best)) is None


def test_the_sentence_tells_the_fewest_steps_beside_the_original_and_undistilled() -> None:
    found = table(
        row("original", "original", 1024, "fid", Value(value=2.5, low=2.4, high=2.6)),
        row("original", "undistilled", 8, "fid", Value(value=30.0)),
        row("original", "undistilled", 4, "fid", Value(value=90.0, low=85.0, high=95.0)),
        row("base_7", "student", 4, "fid", Value(value=3.1, low=3.0, high=3.2)),
        row("base_6", "student", 8, "fid", Value(value=2.6)),
    )
    assert measured(found) == (
        "Down to 8 steps the students' FID stays within the 95 % interval of the original's in "
        "1,024, or on its better side. In 4 steps, `base_7` has a FID of 3.10 (3.00 to 3.20); the "
        "original in 1,024 has 2.50 (2.40 to 2.60), without distillation 90.0 (85.0 to 95.0)."
    )


def test_the_most_telling_metric_that_both_have_is_the_one_that_is_told() -> None:
    original = row("original", "original", 8).model_copy(
        update={"metrics": {"swd": ORIGINAL, "precision": ORIGINAL}}
    )
    student = row("base_0", "student", 4).model_copy(
        update={"metrics": {"fid": ORIGINAL, "swd": ORIGINAL}}
    )
    assert "a Sliced Wasserstein distance of 0.500" in measured(table(original, student))


def agreed(psnr: float | None) -> PairNumbers:
    return PairNumbers(name="original", hash="a" * 64, num_steps=1024, numbers={"psnr": psnr})


def test_without_a_distance_the_agreement_is_told() -> None:
    original, student = (
        row("original", "original", 1024),
        row("base_7", "student", 4, original=agreed(25.25)),
    )
    more = row("base_6", "student", 8, original=agreed(28.0))
    plain = row("original", "undistilled", 4, original=agreed(12.34))
    other = row("original", "undistilled", 8, original=agreed(15.0))
    said = "In 4 steps, `base_7` draws what the original draws in 1,024 to a PSNR of 25.2 dB"
    assert (
        measured(table(original, more, student, other, plain))
        == f"{said}; without distillation, to 12.3 dB."
    )
    assert measured(table(original, more, student)) == f"{said}."
    assert measured(table(original, row("base_7", "student", 4, original=agreed(None)))) == ""
    assert measured(table(original, row("base_7", "student", 4))) == ""


def test_a_table_without_an_original_or_without_students_tells_nothing() -> None:
    original, student = (
        row("original", "original", 8, "fid", ORIGINAL),
        row("base_0", "student", 4, "fid", ORIGINAL),
    )
    assert measured(table(original)) == ""
    assert measured(table(student)) == ""
    assert measured(table(original, row("original", "undistilled", 4, "fid", ORIGINAL))) == ""


def record(found: EvaluationTable | None = None, **steps: int) -> Record:
    """A run whose models have so many steps; `original` is not distilled."""
    cards = {
        name: {
            "name": name,
            "num_steps": number,
            "is_distilled": name != "original",
            "stage": -number,
        }
        for name, number in steps.items()
    }
    return Record(RunFolder(Path("run")), "run", [], cards, None, [], found, {}, {}, "")


def strip(model: str, role: str, num_steps: int, grey: int) -> Strip:
    return Strip(model, role, num_steps, torch.full((2, 1, 8, 8), grey, dtype=torch.uint8))


def test_what_was_measured_is_said_before_what_was_only_seen_or_counted() -> None:
    gallery = Gallery(
        [0, 1], [strip("original", "original", 8, 100), strip("base_0", "student", 4, 151)]
    )
    numbers = students("fid", {4: 0.5})
    assert verdict(record(numbers, original=8, base_0=4), gallery) == measured(numbers)
    seen = verdict(record(table(row("original", "original", 8)), original=8, base_0=4), gallery)
    assert seen == (
        "On the 2 pictures below, `base_0` draws in 4 steps what the original draws in 8 to a PSNR "
        "of 14.0 dB. Few pictures: a first look, no measurement."
    )


def test_pictures_are_compared_with_the_original_and_with_as_few_steps_without_distillation() -> (
    None
):
    strips = [
        strip("original", "original", 8, 100),
        strip("original", "undistilled", 4, 0),
        strip("base_0", "student", 4, 0),
        strip("original", "undistilled", 2, 228),
        strip("base_1", "student", 2, 151),
    ]
    said = verdict(record(original=8, base_0=4, base_1=2), Gallery([0, 1], strips))
    assert "`base_1` draws in 2 steps" in said
    assert "to a PSNR of 14.0 dB, where the undistilled model reaches 6.0 dB. Few pictures" in said


def test_where_no_student_is_drawn_steps_are_counted() -> None:
    wanted = (
        "The last student, `base_0`, draws in 4 steps instead of 1,024: 256 times fewer. "
        "How well is not measured yet."
    )
    assert verdict(record(original=1024, base_0=4), None) == wanted
    assert (
        verdict(
            record(original=1024, base_0=4), Gallery([0], [strip("original", "original", 8, 0)])
        )
        == wanted
    )
    assert (
        verdict(record(base_0=4, base_1=2), None) == "The last student, `base_1`, draws in 2 steps."
    )


def test_what_cannot_be_said_yet_is_not_said() -> None:
    assert verdict(record(), None) == "No model is finished yet."
    told = "The base network is trained; nothing has been distilled from it yet."
    assert verdict(record(original=8), None) == told
    assert verdict(record(original=8), Gallery([0], [strip("original", "original", 8, 0)])) == told


def solved(steps: int, value: Value, sampler: str = "unipc grid=logsnr") -> EvaluationRow:
    return row("original", "solved", steps, "fid", value, sampler=sampler)


def test_the_first_sentence_says_where_a_student_gains_nothing_over_a_solver() -> None:
    rows = [
        row("original", "original", 1024, "fid", Value(value=2.5, low=2.4, high=2.6)),
        row("original", "undistilled", 8, "fid", Value(value=30.0)),
        solved(8, Value(value=3.5), "unipc grid=uniform"),
        solved(8, Value(value=3.2)),
        solved(4, Value(value=20.0)),
        row("base_7", "student", 4, "fid", Value(value=9.0, low=8.0, high=10.0)),
        row("base_6", "student", 8, "fid", Value(value=3.1, low=2.9, high=3.3)),
    ]
    assert measured(table(*rows)).startswith(
        "Beside the best solver on the undistilled base: at 8 calls these pictures show no "
        "difference (at 8 3.10, by `unipc grid=logsnr` 3.20); at 4 calls a student is ahead (at 4 "
        "9.00, by `unipc grid=logsnr` 20.0). In 4 steps, `base_7` has"
    )
    lost = [*rows, solved(8, Value(value=3.0))]
    assert "at 8 calls a student gains nothing (at 8 3.10" in measured(table(*lost))
    better = [each for each in rows if each.num_steps != 8 or each.role == "undistilled"]
    assert measured(table(*better)).startswith(
        "Beside the best solver on the undistilled base: at 4 calls a student is ahead (at 4 9.00"
    )
    # guidance doubles a solver's calls: it stands beside a student of twice as many steps
    doubled = solved(4, Value(value=20.0)).model_copy(update={"num_calls": 8})
    both = [each for each in rows if each.role != "solved"] + [doubled]
    assert "at 8 calls a student is ahead (at 8 3.10" in measured(table(*both))
    assert "at 4 calls" not in measured(table(*both))
    # none was measured: not a word of them
    assert "solver" not in measured(table(*(each for each in rows if each.role != "solved")))


def test_of_the_solvers_people_are_shown_the_best_at_each_number_of_steps() -> None:
    rows = (
        row("original", "original", 64, "fid", Value(value=2.5)),
        solved(8, Value(value=3.5), "a"),
        solved(8, Value(value=3.2), "b"),
        solved(4, Value(value=20.0), "a"),
        solved(4, Value(value=21.0), "b"),
    )
    found = table(*rows)
    assert [(each.num_steps, each.sampler) for each in found.shown()] == [
        (64, None),
        (8, "b"),
        (4, "a"),
    ]
    assert found.format == 3
    assert table(rows[0]).format == 1
    assert found.line().endswith("best solver in 8: b; best solver in 4: a")
    assert found.row("original") == rows[0]
    agreed = [
        EvaluationRow(
            model="original",
            hash="a" * 64,
            num_steps=8,
            role="solved",
            sampler=name,
            original=PairNumbers(name="original", hash="a", num_steps=64, numbers={"psnr": psnr}),
        )
        for name, psnr in (("a", 20.0), ("b", 23.0))
    ]
    assert [each.sampler for each in table(*agreed).shown()] == ["b"]


def test_students_and_an_original_of_other_guidance_are_not_compared() -> None:
    strong = row("base_1", "student", 4, "fid", Value(value=2.0))
    rows = [
        row("original", "original", 64, "fid", Value(value=2.5)),
        strong.model_copy(update={"guidance": 2.0}),
    ]
    assert measured(table(*rows)) == (
        "The students are measured at guidance 2, the original at another: `vdiff evaluate "
        "--guidance 2` sets them beside each other."
    )


def test_a_gallery_says_which_sampler_has_drawn_what() -> None:
    gallery = Gallery([0], samplers={"original": "ddim eta=0.0", "base_0": "ddim eta=0.0"})
    assert gallery.sampled_by() == "ddim eta=0.0"
    gallery.samplers.update({"original": "unipc grid=uniform", "base_1": "ddim eta=0.0"})
    assert gallery.sampled_by() == ("unipc grid=uniform (original), ddim eta=0.0 (base_0, base_1)")
