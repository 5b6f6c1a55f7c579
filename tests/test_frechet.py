"""The Frechet distance: what it must be for Gaussians whose distance is known, and for pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vdiff import digits
from vdiff.errors import DataError
from vdiff.images.images import to_float, to_uint8
from vdiff.metrics.bootstrap import resamples
from vdiff.metrics.frechet import Array, PixelFrechet, PixelFrechetSection, frechet_distance
from vdiff.metrics.metric import Reference

ORIGIN = np.zeros(6)


def random_covariance(seed: int, rank: int = 6) -> Array:
    factor = np.random.default_rng(seed).standard_normal((6, rank))
    return factor @ factor.T


def random_pictures(seed: int, num: int = 200) -> torch.Tensor:
    return torch.rand(num, 2, 3, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_the_distance_of_a_gaussian_to_itself_is_zero(rank: int) -> None:
    cov = random_covariance(0, rank)
    assert frechet_distance(ORIGIN, cov, ORIGIN, cov) == pytest.approx(0, abs=1e-12)


def test_diagonal_gaussians_have_the_closed_form() -> None:
    a, b = np.array([4.0, 9.0, 0.0, 1e-8]), np.array([1.0, 16.0, 2.0, 1e-8])
    closed_form = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    zero = np.zeros(4)
    assert frechet_distance(zero, np.diag(a), zero, np.diag(b)) == pytest.approx(
        closed_form, rel=1e-13
    )


def test_a_shift_of_the_mean_adds_its_squared_length() -> None:
    shift = np.array([1.0, -2.0, 0.5, 0.0, 3.0, 1.0])
    cov = random_covariance(1)
    assert frechet_distance(shift, cov, ORIGIN, cov) == pytest.approx(shift @ shift, rel=1e-12)


def test_gaussians_on_two_lines_have_the_closed_form() -> None:
    u, v = np.random.default_rng(2).standard_normal((2, 6))
    closed_form = u @ u + v @ v - 2 * abs(u @ v)
    distance = frechet_distance(ORIGIN, np.outer(u, u), ORIGIN, np.outer(v, v))
    assert distance == pytest.approx(closed_form, rel=1e-13)


@pytest.mark.parametrize("rank", [2, 6])
def test_it_is_symmetric_and_blind_to_rotations(rank: int) -> None:
    rng = np.random.default_rng(3)
    rotation, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    mean, a, b = rng.standard_normal(6), random_covariance(4, rank), random_covariance(5)
    there, back = frechet_distance(mean, a, ORIGIN, b), frechet_distance(ORIGIN, b, mean, a)
    turned = frechet_distance(
        rotation @ mean, rotation @ a @ rotation.T, ORIGIN, rotation @ b @ rotation.T
    )
    assert back == pytest.approx(there, rel=1e-12)
    assert turned == pytest.approx(there, rel=1e-12)


def test_it_agrees_with_the_matrix_square_root_of_scipy() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    a, b = random_covariance(6), random_covariance(7)
    theirs = np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert frechet_distance(ORIGIN, a, ORIGIN, b) == pytest.approx(theirs, rel=1e-8)


@pytest.mark.parametrize("num_components", [None, 5, 18])
def test_pictures_have_no_distance_to_themselves(num_components: int | None) -> None:
    pictures = random_pictures(0)
    assert PixelFrechet(pictures, num_components).distance(pictures.flip(0)) == pytest.approx(
        0, abs=1e-12
    )


def test_all_components_compare_what_the_pixels_compare() -> None:
    reference, samples = random_pictures(0), random_pictures(1) * 0.5
    by_pixels = PixelFrechet(reference).distance(samples)
    assert PixelFrechet(reference, num_components=18).distance(samples) == pytest.approx(
        by_pixels, rel=1e-10
    )


def test_the_covariance_is_unbiased() -> None:
    reference = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1)  # variance 2
    samples = torch.tensor([-0.5, 0.0, 0.5]).view(3, 1, 1, 1)  # variance 1/4
    expected = (np.sqrt(2) - np.sqrt(1 / 4)) ** 2
    assert PixelFrechet(reference).distance(samples) == pytest.approx(expected, rel=1e-12)


def test_the_first_components_are_those_of_greatest_variance() -> None:
    reference = random_pictures(0) * 0.01
    reference[:, 0, 0, 0] *= 100
    samples = reference.clone()
    samples[:, 0, 0, 0] += 0.5
    assert PixelFrechet(reference, num_components=1).distance(samples) == pytest.approx(
        0.25, rel=1e-3
    )


def test_half_of_the_digits_is_nearer_to_them_than_noisy_or_blurred_digits() -> None:
    images, _ = digits.load()
    pictures = torch.from_numpy(images).float() / 127.5 - 1
    rng = torch.Generator().manual_seed(0)
    measure = PixelFrechet(pictures, num_components=48)
    noisy = pictures + 0.2 * torch.randn(pictures.shape, generator=rng)
    blurred = torch.nn.functional.avg_pool2d(pictures, 3, stride=1, padding=1)
    floor = measure.distance(pictures[torch.randperm(1797, generator=rng)[:898]])
    # 20 random halves gave 0.072 on average, 0.093 at most.
    assert floor < 0.12
    assert measure.distance(noisy) > 2 * floor
    assert measure.distance(blurred) > 10 * floor


@pytest.mark.parametrize(
    ("samples", "problem"),
    [
        (torch.zeros(1, 2, 3, 3), "too few"),
        (torch.zeros(0, 2, 3, 3), "too few"),
        (torch.zeros(4, 2, 3, 4), "shape"),
        (torch.zeros(4, 18), "should be float pictures"),
        (torch.zeros(4, 2, 3, 3, dtype=torch.uint8), "should be float pictures"),
        (torch.full((4, 2, 3, 3), torch.nan), "4 of 4 pictures"),
        (
            torch.cat([torch.zeros(3, 2, 3, 3), torch.full((1, 2, 3, 3), torch.inf)]),
            "1 of 4 pictures",
        ),
    ],
)
def test_samples_that_cannot_be_compared_are_refused(samples: torch.Tensor, problem: str) -> None:
    measure = PixelFrechet(random_pictures(0))
    with pytest.raises(DataError, match=problem):
        measure.distance(samples)


@pytest.mark.parametrize("num_components", [0, -1, 19])
def test_components_that_do_not_exist_are_refused(num_components: int) -> None:
    with pytest.raises(DataError, match="principal components"):
        PixelFrechet(random_pictures(0), num_components)


def test_a_reference_without_pictures_is_refused() -> None:
    with pytest.raises(DataError, match="the reference"):
        PixelFrechet(random_pictures(0)[:1])


def section(components: int, reference: torch.Tensor, cache: Path | None = None) -> PixelFrechet:
    return PixelFrechetSection(components=components).build(Reference(reference, "print", cache))


def bytes_of(seed: int, count: int = 200) -> torch.Tensor:
    return to_uint8(random_pictures(seed).repeat(count // 50 + 1, 1, 1, 1)[:count] * 0.3)


def test_fewer_pixels_than_components_are_compared_as_they_are() -> None:
    assert section(64, bytes_of(0)).features == "pixels"
    assert (
        section(5, bytes_of(0)).features
        == "pixels on the 5 first principal components of the reference"
    )


def test_the_interval_is_that_of_single_resamples() -> None:
    reference, samples = bytes_of(0), bytes_of(1)
    measure = section(5, reference)
    found = measure.value(samples)
    drawn = [np.repeat(np.arange(len(samples)), counts) for counts in resamples(len(samples), 100)]
    spread = np.std([measure.distance(to_float(samples[chosen])) for chosen in drawn], ddof=1)
    assert found.value == pytest.approx(measure.distance(to_float(samples)), rel=1e-12)
    assert (found.high or 0) - found.value == pytest.approx(1.959964 * spread, rel=1e-6)


def test_large_pictures_are_projected_on_the_same_components(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = torch.linspace(1, 0.1, 18).reshape(1, 2, 3, 3)
    reference = random_pictures(0).repeat(4, 1, 1, 1) * weights
    whole = PixelFrechet(reference, 3).distance(random_pictures(1) * weights)
    monkeypatch.setattr("vdiff.metrics.frechet._WHOLE_COVARIANCE", 4)
    assert PixelFrechet(reference, 3).distance(random_pictures(1) * weights) == pytest.approx(
        whole, rel=1e-6
    )


def test_what_is_known_of_the_reference_is_kept_and_a_damaged_file_made_anew(
    tmp_path: Path,
) -> None:
    reference, samples = bytes_of(0), bytes_of(1)
    expected = section(5, reference, tmp_path).value(samples)
    (file,) = tmp_path.iterdir()
    # the fingerprint counts
    assert section(5, reference[:7].repeat(3, 1, 1, 1), tmp_path).value(samples) == expected
    whole = file.read_bytes()
    for damaged in (
        whole[:100],
        b"",
        whole[: len(whole) // 2] + b"x" + whole[len(whole) // 2 + 1 :],
    ):
        file.write_bytes(damaged)
        assert section(5, reference, tmp_path).value(samples) == expected
        assert file.read_bytes() == whole
    section(4, reference, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_reference_of_fewer_pictures_than_dimensions_is_refused() -> None:
    with pytest.raises(DataError, match="needs at least 19 reference pictures") as caught:
        section(64, bytes_of(0, 12))
    assert "fd_pixel:6" in caught.value.fix
