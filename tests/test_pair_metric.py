"""Metrics of pairs: what they may state, how their numbers are called and told,
and what is kept in a table.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor

from vdiff.config import free_to_change
from vdiff.errors import DataError, MachineError, UsageError
from vdiff.metrics import METRICS, table
from vdiff.metrics.agreement import AgreementSection, agreement_of
from vdiff.metrics.metric import Means, Pictures, named
from vdiff.metrics.pair_metric import (
    Measure,
    PairMetric,
    PairMetricSection,
    Pairs,
    mean_over_pairs,
    measures_of,
)
from vdiff.metrics.table import PairNumbers

GIVEN: dict[str, float] = {}
"""What the metric of the tests answers."""


class Answer:
    features = "nothing"

    def compare(self, own: Pictures, other: Pictures) -> Mapping[str, float]:
        return GIVEN


class FarSection(PairMetricSection):
    """A metric of pairs with an option that makes other numbers."""

    short: ClassVar[str | None] = "net"
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("far", "Distance", "Far", "less is better", beside=("original",)),
        Measure("far_most", "Largest distance", "Farthest", "less is better", column="most"),
    )
    kind: Literal["far"] = free_to_change("far")
    net: Literal["", "vgg"] = free_to_change("")

    @property
    def suffix(self) -> str:
        return self.net

    def build(self, means: Means) -> PairMetric:
        return Answer()


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS._builtin, "far", "tests.test_pair_metric:FarSection")
    monkeypatch.setattr("tests.test_pair_metric.GIVEN", {"far": 1.0, "far_most": math.inf})


def pictures(count: int = 3, seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (count, 1, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def numbers(**found: float | None) -> PairNumbers:
    return PairNumbers(name="original", hash="ab", num_steps=64, numbers=found)


# What a metric of pairs may state


@pytest.mark.parametrize(
    ("measures", "reason"),
    [
        ((), "states no `measures`"),
        (("name",), "cannot call a measure `name`"),
        (("hash",), "cannot call a measure `hash`"),
        (("two words",), "cannot call a measure `two words`"),
        (("same", "same"), "cannot call a measure `same`"),
    ],
)
def test_a_measure_that_a_table_cannot_hold_is_refused_when_its_class_is_made(
    measures: tuple[str, ...], reason: str
) -> None:
    stated = tuple(Measure(name, name, name, "less is better") for name in measures)
    with pytest.raises(TypeError, match=reason):

        class Bad(FarSection):
            measures: ClassVar[tuple[Measure, ...]] = stated


def test_two_metrics_that_call_a_number_the_same_are_not_asked_at_once(
    far: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Swd(FarSection):
        """Calls its number as another metric does."""

        measures: ClassVar[tuple[Measure, ...]] = (
            Measure("swd", "Distance", "Far", "less is better"),
        )

    monkeypatch.setattr("tests.test_pair_metric.FarSection", Swd)
    with pytest.raises(UsageError, match="`swd` and `far` both call a number `swd`"):
        named(["swd", "far"])


# Numbers


def test_all_that_is_asked_for_is_compared_and_what_is_known_is_not(far: None) -> None:
    a, b = pictures(), pictures(seed=1)
    both = Pairs(named(["far:vgg", "swd", "agreement"]))
    assert both.features == {
        "far_vgg": "nothing",
        "agreement": "pixels, pair by pair from the same noise",
    }
    agreed = agreement_of(a, b)._asdict()
    assert both.compare(a, b) == {"far_vgg": 1.0, "far_most_vgg": None, **agreed}
    assert both.compare(a, b, known=["psnr", "mse", "ssim", "far_vgg"]) == {
        "far_vgg": 1.0,
        "far_most_vgg": None,
    }
    assert both.compare(a, b, known=["far_vgg", "far_most_vgg", "mse"]) == agreed


def test_equal_pictures_have_an_infinite_agreement_that_is_none() -> None:
    found = Pairs([AgreementSection()]).compare(pictures(), pictures())
    assert list(found) == ["mse", "psnr", "ssim"]
    assert (found["mse"], found["psnr"]) == (0, None)


@pytest.mark.parametrize("wrong", [{}, {"far": 1.0}, {"far": 1.0, "far_most": 1.0, "more": 1.0}])
def test_a_metric_that_gives_other_numbers_than_it_states_is_told_of(
    far: None, wrong: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.test_pair_metric.GIVEN", wrong)
    with pytest.raises(MachineError, match="`far` gives the numbers"):
        Pairs(named(["far"])).compare(pictures(), pictures())


@pytest.mark.parametrize("wrong", [math.nan, -math.inf])
def test_a_number_that_is_none_is_told_of(
    far: None, wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(GIVEN, "far", wrong)
    with pytest.raises(DataError, match="`far` of these pictures is not a number"):
        Pairs(named(["far"])).compare(pictures(), pictures())


def test_a_mean_over_pairs_is_that_of_all_pairs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def distance(a: Tensor, b: Tensor) -> dict[str, Tensor]:
        seen.append(len(a))
        return {"far": (a - b).abs().mean((1, 2, 3)).double()}

    a, b, seen = pictures(7), pictures(7, seed=1), list[int]()
    expected = float((a.double() - b.double()).abs().mean() / 127.5)
    monkeypatch.setattr("vdiff.metrics.metric._CHUNK_BYTES", 8 * 16 * 3)
    assert mean_over_pairs(a, b, distance)["far"] == pytest.approx(expected, rel=1e-6)
    assert seen == [3, 3, 1]


# How they are told


def test_measures_come_in_the_order_of_their_metrics_with_what_an_option_adds(far: None) -> None:
    found = measures_of(
        [
            numbers(far_most_vgg=1.0, mse=0.1, psnr=None, ssim=0.5),
            None,
            numbers(far=1.0, strange=2.0),
        ]
    )
    assert [each.name for each in found] == [
        "psnr",
        "ssim",
        "mse",
        "far",
        "far_most_vgg",
        "strange",
    ]
    assert [each.metric for each in found] == ["agreement"] * 3 + ["far", "far_vgg", ""]
    assert found[4].title == "Largest distance (vgg)"
    assert found[4].column is None
    assert found[5].beside == ("original", "teacher")
    assert measures_of([None]) == []


def test_in_a_file_numbers_of_pairs_stand_as_they_did_when_there_was_agreement_alone(
    tmp_path: Path,
) -> None:
    one = numbers(mse=0.0, psnr=None, ssim=1.0)
    text = '{"name":"original","hash":"ab","num_steps":64,"mse":0.0,"psnr":null,"ssim":1.0}'
    assert one.model_dump_json() == text
    assert PairNumbers.model_validate_json(text) == one
    row = table.EvaluationRow(model="base_0", hash="cd", num_steps=4, role="student", teacher=one)
    assert table.EvaluationRow.model_validate(json.loads(row.model_dump_json())) == row
    with pytest.raises(ValueError, match="valid number"):
        PairNumbers.model_validate_json(text.replace("0.0", '"much"'))
    with pytest.raises(ValueError, match="finite"):
        numbers(far=math.inf)
