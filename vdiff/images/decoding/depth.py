"""Grey pictures of more than 8 bits: which of their values are black and white,
the same for all files of a source.

16 bits: 0 is black and 65,535 white, or 2^depth - 1 where the user says that fewer bits are used.
What a file states itself holds for it: 12 bits per value in TIFF, the largest value in PGM, the
precision in JPEG 2000. Whole numbers of 32 bits, signed ones and floating-point numbers have no
such range: they are taken if a TIFF states one (SMinSampleValue and SMaxSampleValue), and refused
otherwise. No picture is stretched to its own darkest and brightest value: they would no longer be
comparable.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from vdiff.images.decoding.damage import RefusedError

FULL = 16
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
_MAX_BYTES = 410 * 10**6
"""Memory for the file, its deep pixels and their 8 bits: what is allowed a process is 500 MB."""
_BAND = 256
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SMIN, _SMAX = 258, 262, 340, 341
_WHITE_IS_ZERO = 0


@dataclass(frozen=True)
class Range:
    """The values that become 0 and 255; black may be the larger one.

    is_assumed: whether the file does not say so.
    """

    black: float
    white: float
    is_assumed: bool = False

    def with_depth(self, depth: int) -> "Range":
        """The same for a picture that uses the lowest `depth` of its 16 bits."""
        return Range(self.black and 2**depth - 1, self.white and 2**depth - 1, self.is_assumed)


def range_of(file: ImageFile.ImageFile, num_bytes: int, depth: int = FULL) -> Range | None:
    """The range of a picture that is opened and not yet decoded; None if it has 8 bits.

    num_bytes: the size of the file.   depth: bits that are used where a file of 16 bits does not
    state it, 9 to 16. RefusedError if it has no range, or too many pixels.
    """
    if file.mode not in (*_SIXTEEN_BITS, "I", "F"):
        return None
    found = _stated_by_tiff(file) if file.format == "TIFF" else _stated_otherwise(file)
    if found is None:
        what = (
            "floating-point numbers" if file.mode == "F" else "numbers of 32 bits, or signed ones,"
        )
        raise RefusedError(
            f"its pixels are {what} without a stated range: save it with 8 or 16 bits"
        )
    bytes_per_pixel = 2 if file.mode in _SIXTEEN_BITS else 4
    if num_bytes + (bytes_per_pixel + 1) * file.width * file.height > _MAX_BYTES:
        raise RefusedError(
            f"{file.width} x {file.height} pixels of {8 * bytes_per_pixel} bits are too many"
        )
    return found.with_depth(depth) if found.is_assumed else found


def in_8_bits(picture: Image.Image, found: Range) -> tuple[Image.Image, int]:
    """The picture as `L`, or as `LA` if one of its values is transparent;
    and the largest value in it.

    In bands: the deep pixels of the largest pictures fit in memory once.
    """
    ends = sorted((found.black, found.white))
    is_in_table = picture.mode != "F" and ends[0] >= 0 and ends[1] <= 65535
    table = _stretched(np.arange(65536), found) if is_in_table else None
    transparent = picture.info.get("transparency")
    grey = Image.new("L", picture.size)
    alpha = Image.new("L", picture.size) if isinstance(transparent, int) else None
    largest = 0
    for top in range(0, picture.height, _BAND):
        box = (0, top, picture.width, min(top + _BAND, picture.height))
        levels = np.asarray(picture.crop(box))
        if picture.mode != "F":
            largest = max(largest, int(levels.max()))
        shown = _stretched(levels, found) if table is None else table[levels.clip(0, 65535)]
        grey.paste(Image.fromarray(shown), box)
        if alpha is not None:
            alpha.paste(
                Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8)), box
            )
    return (grey if alpha is None else Image.merge("LA", (grey, alpha))), largest


def _stated_by_tiff(file: Any) -> Range | None:
    tags = file.tag_v2
    is_inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO  # which Pillow heeds for 8 bits only
    if file.mode in _SIXTEEN_BITS:
        is_assumed = tags.get(_BITS_PER_SAMPLE) != (12,)
        low, high = 0.0, 65535.0 if is_assumed else 4095.0
    else:
        is_assumed = False
        low, high = (_number(tags.get(tag)) for tag in (_SMIN, _SMAX))
        # Pillow keeps numbers of 32 bits as signed ones: larger ones are mangled.
        is_usable = math.isfinite(low) and math.isfinite(high) and low < high
        if not is_usable or (file.mode == "I" and high >= 2**31):
            return None
    return Range(high, low, is_assumed) if is_inverted else Range(low, high, is_assumed)


def _stated_otherwise(file: Any) -> Range | None:
    """PNG states nothing but 16 bits; of JPEG 2000 and of PGM with another maximum Pillow
    fills the 16 bits itself.
    """
    if file.mode == "F":
        return None
    is_filled = file.format == "JPEG2000" or (
        file.format == "PPM" and file.tile[0].codec_name != "raw"
    )
    return Range(0, 65535, is_assumed=not is_filled)


def _number(value: Any) -> float:
    """A tag's only value; not a number if it has none."""
    try:
        return float(value[0] if isinstance(value, tuple) else value)
    except (TypeError, ValueError, IndexError, OverflowError, ZeroDivisionError):
        return math.nan


def _stretched(levels: npt.NDArray[Any], found: Range) -> npt.NDArray[np.uint8]:
    share = (levels.astype(np.float64) - found.black) / (found.white - found.black)
    # What is not a number counts as black, like what lies below.
    return (
        np.nan_to_num(np.floor(share * 255 + 0.5), nan=0, posinf=255, neginf=0)
        .clip(0, 255)
        .astype(np.uint8)
    )
