"""The picture that shows what is in a store: some of its pictures, side by side."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from vdiff.data.patience import has_memory
from vdiff.data.publishing import PREVIEW
from vdiff.disk.whole_folder import refusals
from vdiff.images import images

_PIXELS = 2048
_PADDING = 2
_BYTES = 2**26
"""What decoding a record of the largest size takes."""


def write_preview(
    folder: Path, size: int, channels: int, count: int, read: Callable[[int], bytes]
) -> None:
    """Up to 64 pictures from all over a store of `count`, on at most 2048 x 2048 pixels.

    size: of the pictures.   read: the bytes of one of them.
    Errors: MachineError if the disk refuses.
    """
    most_columns = min(8, max(1, _PIXELS // size))
    chosen = np.linspace(0, count - 1, min(count, most_columns**2)).astype(int).tolist()
    pictures = np.stack([_decoded(read(index), channels) for index in chosen])
    # A preview of an earlier start. Versions before 0.2 did not sign theirs, so they would not be
    # replaced.
    with refusals(folder):
        (folder / PREVIEW).unlink(missing_ok=True)
    images.write_pixels(folder / PREVIEW, _side_by_side(pictures, max(1, 64 // size)))


def _decoded(record: bytes, channels: int) -> images.Pixels:
    """A picture that was just stored.

    Errors: MemoryError, also where a decoder calls it damaged for lack of it.
    """
    try:
        return images.decode(record, channels)
    except ValueError as err:
        # Without memory, some decoders say that the file is damaged.
        if not has_memory(_BYTES):
            raise MemoryError from err
        raise


def _side_by_side(pictures: images.Pixels, scale: int) -> images.Pixels:
    """As `images.grid` has it, without torch, which takes seconds and half a gigabyte to import."""
    pictures = pictures.repeat(scale, axis=-1).repeat(scale, axis=-2)
    count, channels, height, width = pictures.shape
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    row_height = height + _PADDING
    column_width = width + _PADDING
    page_shape = (channels, rows * row_height + _PADDING, columns * column_width + _PADDING)
    page = np.full(page_shape, 255, np.uint8)
    for place, picture in enumerate(pictures):
        top = place // columns * row_height + _PADDING
        left = place % columns * column_width + _PADDING
        page[:, top : top + height, left : left + width] = picture
    return page
