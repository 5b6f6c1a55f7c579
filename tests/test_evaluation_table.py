"""The table of an evaluation: written and read again, and what is no table."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from vdiff.errors import ModelFileError
from vdiff.evaluation.known_rows import KnownRows
from vdiff.metrics import METRICS, table
from vdiff.metrics.metric import ordered, words_for
from vdiff.metrics.table import (
    EvaluationRow,
    EvaluationTable,
    PairNumbers,
    Protocol,
    ReferenceImages,
    Value,
)
from vdiff.reporting.published import CURVES

PROTOCOL = Protocol(
    num_images=2048,
    first_seed=0,
    sampler="ddim eta=0.0",
    shape=(1, 8, 8),
    resizing="none",
    reference=ReferenceImages(fingerprint="0123456789abcdef", num_images=1797),
    features={"fd_pixel": "pixels"},
)
AGREEMENT = PairNumbers(
    name="original", hash="ab", num_steps=64, numbers={"mse": 0.0, "psnr": None, "ssim": 1.0}
)
ROWS = (
    EvaluationRow(model="original", hash="ab", num_steps=64, role="original"),
    EvaluationRow(model="original", hash="ab", num_steps=4, role="undistilled"),
    EvaluationRow(
        model="base_0",
        hash="cd",
        num_steps=4,
        role="student",
        metrics={"fd_pixel": Value(value=0.2)},
        teacher=AGREEMENT,
    ),
)
TABLE = EvaluationTable(
    protocol=PROTOCOL, made="2026-01-01T00:00:00Z", made_by="vdiff 0", machine="a", rows=ROWS
)


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    table.write(tmp_path / "table.json", TABLE)
    assert table.read(tmp_path / "table.json") == TABLE


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_in_a_table_is_finite(value: float) -> None:
    with pytest.raises(ValidationError):
        Value(value=value)
    with pytest.raises(ValidationError):
        Value(value=1.0, low=value)


def test_nothing_is_in_a_table_that_is_not_known_and_nothing_in_it_changes() -> None:
    with pytest.raises(ValidationError, match="extra"):
        Value(value=1.0, more=2.0)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="frozen"):
        Value(value=1.0).value = 2.0  # type: ignore[misc]


def test_a_table_can_be_read_by_people(tmp_path: Path) -> None:
    table.write(tmp_path / "table.json", TABLE.model_copy(update={"machine": "2 Kerne für Räuber"}))
    text = (tmp_path / "table.json").read_text(encoding="utf-8")
    assert "2 Kerne für Räuber" in text
    assert text.count("\n") > 20


def test_there_may_be_no_table(tmp_path: Path) -> None:
    assert table.read(tmp_path / "table.json") is None


def test_a_row_is_found_by_model_and_steps() -> None:
    assert TABLE.row("original") == ROWS[0]
    assert TABLE.row("original", 4) == ROWS[1]
    assert TABLE.row("base_0") == ROWS[2]
    assert TABLE.row("base_7") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99, "more": 1}, "another version"),
        ({"rows": [{"model": 1}]}, "damaged"),
        ({"protocol": {}}, "damaged"),
    ],
)
def test_what_is_no_table_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    table.write(tmp_path / "table.json", TABLE)
    content = json.loads((tmp_path / "table.json").read_text()) | change
    (tmp_path / "table.json").write_text(json.dumps(content))
    with pytest.raises(ModelFileError, match=message):
        table.read(tmp_path / "table.json")


def test_the_conditions_fit_in_one_line() -> None:
    line = PROTOCOL.line()
    assert "n = 2,048; seeds 0-2047; ddim eta=0.0; 1 x 8 x 8 pixels" in line
    assert "reference 1,797 pictures (01234567)" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({}, None),
        ({"features": {"swd": "pixels"}}, None),
        ({"reference": None}, None),
        ({"num_images": 50}, "`num_images` differs: 2048 and 50"),
        ({"resizing": "to 299"}, "`resizing` differs: none and to 299"),
        (
            {"features": {"fd_pixel": "colours"}},
            "`fd_pixel` compares other features: pixels and colours",
        ),
        (
            {"reference": ReferenceImages(fingerprint="ab" * 8, num_images=7)},
            "`reference` differs: 1,797 pictures (01234567) and 7 pictures (abababab)",
        ),
    ],
)
def test_what_two_protocols_both_tell_must_be_equal(
    changes: dict[str, object], difference: str | None
) -> None:
    other = PROTOCOL.model_copy(update=changes)
    assert PROTOCOL.difference(other) == difference
    if difference is None:
        assert (
            PROTOCOL.joined_with(other).reference
            == other.joined_with(PROTOCOL).reference
            == PROTOCOL.reference
        )
        assert PROTOCOL.joined_with(other).features == {**PROTOCOL.features, **other.features}


def test_numbers_have_words_and_an_order_of_their_own() -> None:
    names = ["swd", "kid", "mine", "fd_vgg16", "precision", "fd_pixel", "fid"]
    assert ordered(names) == ["fd_vgg16", "fid", "kid", "fd_pixel", "swd", "precision", "mine"]
    assert words_for("fd_pixel")[:2] == ("Fréchet distance of pixels", "less is better; not an FID")
    assert words_for("fd_vgg16")[:2] == ("fd_vgg16", "less is better")
    assert words_for("precision_vgg16")[:2] == ("precision_vgg16", "more is better")
    assert words_for("mine")[:2] == ("mine", "")


@pytest.mark.parametrize("kind", list(METRICS))
def test_every_metric_says_what_it_is_called_and_what_is_good(kind: str) -> None:
    found = words_for(kind)
    assert found.title != kind
    assert found.better.split()[0] in ("less", "more")


def test_the_published_curves_are_those_of_the_design() -> None:
    """Salimans & Ho 2022; at 1, 2, 4 and 8 steps."""
    few = {
        name: [curve.distilled[steps] for steps in (1, 2, 4, 8)] for name, curve in CURVES.items()
    }
    assert few == {"cifar10": [9.12, 4.51, 3.0, 2.57], "imagenet64": [16.1, 7.4, 3.9, 2.96]}


def test_the_best_solver_is_shown_for_each_guidance() -> None:
    def solved(value: float, g: float | None, sampler: str) -> EvaluationRow:
        return EvaluationRow(
            model="original",
            hash="a" * 64,
            num_steps=8,
            role="solved",
            metrics={"fid": Value(value=value)},
            sampler=sampler,
            guidance=g,
        )

    plain = [solved(3.0, None, "unipc grid=uniform"), solved(2.0, None, "unipc grid=logsnr")]
    strong = [solved(9.0, 2.0, "unipc grid=uniform"), solved(8.0, 2.0, "ipndm grid=logsnr")]
    table = TABLE.model_copy(update={"rows": (*plain, *strong)})
    assert table.shown() == [plain[1], strong[1]]


def test_what_is_known_of_solvers_stays_where_they_are_not_asked_for() -> None:
    def row(role: str, steps: int, hash_: str = "a") -> EvaluationRow:
        return EvaluationRow(model="original", hash=hash_ * 64, num_steps=steps, role=role)

    before = (row("original", 64), row("undistilled", 8), row("solved", 8))
    gone = row("solved", 8, "b")
    known = KnownRows(TABLE.model_copy(update={"rows": (*before, gone)}))

    class Card:
        hash = "a" * 64

    subjects: list[Any] = [
        SimpleNamespace(card=Card, num_steps=each.num_steps, role=each.role) for each in before[:2]
    ]
    assert known.beside_others(before[:2], subjects) == list(before)


def test_curves_go_through_a_guidance_at_which_the_original_was_measured() -> None:
    def row(role: str, g: float | None, name: str) -> EvaluationRow:
        return EvaluationRow(model=name, hash=name * 8, num_steps=8, role=role, guidance=g)

    rows = (
        row("original", None, "original"),
        row("student", None, "base_0"),
        row("student", 2.0, "base_1"),
        row("student", 2.0, "base_2"),
    )
    found = TABLE.model_copy(update={"rows": rows}).alike()
    assert [each.model for each in found.rows] == ["original", "base_0"]
