"""Pictures from an array: `images.npy`, uint8 [N, C, H, W], and if there is one `labels.npy`,
int64 [N].
"""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from vdiff.config import free_to_change, shapes_weights
from vdiff.data.dataset import DatasetSection, Images, Pixels
from vdiff.errors import DataError


class NpySection(DatasetSection):
    """A folder of arrays."""

    kind: Literal["npy"] = shapes_weights("npy")
    """Which data."""
    path: Path = free_to_change()
    """The folder."""
    size: int = shapes_weights(ge=1)
    """Height and width of the pictures in pixels."""
    channels: Literal[1, 3, 4] = shapes_weights(3)
    """1 grey, 3 colour, 4 colour with transparency."""
    flip: bool = shapes_weights(False)
    """Show half of the pictures mirrored."""

    def open(self) -> Images:
        return Npy(self.path, (self.channels, self.size, self.size))


class Npy:
    """See `vdiff.data.dataset.Images`."""

    num_workers = 0

    def __init__(self, folder: Path, shape: tuple[int, int, int]) -> None:
        try:
            self._images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as err:
            raise DataError(
                f"there are no pictures in `{folder}`", "write an images.npy there", folder
            ) from err
        if self._images.shape[1:] != shape or self._images.dtype != np.uint8:
            found = f"{self._images.dtype} {self._images.shape}"
            raise DataError(
                f"images.npy is {found}, not uint8 [N, {', '.join(map(str, shape))}]",
                "write it anew",
                folder,
            )
        labels = folder / "labels.npy"
        self._labels = np.load(labels, allow_pickle=False) if labels.is_file() else None
        self.num_images, self.shape = len(self._images), shape
        self.num_classes = 0 if self._labels is None else int(self._labels.max()) + 1

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self._images.tobytes())
        if self._labels is not None:
            digest.update(self._labels.tobytes())
        return digest.hexdigest()

    def __getitem__(self, index: int) -> tuple[Pixels, int]:
        return np.array(self._images[index]), -1 if self._labels is None else int(
            self._labels[index]
        )
