"""The dataset kind `lmdb`: one size of an ImageStore, decoded."""

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from vdiff.data.lmdb_section import LmdbImagesSection as LmdbImagesSection
from vdiff.data.store import ImageStore
from vdiff.errors import DataError
from vdiff.images import images
from vdiff.system.cores import num_cores

# Pictures that fit into this are decoded once, not in each epoch.
_CACHE_BYTES = 256 * 2**20
_MAX_WORKERS = 4


class LmdbImages:
    """The pictures of one size, uint8 [C, H, W]. Up to 256 MiB of them stay in memory once decoded.

    num_workers: how many processes should decode ahead.
    """

    def __init__(
        self, store: ImageStore, size: int, channels: int, num_workers: int | None = None
    ) -> None:
        if size not in store.sizes:
            known_sizes = ", ".join(map(str, store.sizes))
            fix = f"set data.size to one of these, or type: vdiff prepare --size {size}"
            raise DataError(
                f"the image store holds no pictures of size {size} (there are: {known_sizes})",
                fix,
                store.path,
            )
        self.num_images = store.num_images
        self.shape = (channels, size, size)
        self.num_classes = len(store.class_names)
        self.class_names = store.class_names
        self._store = store
        self._labels = store.labels
        self._is_cached = self.num_images * int(np.prod(self.shape)) <= _CACHE_BYTES
        self._cache: tuple[images.Pixels, npt.NDArray[np.bool_]] | None = None
        if num_workers is not None:
            self.num_workers = num_workers
        elif self._is_cached:
            # Each process would fill a cache of its own.
            self.num_workers = 0
        else:
            self.num_workers = min(_MAX_WORKERS, num_cores())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the pictures of this size and of their labels."""
        return self._store.fingerprint_of(self.shape[1])

    def __getitem__(self, index: int) -> tuple[images.Pixels, int]:
        """Picture `index` and its class, -1 if there are none."""
        pixels, labels = self.take(np.array([index]))
        return pixels[0], int(labels[0])

    def take(self, indices: npt.NDArray[np.int64]) -> tuple[images.Pixels, npt.NDArray[np.int64]]:
        """Several pictures at once, uint8 [B, C, H, W], and their classes [B],
        -1 if there are none.
        """
        if self._labels is not None:
            labels = self._labels[indices]
        else:
            labels = np.full(len(indices), -1)
        if not self._is_cached:
            return np.stack([self._decode(index) for index in indices.tolist()]), labels
        if self._cache is None:
            self._cache = self._empty_cache()
        pixels, is_decoded = self._cache
        # Unique: a batch that is larger than the data set holds pictures twice.
        for index in np.unique(indices[~is_decoded[indices]]).tolist():
            pixels[index] = self._decode(index)
            is_decoded[index] = True
        return pixels[indices], labels

    def __getstate__(self) -> dict[str, Any]:
        # A worker process gets no copy of up to 256 MiB.
        return {**self.__dict__, "_cache": None}

    def _empty_cache(self) -> tuple[images.Pixels, npt.NDArray[np.bool_]]:
        return np.zeros((self.num_images, *self.shape), np.uint8), np.zeros(self.num_images, bool)

    def _decode(self, index: int) -> images.Pixels:
        name = f"record `{self.shape[1]}-{index:05d}`"
        fix = "make the store again: vdiff prepare --force"
        try:
            pixels = images.decode(self._store.read(index, self.shape[1]), self.shape[0])
        except ValueError as err:
            raise DataError(f"{name} cannot be decoded: {err}", fix, self._store.path) from err
        if pixels.shape != self.shape:
            stored = f"{pixels.shape[1]} x {pixels.shape[2]}"
            raise DataError(
                f"{name} is {stored}, not {self.shape[1]} x {self.shape[2]}", fix, self._store.path
            )
        return pixels
