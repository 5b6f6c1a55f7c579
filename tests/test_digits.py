"""The digits inside the package: the right ones, and a folder of them that
survives interruptions.
"""

import hashlib
import subprocess
from pathlib import Path

import numpy as np
import pytest

from vdiff import digits
from vdiff.errors import MachineError
from vdiff.images.images import decode


def ended_process() -> int:
    """The number of a process that is no longer."""
    with subprocess.Popen(["true"]) as process:
        pass
    return process.pid


def all_files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_there_are_1797_grey_pictures_with_labels() -> None:
    images, labels = digits.load()
    assert (images.shape, images.dtype) == ((1797, 1, 8, 8), np.uint8)
    assert (labels.shape, labels.dtype) == ((1797,), np.int64)
    # Number of test pictures per digit: the data set's own description, `optdigits.names`.
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_the_counts_of_the_data_set_can_be_recovered_exactly() -> None:
    images, labels = digits.load()
    ink = np.rint(images / 255 * 16).astype(np.uint8)
    assert set(np.unique(ink)) == set(range(17))
    # SHA-256 of scikit-learn's load_digits, `images` then `target`, both as unsigned bytes.
    expected = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
    assert hashlib.sha256(ink.tobytes() + labels.astype(np.uint8).tobytes()).hexdigest() == expected


def test_they_are_the_digits_of_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    theirs = datasets.load_digits()
    images, labels = digits.load()
    assert np.array_equal(images[:, 0], np.rint(theirs.images * 255 / 16))
    assert np.array_equal(labels, theirs.target)


def test_the_folder_holds_every_picture_under_its_label(tmp_path: Path) -> None:
    assert digits.write_folder(tmp_path) == 1797
    images, labels = digits.load()
    paths = sorted(tmp_path.rglob("*"), key=lambda path: path.name)
    pictures = [path for path in paths if path.is_file()]
    assert [int(path.stem) for path in pictures] == list(range(1797))
    assert [int(path.parent.name) for path in pictures] == labels.tolist()
    assert all(
        np.array_equal(decode(path.read_bytes(), 1), images[int(path.stem)])
        for path in pictures[::50]
    )


def test_an_interrupted_folder_is_completed_by_the_next_call(tmp_path: Path) -> None:
    digits.write_folder(tmp_path)
    whole = all_files(tmp_path)
    kept = tmp_path / "1" / "0001.png"
    written_at = kept.stat().st_mtime_ns
    (tmp_path / "0" / "0000.png").unlink()
    (tmp_path / "0" / f".0000.png.partial-{ended_process()}-1").write_bytes(b"half a pic")
    (tmp_path / "3" / "0003.png").write_bytes(whole["3/0003.png"][:20])
    assert digits.write_folder(tmp_path) == 1797
    assert all_files(tmp_path) == whole
    assert kept.stat().st_mtime_ns == written_at


def test_a_folder_that_cannot_be_made_is_an_error_of_the_machine(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MachineError, match="cannot write"):
        digits.write_folder(tmp_path / "file" / "digits")
