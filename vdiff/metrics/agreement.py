"""Agreement with the teacher: how much two models' pictures from the same noise differ,
pixel by pixel.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from vdiff.config import free_to_change
from vdiff.errors import DataError
from vdiff.metrics.metric import Means, Pictures
from vdiff.metrics.pair_metric import Measure, PairMetric, PairMetricSection, mean_over_pairs

if TYPE_CHECKING:
    from torch import Tensor

FEATURES = "pixels, pair by pair from the same noise"

_WINDOW = 11
_SPREAD = 1.5
_RANGE = 2.0
"""From black to white."""
# K2 and K1 of Wang et al. 2004
_CONTRAST = (0.03 * _RANGE) ** 2
_LUMINANCE = (0.01 * _RANGE) ** 2


class AgreementSection(PairMetricSection):
    """Agreement with the own teacher and with the original, from the same noise;
    needs no reference pictures.
    """

    is_cheap: ClassVar[bool] = True
    title: ClassVar[str] = "Agreement"
    better: ClassVar[str] = "more is better"
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure(
            "psnr",
            "Agreement: PSNR in dB",
            "PSNR",
            "more is better",
            column="dB",
            unit="dB",
            form=".1f",
        ),
        Measure(
            "ssim",
            "Agreement: structural similarity",
            "SSIM",
            "more is better, 1 is equal",
            most=1.0,
            form=".3f",
            beside=("original",),
        ),
        Measure(
            "mse",
            "Agreement: mean squared error",
            "mean squared error",
            "less is better",
            beside=(),
        ),
    )
    kind: Literal["agreement"] = free_to_change("agreement")
    """Which metric."""

    def build(self, means: Means) -> PairMetric:
        return PixelAgreement()


class PixelAgreement:
    """See `Agreement`."""

    features = FEATURES

    def compare(self, own: Pictures, other: Pictures) -> dict[str, float]:
        """mse, psnr and ssim.   own, other: uint8 [N, C, H, W].   Errors: DataError."""
        return agreement_of(own, other)._asdict()


class Agreement(NamedTuple):
    """What two sets of pictures, pair by pair, have in common.

    mse: squared difference of pixels in [-1, 1], mean over all.
    psnr: 10 log10(4 / mse) in dB, infinite for equal pictures.
    ssim: structural similarity in [-1, 1], 1 for equal pictures.
    """

    mse: float
    psnr: float
    ssim: float


def agreement(a: Tensor, b: Tensor) -> Agreement:
    """Compare pictures a and b, float [N, C, H, W] in [-1, 1], the n-th with the n-th.

    Errors: DataError.
    """
    mse = squared_differences(a, b)
    return from_means(float(mse.mean()), float(structural_similarity(a, b).mean()))


def agreement_of(a: Pictures, b: Pictures) -> Agreement:
    """As `agreement`, of pictures of 8 bits that need not fit into memory."""
    return from_means(**mean_over_pairs(a, b, _of_batch))


def _of_batch(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    return {"mse": squared_differences(a, b), "ssim": structural_similarity(a, b)}


def from_means(mse: float, ssim: float) -> Agreement:
    """The agreement of pictures with these means over all of them."""
    psnr = math.inf
    if mse > 0:
        psnr = 10 * math.log10(_RANGE**2 / mse)
    return Agreement(mse, psnr, ssim)


def squared_differences(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of each pair of pictures: float64 [N]."""
    _check(a, b)
    return (a.double() - b.double()).square().flatten(1).mean(1)


def structural_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each pair of pictures, mean over channels and all
    whole windows: float64 [N].

    A Gaussian window of 11 x 11 pixels with a spread of 1.5; the largest odd one that fits into
    smaller pictures.
    Source: Wang, Bovik, Sheikh & Simoncelli 2004.
    """
    import torch

    _check(a, b)
    # float64: where a picture is flat, E[a^2] - E[a]^2 of float32 would be rounding alone
    pictures = torch.stack([a, b]).double()
    mean_a, mean_b = _blurred(pictures)
    square_a, square_b = _blurred(pictures.square())
    product = _blurred((pictures[0] * pictures[1])[None])[0]
    covariance = product - mean_a * mean_b
    variances = square_a - mean_a.square() + square_b - mean_b.square()
    luminance = (2 * mean_a * mean_b + _LUMINANCE) / (
        mean_a.square() + mean_b.square() + _LUMINANCE
    )
    structure = (2 * covariance + _CONTRAST) / (variances + _CONTRAST)
    similarity: Tensor = luminance * structure
    return similarity.flatten(1).mean(1)


def _blurred(pictures: Tensor) -> Tensor:
    """Gaussian means over all whole windows: [..., H, W] -> [..., H - n + 1, W - n + 1]."""
    import torch
    from torch.nn import functional

    height, width = pictures.shape[-2:]
    taps = min(_WINDOW, height - 1 + height % 2, width - 1 + width % 2)
    places = torch.arange(taps, dtype=torch.float64, device=pictures.device) - taps // 2
    window = torch.exp(-places.square() / (2 * _SPREAD**2))
    window = window / window.sum()
    rows = pictures.reshape(-1, 1, height, width)
    found = functional.conv2d(
        functional.conv2d(rows, window[None, None, :, None]), window[None, None, None]
    )
    return found.reshape(*pictures.shape[:-2], *found.shape[-2:])


def _check(a: Tensor, b: Tensor) -> None:
    """DataError for what cannot be compared."""
    if a.shape != b.shape or a.ndim != 4 or not a.numel():
        problem = (
            f"pictures of the shapes {list(a.shape)} and {list(b.shape)} cannot be "
            "compared pair by pair"
        )
        raise DataError(
            problem, "draw both from the same seeds, with models of one size and number of channels"
        )
    for pictures in (a, b):
        if not pictures.is_floating_point():
            raise DataError(
                f"pictures of {pictures.dtype} are not in [-1, 1]", "convert them with `to_float`"
            )
        bad = int((~pictures.isfinite().flatten(1).all(1)).sum())
        if bad:
            raise DataError(
                f"{bad} of {len(pictures)} pictures hold NaN or Inf",
                "look at the model that drew them",
            )
