"""Why a file cannot be decoded: what it seems to be, by its first bytes,
and what is wrong with it.
"""

import io
import re
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

UNKNOWN = "not a picture of a known format"
_PNG = b"\x89PNG\r\n\x1a\n"
_MISFITS = 2
"""So many of the eight bytes that PNG begins with may be wrong:
they were chosen to show how a file was mangled.
"""


class _Kind(NamedTuple):
    """A format: its name for people, what Pillow calls it, what its files begin with."""

    name: str
    pillow: str
    beginning: re.Pattern[bytes]


def _kind(name: str, pillow: str, beginning: bytes) -> _Kind:
    return _Kind(name, pillow, re.compile(beginning, re.DOTALL))


_KINDS = (
    _kind("PNG", "PNG", rb"\x89PNG|.PNG\r\n"),
    _kind("JPEG", "JPEG", rb"\xff\xd8"),
    _kind("WebP", "WEBP", rb"RIFF....WEBP"),
    _kind("GIF", "GIF", rb"GIF8[79]a"),
    _kind("TIFF", "TIFF", rb"II\*\0|MM\0\*|II\x2b\0|MM\0\x2b"),
    _kind("BMP", "BMP", rb"BM.{4}\0\0\0\0"),
    _kind("PPM", "PPM", rb"P[1-6Ff][ \t\r\n]"),
    _kind("JPEG 2000", "JPEG2000", rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
    _kind("AVIF", "AVIF", rb"....ftyp(avif|avis|.{8,24}(avif|avis))"),
)
# Only formats whose decoders do nothing but decode: EPS, for one, would start Ghostscript.
FORMATS = tuple(kind.pillow for kind in _KINDS)
_RARE = re.compile(r"unsupported|unknown|not yet supported|not configured", re.IGNORECASE)
# libjpeg, libtiff and Pillow have no words for these; what is left out would only puzzle.
_NUMBERS = re.compile(
    r"decoder error -?\d+( when reading image file)?|broken data stream when reading image file"
)
_HEADER = "not identified by this driver"


class RefusedError(ValueError):
    """A whole picture that is not taken, for this reason."""


class DamagedError(ValueError):
    """A decoder gave up. With too little memory some do so too, and say the same."""


def kind_of(beginning: bytes) -> str:
    """The name of the format that a file with this beginning has or was meant to have;
    empty if it has none.
    """
    found = _find(beginning)
    return found.name if found else ""


def explained(data: bytes, err: Exception) -> ValueError:
    """What Pillow raised for a file as a reason in one line:
    DamagedError where a decoder gave up.
    """
    if isinstance(err, RefusedError):
        return err
    if not data:
        return ValueError("the file is empty")
    kind = _find(data)
    if isinstance(err, UnidentifiedImageError):
        if kind is None:
            return ValueError(UNKNOWN)
        err = _first_error(data, kind)
    reason = " ".join(str(err).split()) or "its data make no sense"
    if isinstance(err, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return ValueError(reason)
    name = kind.name if kind else "picture"
    if _RARE.search(reason):
        return DamagedError(f"a {name} of a kind that cannot be read: {reason}")
    reason = _NUMBERS.sub("its data cannot be decoded", reason).replace(
        _HEADER, "its header is wrong"
    )
    return DamagedError(f"a damaged {name}: {reason}")


def _find(beginning: bytes) -> _Kind | None:
    for kind in _KINDS:
        if kind.beginning.match(beginning):
            return kind
    num_misfits = sum(found != wanted for found, wanted in zip(beginning, _PNG, strict=False))
    return _KINDS[0] if len(beginning) > len(_PNG) and num_misfits <= _MISFITS else None


def _first_error(data: bytes, kind: _Kind) -> Exception:
    """What Pillow's reader of this format objects to, which `Image.open` keeps to itself."""
    factory, accepts = Image.OPEN[kind.pillow]
    if accepts and accepts(data[:16]) is not True:
        return SyntaxError("its first bytes are wrong")
    try:
        factory(io.BytesIO(data), "")
    except MemoryError:
        raise
    except Exception as err:
        is_bomb = isinstance(err, Image.DecompressionBombError | Image.DecompressionBombWarning)
        reason = str(err)
    else:
        return SyntaxError("its header is wrong")
    # a new one: that which was raised holds frames, one of which would hold it, and the file's
    # bytes stay in memory
    return Image.DecompressionBombError(reason) if is_bomb else SyntaxError(reason)
