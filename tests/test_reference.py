"""What is kept of the reference: believed only where it is what would be computed,
and never in a number's way.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vdiff import digits
from vdiff.disk import array_file
from vdiff.disk.array_file import Arrays
from vdiff.metrics import reference
from vdiff.metrics.metric import MetricSection, chunks
from vdiff.metrics.reference import StorePictures, remembered

SHAPES: dict[str, Any] = {"rows": (None, 3), "mean": (3,)}


class Numbers:
    """Pictures of one pixel that show their own number."""

    num_images, shape, num_classes, num_workers, fingerprint = 10, (1, 1, 2), 0, 0, "numbers"

    def __getitem__(self, index: int, /) -> tuple[np.ndarray[Any, Any], int]:
        return np.array([[[index, 255]]], np.uint8), -1


@pytest.mark.parametrize(
    "part", [slice(0, 10), slice(2, 5), slice(7, 99), slice(None), slice(-3, None), slice(4, 4)]
)
def test_the_pictures_of_a_data_set_are_read_as_they_are_needed(part: slice) -> None:
    pictures = StorePictures(Numbers())
    assert (len(pictures), pictures.shape) == (10, (10, 1, 1, 2))
    if part == slice(4, 4):
        return
    found = pictures[part]
    assert (found.dtype, found.shape[1:]) == (torch.uint8, (1, 1, 2))
    assert found[:, 0, 0, 0].tolist() == list(range(10))[part]


class Work:
    """Counts how often it is asked."""

    def __init__(self, value: float = 1.0) -> None:
        self.value, self.count = value, 0

    def __call__(self) -> Arrays:
        self.count += 1
        return {"rows": np.full((4, 3), self.value), "mean": np.zeros(3)}


def test_it_is_computed_once_for_everything_that_it_depends_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work()
    for about in (
        {"metric": "a"},
        {"metric": "a", "weights": "1"},
        {"metric": "a", "weights": "2"},
    ):
        for _ in range(2):
            found = remembered(tmp_path, about, work, SHAPES)
            assert found.keys() == {"rows", "mean"}
            assert (found["rows"] == 1).all()
    assert work.count == len(list(tmp_path.iterdir())) == 3
    assert remembered(tmp_path, {"weights": "1", "metric": "a"}, work, SHAPES)
    assert work.count == 3  # in whatever order it is told
    monkeypatch.setattr(reference, "__version__", "another")
    remembered(tmp_path, {"metric": "a"}, work, SHAPES)
    assert work.count == 4


def test_without_a_folder_it_is_computed_every_time() -> None:
    work = Work()
    for _ in range(2):
        assert (remembered(None, {}, work, SHAPES)["rows"] == 1).all()
    assert work.count == 2


@pytest.mark.parametrize(
    "arrays",
    [
        {"rows": np.ones((4, 2)), "mean": np.zeros(3)},
        {"rows": np.ones((4, 3, 1)), "mean": np.zeros(3)},
        {"rows": np.ones((4, 3)), "mean": np.zeros(4)},
        {"rows": np.ones((4, 3))},
        {"rows": np.ones((4, 3)), "mean": np.zeros(3), "more": np.zeros(1)},
        {"rows": np.ones((4, 3)), "mean": np.array([0, np.nan, 0])},
        {"rows": np.ones((4, 3)), "mean": np.array([0, np.inf, 0])},
        {"rows": np.ones((4, 3), bool), "mean": np.zeros(3)},
        {"rows": np.full((4, 3), "a"), "mean": np.zeros(3)},
    ],
    ids=["narrow", "deep", "long", "missing", "one more", "NaN", "infinite", "truth", "text"],
)
def test_arrays_that_cannot_be_what_was_computed_are_computed_again(
    tmp_path: Path, arrays: Arrays
) -> None:
    remembered(tmp_path, {"metric": "a"}, Work(), SHAPES)
    (path,) = tmp_path.iterdir()
    about = (array_file.read(path) or {})["about"]
    path.write_bytes(array_file.packed({"about": about, **arrays}))
    work = Work(2.0)
    assert (remembered(tmp_path, {"metric": "a"}, work, SHAPES)["rows"] == 2).all()
    assert work.count == 1
    assert (remembered(tmp_path, {"metric": "a"}, work, SHAPES)["rows"] == 2).all()
    assert work.count == 1


def test_whole_numbers_and_any_number_of_rows_are_believed(tmp_path: Path) -> None:
    def compute() -> Arrays:
        return {"rows": np.ones((7, 3), np.int64), "mean": np.zeros(3, np.uint8)}

    remembered(tmp_path, {}, compute, SHAPES)
    work = Work()
    assert remembered(tmp_path, {}, work, SHAPES)["rows"].shape == (7, 3)
    assert work.count == 0


def test_what_is_known_of_something_else_is_not_taken_for_it(tmp_path: Path) -> None:
    remembered(tmp_path, {"metric": "a"}, Work(), SHAPES)
    (path,) = tmp_path.iterdir()
    found = array_file.read(path) or {}
    path.write_bytes(array_file.packed(found | {"about": np.array("{}")}))
    work = Work(2.0)
    assert (remembered(tmp_path, {"metric": "a"}, work, SHAPES)["rows"] == 2).all()


def test_a_folder_that_cannot_be_written_to_costs_no_number(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert (remembered(tmp_path / "file", {}, Work(), SHAPES)["rows"] == 1).all()


def test_pictures_are_taken_in_parts_that_fit_into_memory_in_order() -> None:
    images, _ = digits.load()
    pictures = torch.from_numpy(images)
    assert torch.equal(torch.cat(list(chunks(pictures))), pictures)
    # as float64 32 MiB hold 1.33 of them
    large = torch.zeros(1, dtype=torch.uint8).expand(5, 3, 1024, 1024)
    assert [len(part) for part in chunks(large)] == [1] * 5
    half = torch.zeros(1, dtype=torch.uint8).expand(5, 2, 1024, 1024)
    assert [len(part) for part in chunks(half)] == [2, 2, 1]
    huge = torch.zeros(1, dtype=torch.uint8).expand(2, 3, 4096, 4096)
    assert [len(part) for part in chunks(huge)] == [1, 1]


def test_a_metric_that_cannot_be_made_says_so() -> None:
    with pytest.raises(TypeError, match="build"):
        MetricSection()  # type: ignore[abstract]
