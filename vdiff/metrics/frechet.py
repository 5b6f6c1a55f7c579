"""The Frechet distance between two sets of pictures:
their means and covariances, compared as if they were Gaussian.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vdiff.disk.array_file import Arrays
from vdiff.errors import DataError
from vdiff.metrics.bootstrap import REPETITIONS, Counts, with_interval
from vdiff.metrics.metric import AsFloat, Pictures, chunks
from vdiff.metrics.pixels import PixelFrechetSection as PixelFrechetSection
from vdiff.metrics.table import Value
from vdiff.randomness import Randomness

Array = NDArray[np.float64]

_WHOLE_COVARIANCE = 3072
"""Up to so many pixels the principal components come from the whole covariance,
above by subspace iteration.
"""

_MOST_INTERVAL = 512
"""With more dimensions than this, a bootstrap takes too long."""


def frechet_distance(mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array) -> float:
    """|mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 sqrt(cov_a cov_b)), never below 0.

    mean: [D].   cov: [D, D], symmetric and positive semidefinite; it may be singular.
    Source: Dowson & Landau 1982.
    """
    # tr sqrt(A B) = tr sqrt(sqrt(A) B sqrt(A)) is the sum of the singular values of a'b, where A =
    # a a' and B = b b'. Not through the eigenvalues of the product: their roots turn a rounding
    # error of 1e-16 into one of 1e-8.
    overlap = np.linalg.svd(_factor(cov_a).T @ _factor(cov_b), compute_uv=False).sum()
    shift = np.asarray(mean_a, np.float64) - np.asarray(mean_b, np.float64)
    return max(0.0, float(shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * overlap))


@dataclass(frozen=True)
class Moments:
    """Mean [D] and unbiased covariance [D, D] of rows of features."""

    mean: Array
    cov: Array

    @classmethod
    def of(cls, features: Array) -> "Moments":
        return cls(features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False)))

    @classmethod
    def counted(cls, features: Array, counts: Counts) -> "Moments":
        """Of rows each of which is there so often."""
        mean = counts @ features / counts.sum()
        centred = features - mean
        return cls(mean, (centred * counts[:, None]).T @ centred / (counts.sum() - 1))

    def distance(self, other: "Moments") -> float:
        return frechet_distance(self.mean, self.cov, other.mean, other.cov)


def distance_with_interval(rows: Array, reference: Moments) -> Value:
    """The distance of rows of features to a reference, with its 95 % interval where it
    does not take too long.
    """
    repetitions = REPETITIONS
    if rows.shape[1] > _MOST_INTERVAL:
        repetitions = 0
    return with_interval(
        Moments.of(rows).distance(reference),
        len(rows),
        lambda counts: Moments.counted(rows, counts).distance(reference),
        repetitions,
    )


class PixelFrechet:
    """`fd_pixel`: the Frechet distance of pixels to those of reference pictures.

    reference: [N, C, H, W], floats in [-1, 1].   num_components: how many first principal
    components of the reference the pixels are projected on; None compares the pixels themselves.
    Raises DataError for unusable pictures.
    """

    def __init__(self, reference: Pictures, num_components: int | None = None) -> None:
        _check_pictures(reference, "the reference")
        _check_components(num_components, torch.Size(reference.shape[1:]).numel())
        self._set(reference.shape, num_components, *_components(reference, num_components))
        self._reference = Moments.of(self.project(reference, "the reference"))

    @classmethod
    def restored(
        cls, shape: tuple[int, ...], num_components: int | None, arrays: Mapping[str, Array]
    ) -> "PixelFrechet":
        """The same again from what `arrays` gave. shape: of the reference, [N, C, H, W]."""
        found = cls.__new__(cls)
        found._set(shape, num_components, arrays["centre"], arrays["basis"])
        found._reference = Moments(arrays["mean"], arrays["cov"])
        return found

    def arrays(self) -> Arrays:
        """All that is known of the reference."""
        moments = self._reference
        return {
            "centre": self._centre,
            "basis": self._basis,
            "mean": moments.mean,
            "cov": moments.cov,
        }

    def _set(
        self, shape: Sequence[int], num_components: int | None, centre: Array, basis: Array
    ) -> None:
        self.shape = tuple(shape[1:])
        self._centre = centre
        self._basis = basis
        self.least = basis.shape[1] + 1
        self.features = "pixels"
        if num_components is not None:
            self.features += f" on the {num_components} first principal components of the reference"

    def distance(self, samples: Pictures) -> float:
        """The distance of samples [M, C, H, W], M >= 2, to the reference;
        DataError if they cannot be compared.
        """
        return Moments.of(self._rows(samples)).distance(self._reference)

    def value(self, samples: Pictures) -> Value:
        """The distance with its 95 % interval; samples: uint8 [M, C, H, W]."""
        return distance_with_interval(self._rows(AsFloat(samples)), self._reference)

    def project(self, pictures: Pictures, whose: str) -> Array:
        """Rows [N, K] of pictures about the centre of the reference."""
        found = [(_rows(part, whose) - self._centre) @ self._basis for part in chunks(pictures)]
        return np.concatenate(found)

    def _rows(self, samples: Pictures) -> Array:
        _check_pictures(samples, "the samples")
        if tuple(samples.shape[1:]) != self.shape:
            problem = (
                f"the samples have the shape {tuple(samples.shape[1:])} and the "
                f"reference has {self.shape}"
            )
            raise DataError(problem, "compare pictures of one size and number of channels")
        return self.project(samples, "the samples")


def _factor(cov: Array) -> Array:
    """A matrix f with f f' = cov; directions that are only rounding errors of a singular
    covariance are left out.
    """
    values, vectors = np.linalg.eigh(np.asarray(cov, np.float64))
    noise = np.abs(values).max() * len(values) * np.finfo(np.float64).eps
    factor: Array = vectors * np.sqrt(np.where(values > noise, values, 0.0))
    return factor


def _components(pictures: Pictures, num_components: int | None) -> tuple[Array, Array]:
    """The mean [D] of pictures, and the directions [D, K] of greatest variance,
    greatest first; None: all pixels.
    """
    size = torch.Size(pictures.shape[1:]).numel()
    total = np.zeros(size)
    for part in chunks(pictures):
        total = total + _rows(part, "the reference").sum(axis=0)
    centre: Array = total / len(pictures)
    if num_components is None:
        return centre, np.eye(size)
    if size > _WHOLE_COVARIANCE:
        return centre, _by_iteration(pictures, centre, num_components)
    vectors: Array = np.linalg.eigh(_applied(pictures, centre)).eigenvectors
    return centre, vectors[:, ::-1][:, :num_components]


def _applied(pictures: Pictures, centre: Array, directions: Array | None = None) -> Array:
    """The sum over pictures of (x - centre) (x - centre)' directions: [D, K];
    None: of all pixels, [D, D].
    """
    num_columns = len(centre)
    if directions is not None:
        num_columns = directions.shape[1]
    total = np.zeros((len(centre), num_columns))
    for part in chunks(pictures):
        rows = _rows(part, "the reference") - centre
        if directions is None:
            total += rows.T @ rows
        else:
            # in this order nothing of [D, D] is made
            total += rows.T @ (rows @ directions)
    return total


def _by_iteration(
    pictures: Pictures, centre: Array, num_components: int, repetitions: int = 8
) -> Array:
    """The first principal components by subspace iteration from fixed random directions.

    Source: Halko, Martinsson & Tropp 2011.
    """
    size = torch.Size(pictures.shape[1:]).numel()
    wide = min(num_components + 16, size)
    basis = Randomness.for_images(torch.arange(wide)).normal(size).double().T.numpy()
    for _ in range(repetitions):
        basis = np.linalg.qr(_applied(pictures, centre, basis)).Q
    small = basis.T @ _applied(pictures, centre, basis)
    vectors: Array = basis @ np.linalg.eigh((small + small.T) / 2).eigenvectors[:, ::-1]
    return vectors[:, :num_components]


def _check_pictures(pictures: Pictures, whose: str) -> None:
    if len(pictures.shape) != 4:
        raise _no_pictures(pictures[0:1].dtype, pictures.shape, whose)
    if len(pictures) < 2 or 0 in pictures.shape:
        raise DataError(
            f"{whose} are {len(pictures)} pictures: too few for a covariance", "give at least 2"
        )


def _no_pictures(dtype: torch.dtype, shape: object, whose: str) -> DataError:
    problem = f"{whose} should be float pictures [N, C, H, W], not {dtype} {list(shape)}"  # type: ignore[call-overload]
    return DataError(problem, "convert them with `vdiff.images.images.to_float`")


def _rows(pictures: Tensor, whose: str) -> Array:
    """Pictures [N, C, H, W] as float64 rows [N, C * H * W]."""
    if not pictures.is_floating_point():
        raise _no_pictures(pictures.dtype, pictures.shape, whose)
    rows: Array = pictures.detach().double().cpu().flatten(1).numpy()
    bad = int((~np.isfinite(rows).all(axis=1)).sum())
    if bad:
        raise DataError(
            f"{bad} of {len(rows)} pictures of {whose} hold NaN or Inf",
            "sample again or look at the model",
        )
    return rows


def _check_components(num_components: int | None, num_pixels: int) -> None:
    if num_components is not None and not 1 <= num_components <= num_pixels:
        problem = f"{num_components} principal components of {num_pixels} pixels do not exist"
        raise DataError(
            problem,
            f"choose between 1 and {num_pixels} components, or none for the pixels themselves",
        )
