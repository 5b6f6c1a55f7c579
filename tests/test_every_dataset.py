"""What every kind of picture data must do: the pictures that were put in, their classes,
and a print of both.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import noise_picture
from vdiff.data import DATASETS
from vdiff.data.dataset import Images
from vdiff.data.loader import batches, take
from vdiff.data.prepare import prepare
from vdiff.errors import DataError, VdiffError

SIZE = 8
NAMES = ("cat", "dog", "owl")


def lmdb(pictures: Path, out: Path, channels: int) -> Any:
    prepare(pictures, out, sizes=[SIZE], channels=channels)
    return DATASETS.section("lmdb")(path=out, size=SIZE, channels=channels)


EXPECTED: dict[str, Callable[[Path, Path, int], Any]] = {"lmdb": lmdb}
"""For every kind, from a folder of pictures to a section.
Data without an entry here fails every test below.
"""

every_kind = pytest.mark.parametrize("kind", list(DATASETS))


def folder(path: Path, count: int = 7, seed: int = 0, classes: tuple[str, ...] = NAMES) -> Path:
    """Pictures of the right size, so that nothing is to be resized; number i is of class i % 3."""
    for index in range(count):
        place = path / (classes[index % len(classes)] if classes else "")
        place.mkdir(parents=True, exist_ok=True)
        noise_picture(SIZE, SIZE, seed + index).save(place / f"{index:03d}.png")
    return path


def opened(kind: str, tmp_path: Path, name: str = "a", channels: int = 3, **more: Any) -> Images:
    pictures = folder(tmp_path / f"{name}-pictures", **more)
    images: Images = EXPECTED[kind](pictures, tmp_path / name, channels).open()
    return images


@every_kind
def test_pictures_and_classes_are_those_that_were_put_in(kind: str, tmp_path: Path) -> None:
    images = opened(kind, tmp_path)
    assert (images.num_images, images.shape, images.num_classes) == (7, (3, SIZE, SIZE), 3)
    wanted = {noise_picture(SIZE, SIZE, index).tobytes(): index % 3 for index in range(7)}
    for index in range(7):
        pixels, label = images[index]
        assert (pixels.dtype, pixels.shape) == (np.uint8, (3, SIZE, SIZE))
        assert wanted.pop(np.ascontiguousarray(pixels.transpose(1, 2, 0)).tobytes()) == label
    assert not wanted


@every_kind
def test_without_classes_there_are_no_labels(kind: str, tmp_path: Path) -> None:
    images = opened(kind, tmp_path, classes=())
    assert images.num_classes == 0
    assert [images[index][1] for index in range(7)] == [-1] * 7
    assert next(batches(images, seed=0, stage=0, batch_size=2)).labels is None


@every_kind
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_many_at_once_are_the_same_as_one_by_one(kind: str, channels: int, tmp_path: Path) -> None:
    images = opened(kind, tmp_path, channels=channels)
    assert images.shape == (channels, SIZE, SIZE)
    chosen = np.array([5, 0, 5, 2])
    pixels, labels = take(images, chosen)
    assert (pixels.dtype, labels.dtype) == (np.uint8, np.int64)
    for place, index in enumerate(chosen.tolist()):
        assert np.array_equal(pixels[place], images[index][0])
        assert labels[place] == images[index][1]


@every_kind
def test_the_fingerprint_is_that_of_the_content(kind: str, tmp_path: Path) -> None:
    one, same = opened(kind, tmp_path, "one"), opened(kind, tmp_path, "same")
    assert one.fingerprint == same.fingerprint
    assert len(one.fingerprint) == 64
    others = [
        opened(kind, tmp_path, "pixels", seed=1),
        opened(kind, tmp_path, "fewer", count=6),
        opened(kind, tmp_path, "labels", classes=("cat", "owl", "owl")),
        opened(kind, tmp_path, "none", classes=()),
    ]
    assert len({one.fingerprint, *(each.fingerprint for each in others)}) == 5


@every_kind
def test_what_is_changed_outside_is_not_changed_inside(kind: str, tmp_path: Path) -> None:
    images = opened(kind, tmp_path)
    before = images[2][0].copy()
    take(images, np.array([2]))[0][:] = 0
    images[2][0][:] = 0
    assert np.array_equal(images[2][0], before)


@every_kind
def test_it_travels_to_workers(kind: str, tmp_path: Path) -> None:
    images = opened(kind, tmp_path)
    again = pickle.loads(pickle.dumps(images))  # noqa: S301 - as torch sends it to its workers
    assert again.fingerprint == images.fingerprint
    assert all(np.array_equal(again[index][0], images[index][0]) for index in range(7))
    ahead = next(batches(images, seed=1, stage=0, batch_size=3, num_workers=1))
    here = next(batches(images, seed=1, stage=0, batch_size=3))
    assert ahead.images.equal(here.images)
    assert here.labels is not None
    assert here.labels.equal(ahead.labels)


@every_kind
def test_what_is_not_there_is_told_when_it_is_opened(kind: str, tmp_path: Path) -> None:
    section = EXPECTED[kind](folder(tmp_path / "pictures"), tmp_path / "store", 3)
    for changed in ({"path": tmp_path / "nowhere"}, {"size": 2 * SIZE}):
        with pytest.raises(VdiffError) as caught:
            section.model_copy(update=changed).open()
        assert isinstance(caught.value, DataError)
        assert caught.value.fix
