"""Real pictures to prove an import with: a few from an image store,
or from a folder as `vdiff prepare` would take it.
"""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vdiff.data.seal import is_store
from vdiff.data.sources import open_source
from vdiff.data.store import ImageStore
from vdiff.errors import DataError
from vdiff.images.images import decode, fit_square, from_picture, open_picture


@dataclass(frozen=True)
class Pictures:
    """pixels: uint8 [N, C, H, W].

    label: int64 [N], None where there are no classes.   by: whose, for messages.
    """

    pixels: Tensor
    label: Tensor | None
    by: str


def some(path: Path, shape: tuple[int, int, int], count: int = 64) -> Pictures:
    """Up to `count` pictures, spread over all there are.

    shape: (C, H, W).   Errors: DataError.
    """
    channels, height, width = shape
    if height != width:
        raise DataError(f"pictures of {width} x {height} pixels are no squares", "leave out --data")
    if is_store(path):
        return _of_store(ImageStore(path), channels, width, count)
    return _of_source(path, channels, width, count)


def only_size(path: Path) -> int | None:
    """The size of all pictures in an image store; None for one of several sizes, or for a folder.

    Errors: DataError.
    """
    if not is_store(path):
        return None
    sizes = ImageStore(path).sizes
    return sizes[0] if len(sizes) == 1 else None


def _of_store(store: ImageStore, channels: int, size: int, count: int) -> Pictures:
    if size not in store.sizes:
        sizes = ", ".join(map(str, store.sizes))
        problem = f"`{store.path}` has pictures of {sizes} pixels, the model draws {size}"
        raise DataError(problem, f"`vdiff prepare --size {size}`, or give a folder of pictures")
    places = _spread(store.num_images, count)
    try:
        pixels = [decode(store.read(place, size), channels) for place in places]
    except ValueError as err:
        raise DataError(f"`{store.path}`: {err}", "give another store", "--data") from err
    label = None if store.labels is None else torch.from_numpy(store.labels[places])
    return Pictures(torch.from_numpy(np.stack(pixels)), label, str(store.path))


def _of_source(path: Path, channels: int, size: int, count: int) -> Pictures:
    source = open_source(path, "auto")
    wanted = set(_spread(len(source.files), count))
    found, labels = [], []
    classes = source.classes
    for place, picture in enumerate(islice(source.pictures(0), max(wanted, default=-1) + 1)):
        if place not in wanted:
            continue
        try:
            image = fit_square(open_picture(picture.read(), channels), size, "lanczos")
        except ValueError:
            continue  # `vdiff prepare` tells which pictures cannot be read, and why
        found.append(from_picture(image))
        if classes.names:
            labels.append(classes.labels[place])
    if not found:
        raise DataError(f"there are no pictures in `{path}`", "give a folder of pictures", "--data")
    label = torch.tensor(labels, dtype=torch.int64) if classes.names else None
    return Pictures(torch.from_numpy(np.stack(found)), label, str(path))


def _spread(total: int, count: int) -> list[int]:
    """`count` places of `total`, evenly; all of fewer."""
    if total <= count:
        return list(range(total))
    return [place * total // count for place in range(count)]
