"""Agreement with the teacher: closed forms, the published definition,
and what cannot be compared.
"""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity as published

from vdiff.errors import DataError
from vdiff.images.images import to_float, to_uint8
from vdiff.metrics import metric
from vdiff.metrics.agreement import (
    agreement,
    agreement_of,
    squared_differences,
    structural_similarity,
)


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_equal_pictures_agree_in_everything() -> None:
    x = pictures(3, 3, 16, 16)
    assert agreement(x, x.clone()) == (0.0, math.inf, pytest.approx(1.0, abs=1e-12))


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_pictures_of_8_bits_agree_as_floats_do_however_many_are_looked_at_at_once(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(metric, "_CHUNK_BYTES", at_once * 8 * 3 * 16 * 16)
    a, b = (to_uint8(pictures(5, 3, 16, 16, seed=seed)) for seed in (0, 1))
    assert len(list(metric.chunks(a))) == math.ceil(5 / at_once)
    wanted = agreement(to_float(a), to_float(b))
    assert agreement_of(a, b) == pytest.approx(wanted, rel=1e-12)


def test_a_shift_of_a_tenth_has_a_hundredth_of_squared_error_and_26_decibels() -> None:
    x = pictures(2, 1, 8, 8) * 0.5
    found = agreement(x, x + 0.1)
    assert found.mse == pytest.approx(0.01, rel=1e-5)
    assert found.psnr == pytest.approx(10 * math.log10(400), rel=1e-5)
    assert found.ssim < 1


def test_flat_pictures_differ_in_luminance_only() -> None:
    a, b = torch.full((1, 1, 16, 16), 0.5), torch.full((1, 1, 16, 16), -0.25)
    wanted = (2 * 0.5 * -0.25 + 0.02**2) / (0.5**2 + 0.25**2 + 0.02**2)
    assert structural_similarity(a, b).item() == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 16, 16), (3, 32, 24), (3, 11, 40)])
def test_structural_similarity_is_the_published_one(channels: int, height: int, width: int) -> None:
    a = pictures(2, channels, height, width)
    b = (a + 0.3 * pictures(2, channels, height, width, seed=1)).clamp(-1, 1)
    for place, found in enumerate(structural_similarity(a, b)):
        wanted = np.mean(
            [
                published(
                    one.double().numpy(),
                    other.double().numpy(),
                    data_range=2.0,
                    gaussian_weights=True,
                    sigma=1.5,
                    use_sample_covariance=False,
                )
                for one, other in zip(a[place], b[place], strict=True)
            ]
        )
        assert found.item() == pytest.approx(wanted, abs=1e-6)


def test_pictures_smaller_than_the_window_are_compared_too() -> None:
    x = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8).expand(4, -1, -1, -1)
    noise = pictures(4, 1, 8, 8)
    more_and_more = [structural_similarity(x, x + strength * noise) for strength in (0.0, 0.1, 0.4)]
    assert (more_and_more[0] > more_and_more[1]).all()
    assert (more_and_more[1] > more_and_more[2]).all()


def test_each_pair_counts_for_itself() -> None:
    a = pictures(2, 1, 8, 8)
    b = torch.stack([a[0], a[1] + 1])
    assert squared_differences(a, b).tolist() == pytest.approx([0.0, 1.0], abs=1e-6)
    assert structural_similarity(a, b)[0].item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (pictures(2, 1, 8, 8), pictures(3, 1, 8, 8), "cannot be compared"),
        (pictures(2, 1, 8, 8), pictures(2, 1, 8, 8) * math.nan, "NaN"),
        (pictures(2, 1, 8, 8).byte(), pictures(2, 1, 8, 8), "uint8"),
        (pictures(2, 8, 8), pictures(2, 8, 8), "cannot be compared"),
        (torch.zeros(0, 1, 8, 8), torch.zeros(0, 1, 8, 8), "cannot be compared"),
    ],
)
def test_what_cannot_be_compared_is_refused(a: torch.Tensor, b: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        agreement(a, b)
