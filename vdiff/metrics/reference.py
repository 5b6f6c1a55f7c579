"""What is known of the reference pictures, computed once and kept beside
the evaluations of a run.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vdiff import __version__
from vdiff.data.dataset import Images
from vdiff.data.loader import take
from vdiff.disk import array_file, whole_folder
from vdiff.disk.array_file import Arrays
from vdiff.errors import VdiffError

Shape = tuple[int | None, ...]
"""Of an array; None may be any size."""


class StorePictures:
    """The pictures of a data set, uint8 [N, C, H, W], decoded as they are needed."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self.shape = (images.num_images, *images.shape)

    def __len__(self) -> int:
        return self._images.num_images

    def __getitem__(self, part: slice) -> Tensor:
        return torch.from_numpy(take(self._images, np.arange(*part.indices(len(self))))[0])


def remembered(
    folder: Path | None,
    about: Mapping[str, object],
    compute: Callable[[], Arrays],
    shapes: Mapping[str, Shape],
) -> Arrays:
    """The arrays that `compute` makes, read from `folder` where it has them from before.

    about: everything that they depend on; another version of vdiff computes them anew, as for a
    damaged file.
    shapes: of the arrays; what is kept in others is not believed.
    """
    if folder is None:
        return compute()
    key = json.dumps({**about, "version": __version__}, sort_keys=True)
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    found = array_file.read(path)
    if found is not None and str(found.pop("about", "")) == key and _fits(found, shapes):
        return found
    arrays = compute()
    # a folder that cannot be written to costs time, not the number
    with contextlib.suppress(VdiffError):
        whole_folder.write_bytes(
            path, array_file.packed({"about": np.array(key), **arrays}), array_file.is_ours
        )
    return arrays


def _fits(found: Arrays, shapes: Mapping[str, Shape]) -> bool:
    return found.keys() == shapes.keys() and all(
        _is_sound(found[name], shape) for name, shape in shapes.items()
    )


def _is_sound(array: np.ndarray[Any, Any], shape: Shape) -> bool:
    is_right = len(shape) == array.ndim and all(
        wanted in (None, size) for wanted, size in zip(shape, array.shape, strict=True)
    )
    return is_right and array.dtype.kind in "fiu" and bool(np.isfinite(array).all())
