"""From the bytes of a picture file to an upright picture of 8 bits in sRGB,
or the reason why there is none.
"""

from vdiff.images.decoding.damage import DamagedError, kind_of
from vdiff.images.decoding.opening import (
    MAX_PIXELS,
    MODES,
    Opened,
    check_beginning,
    count_pixels,
    open_picture,
    open_record,
)

__all__ = [
    "MAX_PIXELS",
    "MODES",
    "DamagedError",
    "Opened",
    "check_beginning",
    "count_pixels",
    "kind_of",
    "open_picture",
    "open_record",
]
