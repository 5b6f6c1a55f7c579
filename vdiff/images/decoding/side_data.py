"""A picture file without what it holds beside its pixels,
for when that is damaged and the pixels are not.
"""

from collections.abc import Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_JPEG = b"\xff\xd8"
# JFIF and Adobe's marker tell how colours are stored; the other application segments and comments
# are side data.
_JPEG_SIDE = {0xFE, *range(0xE1, 0xEE), 0xEF}
_START_OF_SCAN = 0xDA


def without_side_data(data: bytes) -> bytes | None:
    """The same picture with nothing but its pixels;
    None if there is nothing to leave out, or no such way.
    """
    if data.startswith(_PNG):
        kept = b"".join([_PNG, *_png_chunks(data)])
    elif data.startswith(_JPEG):
        kept = b"".join([_JPEG, *_jpeg_segments(data)])
    else:
        return None
    return kept if len(kept) < len(data) else None


def _png_chunks(data: bytes) -> Iterator[bytes]:
    place = len(_PNG)
    while place + 8 <= len(data):
        kind = data[place + 4 : place + 8]
        end = place + 12 + int.from_bytes(data[place : place + 4])
        if kind in _PNG_NEEDED:
            yield data[place:end]
        place = end


def _jpeg_segments(data: bytes) -> Iterator[bytes]:
    place = len(_JPEG)
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != _START_OF_SCAN:
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4])
        if data[place + 1] not in _JPEG_SIDE:
            yield data[place:end]
        place = end
    yield data[place:]
