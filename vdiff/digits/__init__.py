"""The 1,797 handwritten digits that ship with vdiff, as arrays or as a folder of pictures.

Licence: see NOTICE.
"""

from collections.abc import Iterator
from functools import partial
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vdiff.disk import whole_folder
from vdiff.disk.ours import refuse_strange_file, strange

MOST_INK = 16
"""The data set counts the dark dots of each 4x4 block: 0 to 16."""


def load() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All pictures, uint8 [1797, 1, 8, 8] with 0 = paper and 255 = ink,
    and the digit in each, int64 [1797].
    """
    with (
        resources.files(__name__).joinpath("digits.npz").open("rb") as file,
        np.load(file) as arrays,
    ):
        ink = arrays["ink"]
        labels = arrays["labels"]
    images = np.rint(ink * (255 / MOST_INK)).astype(np.uint8)
    return images[:, None], labels.astype(np.int64)


def write_folder(folder: Path) -> int:
    """Write every digit as `folder/<label>/<index>.png` and return how many there are.

    Whole pictures that are already there are kept, so calling it again completes an interrupted
    call.
    Errors: UsageError, before anything is written, for a file of somebody else in the place of a
    picture; MachineError where the folder cannot be written.
    """
    pictures = dict(_pictures())
    # Before the first write: half a folder beside somebody else's files would be worse than none.
    check_folder(folder)
    # A killed call may have left half of a file under a hidden name.
    for label in range(10):
        whole_folder.forget_leftovers(folder / str(label))
    for name, content in pictures.items():
        if not _holds(folder / name, content):
            # Not flushed: 1,797 flushes take long on a hard disk, and the next call makes what is
            # missing again.
            whole_folder.write_bytes(
                folder / name, content, partial(_is_part, content), is_flushed=False
            )
    return len(pictures)


def check_folder(folder: Path) -> None:
    """UsageError for anything in the place of a picture or of its folder that
    vdiff did not write there.
    """
    with whole_folder.refusals(folder):
        for place in (folder, *(folder / str(label) for label in range(10))):
            if whole_folder.is_taken(place):
                raise strange(place, place)
    for name, content in _pictures():
        refuse_strange_file(folder / name, partial(_is_part, content))


def _pictures() -> Iterator[tuple[str, bytes]]:
    # Not at the top: it imports torch, which takes seconds.
    from vdiff.images.images import encode

    for index, (image, label) in enumerate(zip(*load(), strict=True)):
        yield f"{label}/{index:04d}.png", encode(image, "png")


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _is_part(content: bytes, path: Path) -> bool:
    """Whether a file holds a picture of ours, or the beginning of one."""
    # The beginning: a power cut leaves half of a file that was not flushed.
    return content.startswith(path.read_bytes())
