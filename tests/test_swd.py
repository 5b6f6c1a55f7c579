"""The sliced Wasserstein distance, and the bootstrap's intervals: closed forms."""

import numpy as np
import pytest
import torch

from vdiff.errors import DataError
from vdiff.metrics.bootstrap import resamples, with_interval
from vdiff.metrics.frechet import PixelFrechetSection
from vdiff.metrics.metric import MetricSection, Reference
from vdiff.metrics.sliced import LEVELS, SlicedSection, _quantiles


def pictures(
    count: int, *shape: int, seed: int = 0, low: int = 50, high: int = 150
) -> torch.Tensor:
    return torch.randint(
        low, high, (count, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def test_pictures_have_no_distance_to_themselves() -> None:
    reference = pictures(600, 1, 4, 4)
    assert SlicedSection().build(Reference(reference, "a")).value(
        reference.flip(0)
    ).value == pytest.approx(0, abs=1e-12)


def test_in_one_dimension_a_shift_is_the_distance() -> None:
    reference = pictures(700, 1, 1, 1)
    found = SlicedSection().build(Reference(reference, "a")).value(reference + 51)
    assert found.value == pytest.approx(51 / 127.5, rel=1e-6)


def test_in_many_dimensions_a_shift_counts_by_the_root_of_their_number() -> None:
    reference = pictures(600, 1, 3, 3)
    shifted = reference.clone()
    shifted[:, 0, 1, 1] += 100
    found = SlicedSection(directions=4096).build(Reference(reference, "a")).value(shifted)
    assert found.value == pytest.approx(100 / 127.5 / 3, rel=0.03)


def test_quantiles_are_the_middles_of_equal_shares() -> None:
    """Of LEVELS equal shares of as many values, each is one value,
    and of three times as many the middle one.
    """
    for times, wanted in ((1, torch.arange(LEVELS)), (3, 3 * torch.arange(LEVELS) + 1)):
        values = torch.arange(times * LEVELS)
        found = _quantiles(values.double()[None], values[None], torch.ones_like(values))
        assert torch.equal(found[0], wanted.double())


def test_a_set_that_is_there_twice_is_the_same_set() -> None:
    reference = pictures(256, 1, 4, 4)
    found = (
        SlicedSection().build(Reference(reference, "a")).value(torch.cat([reference, reference]))
    )
    assert found.value == pytest.approx(0, abs=1e-12)


def test_the_interval_holds_the_value_and_narrows_with_more_samples() -> None:
    measure = SlicedSection().build(Reference(pictures(2000, 1, 4, 4), "a"))
    few, many = (measure.value(pictures(count, 1, 4, 4, seed=1, high=170)) for count in (50, 1000))
    for found in (few, many):
        assert found.low is not None
        assert found.high is not None
        assert found.low < found.value < found.high
    assert (many.high or 0) - (many.low or 0) < ((few.high or 0) - (few.low or 0)) / 2


def test_the_interval_of_a_mean_is_the_one_of_the_textbook() -> None:
    rows = np.random.default_rng(0).normal(size=400)
    found = with_interval(
        0.0, 400, lambda counts: float(counts @ rows / counts.sum()), 400, floor=-1.0
    )
    assert found.high == pytest.approx(1.96 * rows.std() / 20, rel=0.1)
    assert found.low == pytest.approx(-(found.high or 0))


def test_resamples_are_always_alike_and_as_many_as_asked() -> None:
    one, other = list(resamples(50, 3)), list(resamples(50, 3))
    assert all((a == b).all() for a, b in zip(one, other, strict=True))
    assert [int(counts.sum()) for counts in one] == [50, 50, 50]
    assert not (one[0] == one[1]).all()


def test_samples_of_another_size_are_refused() -> None:
    measure = SlicedSection().build(Reference(pictures(10, 1, 4, 4), "a"))
    with pytest.raises(DataError, match="the samples have the shape"):
        measure.value(pictures(10, 1, 4, 5))


@pytest.mark.parametrize("section", [SlicedSection(), PixelFrechetSection()])
@pytest.mark.parametrize("low", [50, 80])  # like the reference, and unlike it
def test_intervals_are_about_as_wide_as_other_seeds_are_apart_and_never_much_narrower(
    section: MetricSection, low: int
) -> None:
    """Seen with 150 sets: 1.0 to 1.15 times as wide for swd, 1.15 to 1.6 times for fd_pixel."""
    measure = section.build(Reference(pictures(1500, 1, 3, 3, seed=99), "a"))
    found = [measure.value(pictures(200, 1, 3, 3, seed=seed, low=low)) for seed in range(40)]
    apart = np.std([each.value for each in found], ddof=1)
    wide = np.mean([((each.high or 0) - each.value) / 1.959964 for each in found])
    assert 0.8 < wide / apart < 2


def test_no_interval_goes_below_what_is_possible() -> None:
    numbers = iter([0.0, 100.0] * 50)
    found = with_interval(1.0, 2, lambda counts: next(numbers))
    assert found.low == 0
    assert found.high is not None
    assert found.high > 90
    numbers = iter([0.0, 100.0] * 50)
    assert with_interval(1.0, 2, lambda counts: next(numbers), floor=-1e3).low == pytest.approx(
        2 - found.high
    )
