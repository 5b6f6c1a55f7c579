"""The Frechet distance between two sets of pictures: their means and covariances, compared as if they were Gaussian."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vdiff.errors import DataError

Array = NDArray[np.float64]


def frechet_distance(mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array) -> float:
    """|mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 sqrt(cov_a cov_b)), never below 0.

    mean: [D].   cov: [D, D], symmetric and positive semidefinite; it may be singular.   Source: Dowson & Landau 1982.
    """
    # tr sqrt(A B) = tr sqrt(sqrt(A) B sqrt(A)) is the sum of the singular values of a'b, where A = a a' and B = b b'.
    # Not through the eigenvalues of the product: their roots turn a rounding error of 1e-16 into one of 1e-8.
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


class PixelFrechet:
    """`fd_pixel`: the Frechet distance of pixels to those of reference pictures.

    reference: [N, C, H, W], floats in [-1, 1].   num_components: how many first principal components of the reference
    the pixels are projected on; None compares the pixels themselves.   Raises DataError for unusable pictures.
    """

    name = "fd_pixel"

    def __init__(self, reference: Tensor, num_components: int | None = None) -> None:
        rows = _rows(reference, "the reference")
        _check_components(num_components, rows.shape[1])
        moments = Moments.of(rows)
        self.shape = tuple(reference.shape[1:])
        self.num_reference = len(rows)
        self.num_components = num_components
        self._basis = _principal_components(moments.cov, num_components)
        self._centre = moments.mean
        self._reference = self._moments(rows)

    def distance(self, samples: Tensor) -> float:
        """The distance of samples [M, C, H, W], M >= 2, to the reference; DataError if they cannot be compared."""
        rows = _rows(samples, "the samples")
        if tuple(samples.shape[1:]) != self.shape:
            problem = f"the samples have the shape {tuple(samples.shape[1:])} and the reference has {self.shape}"
            raise DataError(problem, "compare pictures of one size and number of channels")
        moments = self._moments(rows)
        return frechet_distance(moments.mean, moments.cov, self._reference.mean, self._reference.cov)

    @property
    def features(self) -> str:
        """What is compared, for the line of conditions beside a number."""
        if self.num_components is None:
            return "pixels"
        return f"pixels on the {self.num_components} first principal components of the reference"

    def _moments(self, rows: Array) -> Moments:
        return Moments.of((rows - self._centre) @ self._basis)


def _factor(cov: Array) -> Array:
    """A matrix f with f f' = cov; directions that are only rounding errors of a singular covariance are left out."""
    values, vectors = np.linalg.eigh(np.asarray(cov, np.float64))
    noise = np.abs(values).max() * len(values) * np.finfo(np.float64).eps
    factor: Array = vectors * np.sqrt(np.where(values > noise, values, 0.0))
    return factor


def _principal_components(cov: Array, num_components: int | None) -> Array:
    """The directions [D, K] of greatest variance, the greatest first; all pixels where `num_components` is None."""
    if num_components is None:
        return np.eye(len(cov))
    vectors: Array = np.linalg.eigh(cov).eigenvectors
    return vectors[:, ::-1][:, :num_components]


def _rows(pictures: Tensor, whose: str) -> Array:
    """Pictures [N, C, H, W] as float64 rows [N, C * H * W]."""
    if pictures.ndim != 4 or not pictures.is_floating_point():
        problem = f"{whose} should be float pictures [N, C, H, W], not {pictures.dtype} {list(pictures.shape)}"
        raise DataError(problem, "convert them with `vdiff.images.to_float`")
    if len(pictures) < 2 or pictures[0].numel() == 0:
        raise DataError(f"{whose} are {len(pictures)} pictures: too few for a covariance", "give at least 2")
    rows: Array = pictures.detach().double().cpu().flatten(1).numpy()
    bad = int((~np.isfinite(rows).all(axis=1)).sum())
    if bad:
        raise DataError(
            f"{bad} of {len(rows)} pictures of {whose} hold NaN or Inf", "sample again or look at the model"
        )
    return rows


def _check_components(num_components: int | None, num_pixels: int) -> None:
    if num_components is not None and not 1 <= num_components <= num_pixels:
        problem = f"{num_components} principal components of {num_pixels} pixels do not exist"
        raise DataError(problem, f"choose between 1 and {num_pixels} components, or none for the pixels themselves")
