"""What every metric must do: find nothing wrong with equal pictures,
and something with bad ones, in its own words.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from vdiff.metrics import METRICS
from vdiff.metrics.metric import MetricSection, Reference, named, words_for
from vdiff.metrics.pair_metric import Pairs

COUNT = 1000  # what kid needs

Option = str


def perfect(value: float) -> Callable[[float], bool]:
    return lambda found: found == pytest.approx(value, abs=2e-4)


EXPECTED: dict[str, tuple[Option, Callable[[float], bool]]] = {
    "agreement": ("", lambda psnr: psnr == math.inf),
    "fid": (":small", perfect(0)),
    "fd_dinov2": (":small", perfect(0)),
    "kid": (":small", lambda found: abs(found) < 1e-3),  # unbiased, so of both signs
    "fd_pixel": (":8", perfect(0)),
    "swd": ("", perfect(0)),
    "precision": (":small", perfect(1)),
    "recall": (":small", perfect(1)),
    "inception_score": (":small", lambda found: 1 < found <= 12),  # between one class and all
}
"""For every kind, an option that needs no download, and what equal pictures give.
A metric without one fails.
"""

every_kind = pytest.mark.parametrize("kind", list(METRICS))


@pytest.fixture(scope="module")
def against() -> Reference:
    pytest.importorskip("torch_fidelity", reason="the extra [eval] is not installed")
    import tests.test_fidelity  # noqa: F401 - registers the network `small`

    return Reference(good(), "good")


def good() -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    colours = torch.randint(0, 256, (COUNT, 3, 1, 1), generator=rng)
    grain = torch.randint(-20, 21, (COUNT, 3, 8, 8), generator=rng)
    return (colours + grain).clamp(0, 255).byte()


def bad() -> torch.Tensor:
    """Near one picture that is none of the good ones: a checkerboard of black and white."""
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 255
    grain = torch.randint(-3, 4, (COUNT, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    return (board + grain).clamp(0, 255).byte()


def value(kind: str, samples: torch.Tensor, against: Reference) -> float:
    (section,) = named([kind + EXPECTED[kind][0]])
    if isinstance(section, MetricSection):
        return section.build(against).value(samples).value
    found = Pairs([section]).compare(samples, good())[section.measures[0].name]
    return math.inf if found is None else found


@every_kind
def test_equal_pictures_are_as_good_as_can_be(kind: str, against: Reference) -> None:
    assert EXPECTED[kind][1](value(kind, good(), against))


@every_kind
def test_bad_pictures_have_the_worse_number_by_the_metrics_own_words(
    kind: str, against: Reference
) -> None:
    fine, poor = value(kind, good(), against), value(kind, bad(), against)
    if words_for(kind).better.startswith("more"):
        assert poor < fine - 0.01
    else:
        assert words_for(kind).better.startswith("less")
        assert poor > fine + 0.05


@every_kind
def test_no_number_is_above_what_the_metric_says_is_the_most(kind: str, against: Reference) -> None:
    most = words_for(kind).most
    assert (
        most is None or max(value(kind, pictures, against) for pictures in (good(), bad())) <= most
    )


@every_kind
def test_a_metric_asks_for_as_many_samples_as_it_needs(kind: str, against: Reference) -> None:
    section: Any = named([kind + EXPECTED[kind][0]])[0]
    assert section.least <= COUNT
    if isinstance(section, MetricSection):
        metric = section.build(against)
        assert metric.least >= section.least
        assert metric.features


def test_a_few_of_the_good_pictures_again_and_again_are_precise_and_recall_little(
    against: Reference,
) -> None:
    few = good()[:20].repeat(50, 1, 1, 1)
    assert value("precision", few, against) == 1
    assert value("recall", few, against) < 0.5
