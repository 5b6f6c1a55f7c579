"""The size that a WebP file speaks of, known before Pillow opens it:
it takes 8 bytes for each pixel at once.
"""

from vdiff.images.decoding.damage import RefusedError

_LARGE_PIXELS = 2**24
_MAX_PIXELS_PER_BYTE = 1000
"""A photograph has one to fifty pixels per byte;
a large picture with more than this is nothing but one colour.
"""


def size_of(data: bytes) -> tuple[int, int] | None:
    """Width and height in pixels; None if it is no WebP or too short to tell."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        packed = int.from_bytes(data[21:25], "little")
        return 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(
            data[28:30], "little"
        ) & 0x3FFF
    return None


def refuse_bomb(data: bytes) -> None:
    """RefusedError for a few bytes that ask for the memory of a large picture."""
    width, height = size_of(data) or (0, 0)
    if width * height > _LARGE_PIXELS and width * height > _MAX_PIXELS_PER_BYTE * len(data):
        raise RefusedError(f"{width} x {height} pixels in {len(data):,} bytes are too many")
