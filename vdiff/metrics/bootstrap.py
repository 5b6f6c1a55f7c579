"""Bootstrap: how much a number would vary if other samples had been drawn."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from vdiff.metrics.table import Value
from vdiff.randomness import Randomness

Counts = NDArray[np.int64]

REPETITIONS = 100
_NORMAL_95 = 1.959964


def resamples(count: int, repetitions: int) -> Iterator[Counts]:
    """How often each of `count` samples comes in `count` draws with replacement,
    int64 [count]; always alike.
    """
    rng = Randomness.for_images(torch.arange(count))
    for _ in range(repetitions):
        drawn = (rng.uniform() * count).long()
        yield torch.bincount(drawn, minlength=count).numpy()


def with_interval(
    value: float,
    count: int,
    of: Callable[[Counts], float],
    repetitions: int = REPETITIONS,
    floor: float = 0.0,
) -> Value:
    """`value` with its 95 % interval: 1.96 times the spread of `of(counts)` over the resamples,
    on both sides.

    Not the quantiles of the resamples: distances of sets are larger for resamples, which hold fewer
    distinct pictures, and the interval would lie beside the value.
    floor: what no value can be below.
    """
    if not repetitions:
        return Value(value=value)
    spread = float(np.std([of(counts) for counts in resamples(count, repetitions)], ddof=1))
    return Value(
        value=value, low=max(floor, value - _NORMAL_95 * spread), high=value + _NORMAL_95 * spread
    )
