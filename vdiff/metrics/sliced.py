"""`swd`: the sliced Wasserstein distance of pixels, along fixed random directions."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vdiff.errors import DataError
from vdiff.metrics.bootstrap import Counts, with_interval
from vdiff.metrics.metric import AsFloat, Pictures, chunks
from vdiff.metrics.pixels import SlicedSection as SlicedSection
from vdiff.metrics.table import Value
from vdiff.randomness import Randomness

Array = NDArray[np.float64]

LEVELS = 512
"""At so many quantiles two distributions along a direction are compared;
sets of any two sizes can be.
"""

_REPETITIONS = 50


class SlicedDistance:
    """sqrt(mean over directions u of W2(u . samples, u . reference)^2).

    W2^2 is the mean squared difference of LEVELS quantiles.
    quantiles: of the reference, [directions, LEVELS]. Pixels in [-1, 1], u of length 1: a shift of
    every picture by d changes it by |d| / sqrt(C * H * W).
    Source: Rabin, Peyre, Delon & Bernot 2011.
    """

    least = 2

    def __init__(self, shape: tuple[int, ...], num_directions: int, quantiles: Array) -> None:
        self._shape = shape
        self._num_directions = num_directions
        self._quantiles = quantiles
        self.features = f"pixels along {num_directions} fixed random directions, {LEVELS} quantiles"

    def value(self, samples: Pictures) -> Value:
        """The distance with its 95 % interval; samples: uint8 [N, C, H, W].   Errors: DataError."""
        if tuple(samples.shape[1:]) != self._shape:
            problem = (
                f"the samples have the shape {tuple(samples.shape[1:])} and the "
                f"reference has {self._shape}"
            )
            raise DataError(problem, "compare pictures of one size and number of channels")
        projected = _projected(AsFloat(samples), self._num_directions)
        values, order = torch.from_numpy(projected).T.contiguous().sort(dim=1)
        ones = np.ones(len(projected), np.int64)
        return with_interval(
            self._distance(values, order, ones),
            len(projected),
            lambda counts: self._distance(values, order, counts),
            _REPETITIONS,
        )

    def _distance(self, values: Tensor, order: Tensor, counts: Counts) -> float:
        found = _quantiles(values, order, torch.from_numpy(counts))
        return float((found - torch.from_numpy(self._quantiles)).square().mean().sqrt())


def _quantiles(values: Tensor, order: Tensor, counts: Tensor) -> Tensor:
    """The middle of each of LEVELS equal shares of sorted `values` [P, n],
    each counted so often: [P, LEVELS].
    """
    reached = counts[order].cumsum(1).double()
    total = int(counts.sum())
    levels = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS * total
    places = torch.searchsorted(reached, levels.expand(len(values), -1).contiguous())
    return values.gather(1, places.clamp(max=values.shape[1] - 1))


def reference_quantiles(pictures: Pictures, num_directions: int) -> Array:
    projected = torch.from_numpy(_projected(pictures, num_directions))
    values, order = projected.T.contiguous().sort(dim=1)
    return _quantiles(values, order, torch.ones(len(pictures), dtype=torch.int64)).numpy()


def _projected(pictures: Pictures, num_directions: int) -> Array:
    """Pixels along each direction: float64 [N, P].   Errors: DataError."""
    size = torch.Size(pictures.shape[1:]).numel()
    directions = Randomness.for_images(torch.arange(num_directions)).normal(size).double()
    directions = directions / directions.norm(dim=1, keepdim=True)
    found: Array = torch.cat(
        [part.flatten(1).double() @ directions.T for part in chunks(pictures)]
    ).numpy()
    return found
