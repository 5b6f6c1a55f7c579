"""Pictures for `vdiff prepare` in one file:
`images`, uint8 [N, H, W] or [N, H, W, 3], and `labels` [N], in an .npz.
"""

import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

from vdiff.data.sources.picture import Picture
from vdiff.data.sources.source import Listing, Source
from vdiff.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.uint8]


class NpzSource(Source):
    """All pictures of an .npz file. Each becomes a file in the folder of its class."""

    @classmethod
    def recognises(cls, path: Path, beginning: bytes) -> bool:
        return path.suffix == ".npz" and beginning.startswith(b"PK")

    def listing(self) -> Listing:
        images, labels = self._arrays()
        found = Listing()
        for index, image in enumerate(images):
            folder = "" if labels is None else f"{labels[index]}/"
            found.files.add(f"{folder}{index:08d}.ppm", len(header(image)) + image.size, index)
        return found

    def pictures(self, start: int) -> Iterator[Picture]:
        images, _ = self._arrays()
        for index in range(start, len(self.files)):
            yield Picture(self.files[index], partial(as_file, images[self.files.places[index]]))

    def _arrays(self) -> "tuple[Array, Array | None]":
        import numpy as np  # here, so that nobody waits for it who prepares other sources

        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                images = arrays["images"]
                labels = arrays.get("labels")
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as err:
            problem = f"`{self.path}` has no `images` that can be read: {err}"
            raise DataError(problem, "write it anew", self.path) from err
        if images.dtype != np.uint8 or images.shape[3:] not in ((), (3,)) or images.ndim < 3:
            problem = (
                f"`images` is {images.dtype} {images.shape}, not uint8 [N, H, W] or [N, H, W, 3]"
            )
            raise DataError(problem, "write it anew", self.path)
        if labels is not None and len(labels) != len(images):
            raise DataError(
                f"{len(images)} pictures have {len(labels)} labels", "write it anew", self.path
            )
        return images, labels


def header(image: "Array") -> bytes:
    """Before the bytes of an array, it makes a file of the kinds .pgm (grey) or .ppm of them."""
    kind = "P5" if image.ndim == 2 else "P6"
    return f"{kind} {image.shape[1]} {image.shape[0]} 255\n".encode()


def as_file(image: "Array") -> io.BytesIO:
    """The picture as a file that any program reads."""
    return io.BytesIO(header(image) + image.tobytes())
