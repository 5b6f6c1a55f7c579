"""The 1,797 handwritten digits that ship with vdiff, as arrays or as a folder of pictures. Licence: see NOTICE."""

from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vdiff.errors import MachineError

MOST_INK = 16
"""The data set counts the dark dots of each 4x4 block: 0 to 16."""


def load() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All pictures, uint8 [1797, 1, 8, 8] with 0 = paper and 255 = ink, and the digit in each, int64 [1797]."""
    with resources.files(__name__).joinpath("digits.npz").open("rb") as file, np.load(file) as arrays:
        ink, labels = arrays["ink"], arrays["labels"]
    images = np.rint(ink * (255 / MOST_INK)).astype(np.uint8)
    return images[:, None], labels.astype(np.int64)


def write_folder(folder: Path) -> int:
    """Write every digit as `folder/<label>/<index>.png` and return how many there are.

    Whole pictures that are already there are kept, so calling it again completes an interrupted call.
    Raises MachineError where the folder cannot be written.
    """
    num_pictures = 0
    for name, content in _pictures():
        _write_whole(folder / name, content)
        num_pictures += 1
    return num_pictures


def _pictures() -> Iterator[tuple[str, bytes]]:
    from vdiff.images import encode  # here, because it imports torch

    for index, (image, label) in enumerate(zip(*load(), strict=True)):
        yield f"{label}/{index:04d}.png", encode(image, "png")


def _write_whole(path: Path, content: bytes) -> None:
    part = path.with_suffix(".part")
    try:
        if path.is_file() and path.read_bytes() == content:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        part.replace(path)
    except OSError as err:
        raise MachineError(
            f"the digits cannot be written: {err.strerror}", "choose a folder that can be written", path
        ) from err
