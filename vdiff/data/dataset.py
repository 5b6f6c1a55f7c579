"""What training reads pictures from, and what a recipe says of it. Read this to train on something
else than a store.

A new kind is one file with a section and a class, and a line in the table of `data/__init__.py` or
an entry point `vdiff.datasets` of another package. `vdiff prepare` makes stores of the kind `lmdb`
only; what it reads is another table, `SOURCES`, with its contract in `data/sources/source.py`.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from vdiff.data.section import DatasetSection as DatasetSection

Indices = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


class Images(Protocol):
    """Pictures of one shape.

    shape: (C, H, W).   num_classes: 0 without labels.
    fingerprint: SHA-256 of the content, hexadecimal.
    num_workers: how many processes should decode ahead of training.
    """

    num_images: int
    shape: tuple[int, int, int]
    num_classes: int
    num_workers: int

    @property
    def fingerprint(self) -> str: ...

    def __getitem__(self, index: int, /) -> tuple[Pixels, int]:
        """uint8 [C, H, W] and its class, -1 without labels."""
        ...


@runtime_checkable
class NamesClasses(Protocol):
    """Pictures whose classes have names. A dataset may offer it beside `Images`."""

    @property
    def class_names(self) -> Sequence[str]:
        """One per class, in order."""
        ...


@runtime_checkable
class TakesMany(Protocol):
    """Pictures that can be taken many at once, faster than one by one.

    A dataset may offer it beside `Images`.
    """

    def take(self, indices: Indices, /) -> tuple[Pixels, Indices]:
        """uint8 [B, C, H, W] and their classes [B]."""
        ...
