"""Image stores, opened to look into them."""

import operator
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vdiff.api.images import ImageBatch, batch_from_uint8
from vdiff.api.paths import path_of, reading
from vdiff.data.lmdb_images import LmdbImages
from vdiff.data.store import ImageStore
from vdiff.errors import UsageError
from vdiff.system import plural


class Store:
    """The images of one size in an image store; `open_store` opens it.

    path: the folder.   size: height and width in pixels.   sizes: all that the store holds.
    channels: 1 grey, 3 colour, 4 colour with transparency.
    num_classes: 0 without classes.   class_names: one per class; empty where they have no names.
    """

    path: Path
    size: int
    sizes: tuple[int, ...]
    channels: int
    num_classes: int
    class_names: list[str]

    def __init__(self, store: ImageStore, size: int, channels: int) -> None:
        self._images = LmdbImages(store, size, channels)
        self.path = store.path
        self.size = size
        self.sizes = store.sizes
        self.channels = channels
        self.num_classes = self._images.num_classes
        self.class_names = store.class_names

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the images of this size and of their classes, 64 hexadecimal digits.

        A model that was trained on them has it in `model.card.data`. A store of diffusion_distiller
        is read through once for it.
        """
        return self._images.fingerprint

    def __len__(self) -> int:
        return self._images.num_images

    def __getitem__(self, index: int) -> tuple[Tensor, int | None]:
        """An image, uint8 [C, H, W] on the CPU, and its class, None in a store without classes.

        A negative index counts from the end.   Errors: IndexError; DataError for a damaged record.
        """
        place = range(len(self))[operator.index(index)]
        with reading(self.path):
            pixels, label = self._images[place]
        image = torch.from_numpy(pixels)
        if label < 0:
            return image, None
        return image, label

    def show(self, count: int = 16) -> ImageBatch:
        """The first images, which show themselves in a notebook.   Errors: UsageError, DataError.

        count: how many; all of a smaller store.
        """
        if count < 1:
            raise UsageError(f"{count} images cannot be shown", "ask for 1 or more")
        places = range(min(count, len(self)))
        with reading(self.path):
            pixels, labels = self._images.take(np.array(places))
        known: Tensor | None = None
        if self.num_classes:
            known = torch.from_numpy(np.asarray(labels))
        return batch_from_uint8(torch.from_numpy(pixels), places, known)

    def __repr__(self) -> str:
        told = f"{plural.count(len(self), 'image')} of {plural.count(self.size, 'pixel')}"
        if self.num_classes:
            told += f", {plural.count(self.num_classes, 'class')}"
        return f"Store({str(self.path)!r}, {told})"

    def _repr_png_(self) -> bytes:
        return self.show()._repr_png_()


def open_store(path: str | os.PathLike[str], size: int | None = None) -> Store:
    """An image store that `vdiff prepare` made, or one of diffusion_distiller.

    path: the folder.   size: height and width in pixels; None for the largest that the store holds.
    Errors: DataError for no store, a damaged one, or one without this size; MachineError.

    >>> store = open_store("store")
    >>> len(store), store.sizes, store.num_classes
    (12, (8, 16), 2)
    >>> image, label = store[0]
    >>> image.shape, image.dtype, label
    (torch.Size([3, 16, 16]), torch.uint8, 0)
    """
    place = path_of(path)
    with reading(place):
        found = ImageStore(place)
        # a store of others does not tell its channels: its pictures are colour, as theirs are read
        channels = 3
        if found.metadata is not None:
            channels = found.metadata.channels
        if size is None:
            size = max(found.sizes)
        return Store(found, size, channels)
