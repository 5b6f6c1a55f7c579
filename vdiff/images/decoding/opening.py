"""A picture file is opened, decoded, turned upright and brought to 8 bits of sRGB."""

import io
import warnings
from typing import NamedTuple

from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from vdiff.images.decoding import colour, depth, webp
from vdiff.images.decoding.damage import FORMATS, UNKNOWN, RefusedError, explained, kind_of
from vdiff.images.decoding.remarks import listening
from vdiff.images.decoding.side_data import without_side_data

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
MAX_PIXELS = 89_478_485
"""Pillow's own limit of caution, 358 MB decoded.
Here it is an error, where Pillow only warns up to twice as many.
"""

_BAND = 256
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How a picture is stored, by its EXIF orientation, is undone by this."""
_LEVELS = {"L;2": (3, 85), "L;4": (15, 17)}
"""The largest grey of a PNG of 2 and 4 bits, and what Pillow multiplies all of them by."""
_NO_COLOURS_OF_ITS_OWN = ("LAB", "CMYK", "YCbCr", "HSV")

# What Pillow says of records, nobody needs to read; of files, see `remarks`. Too many pixels are an
# error here.
warnings.filterwarnings("ignore", module=r"PIL\.")


class Opened(NamedTuple):
    """The first frame of a file, upright, in sRGB, with 8 bits per channel.

    picture: L, RGB or RGBA, as was asked for; one that is grey may stay L.
    notes: what was not as it should be.
    largest: value of a grey picture of 16 bits that does not state how many of them it uses; None
    of others.
    """

    picture: Image.Image
    notes: list[str]
    largest: int | None = None


def open_picture(data: bytes, channels: int, bits: int = depth.FULL) -> Opened:
    """The picture in a file's bytes; ValueError with the reason if it cannot be had.

    Transparent parts turn white, unless the fourth channel is wanted.
    bits: used by grey pictures of 16 bits that do not state it, see `depth`.
    DamagedError if a decoder gave up.   MemoryError if memory ran out.
    """
    with listening() as said:
        opened = _opened(data, MODES[channels], bits)
    warned = [f"Pillow warns: {' '.join(warning.split())}" for warning in said]
    return opened._replace(notes=list(dict.fromkeys(opened.notes + warned)))


def open_record(data: bytes, channels: int) -> Image.Image:
    """The picture in a record of an image store, L, RGB or RGBA; errors as of `open_picture`.

    A colour profile is left out: what vdiff stores has none, and what others and earlier versions
    stored shall look as it always did.
    """
    return _opened(data, MODES[channels], has_colours=False).picture.convert(MODES[channels])


def count_pixels(data: bytes) -> int:
    """How many pixels the header of a picture speaks of; 0 where it cannot be read."""
    if size := webp.size_of(data):
        return size[0] * size[1]
    try:
        with listening(), Image.open(io.BytesIO(data), formats=FORMATS) as file:
            return file.width * file.height
    except MemoryError:
        raise
    except Exception:  # `open_picture` tells why
        return 0


def check_beginning(data: bytes) -> None:
    """ValueError for the first kilobytes of a file that is refused whatever follows:
    no picture, or too many pixels.
    """
    if size := webp.size_of(data):
        _check_size(*size)
        return
    try:
        with listening(), Image.open(io.BytesIO(data), formats=FORMATS) as file:
            _check_size(*file.size)
    except Image.DecompressionBombError as err:
        raise ValueError(str(err)) from err
    except UnidentifiedImageError as err:
        if data and not kind_of(data):
            raise ValueError(UNKNOWN) from err
    except (MemoryError, RefusedError):
        raise
    except Exception:  # what follows may be needed
        return


def _opened(data: bytes, mode: str, bits: int = depth.FULL, has_colours: bool = True) -> Opened:
    stored = _stored(data, bits)
    picture, notes = stored.picture, stored.notes
    try:
        if stored.profile and has_colours:
            try:
                picture = colour.in_srgb(picture, stored.profile)
            except colour.UnusableProfileError as err:
                notes = [*notes, f"{err}, so it was taken as sRGB"]
        return Opened(_in_mode(picture, mode), notes, stored.largest)
    except MemoryError:
        raise
    except Exception as err:  # such as a palette that is not there
        raise explained(data, err) from err


class _Stored(NamedTuple):
    """As `Opened`, in the colours and the mode that the file has."""

    picture: Image.Image
    notes: list[str]
    profile: bytes | None
    largest: int | None


def _stored(data: bytes, bits: int) -> _Stored:
    """The picture with whatever is beside it; without that,
    if it keeps the picture from being read.
    """
    try:
        webp.refuse_bomb(data)
        return _loaded(data, bits)
    except (MemoryError, RefusedError):
        raise
    except Exception as err:  # Pillow's decoders let nearly anything escape when a file is hostile.
        # No name may hold what is raised here: with its own frame it would be a circle, and the
        # pixels stay in memory.
        rest = without_side_data(data)
        if rest is None:
            raise explained(data, err) from err
        try:
            stored = _loaded(rest, bits)
        except MemoryError:
            raise
        except Exception:
            raise explained(data, err) from err
    return stored._replace(
        notes=["what it holds beside its pixels is damaged and was left out", *stored.notes]
    )


def _loaded(data: bytes, bits: int) -> _Stored:
    notes: list[str] = []
    largest = None
    with Image.open(io.BytesIO(data), formats=FORMATS) as file:
        _check_size(*file.size)
        values = depth.range_of(file, len(data), bits)
        key = _colour_key(file)
        file.load()
        if key is not None:
            file.info["transparency"] = key
        profile = file.info.get("icc_profile")
        picture = _upright(file, notes)
    if values:
        picture, largest = depth.in_8_bits(picture, values)
        largest = largest if values.is_assumed else None
    return _Stored(picture, notes, profile if isinstance(profile, bytes) else None, largest)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise RefusedError(f"{width} x {height} pixels are too many")


def _colour_key(file: ImageFile.ImageFile) -> object:
    """The grey or the colour that is transparent, among the values that Pillow
    gives the pixels of a PNG.
    """
    key = file.info.get("transparency")
    if file.format != "PNG" or file.mode not in ("L", "RGB") or not file.tile:
        return key
    stored = str(file.tile[0].args)
    if isinstance(key, tuple):
        shift = 8 if stored == "RGB;16B" else 0
        return tuple(value >> shift & 255 for value in key)
    if isinstance(key, int):
        most, factor = _LEVELS.get(stored, (255, 1))
        return (key & most) * factor
    return key


def _upright(file: Image.Image, notes: list[str]) -> Image.Image:
    try:
        orientation = file.getexif().get(ExifTags.Base.Orientation)
    except MemoryError:
        raise
    except Exception:  # it need not even be TIFF inside
        notes.append("the EXIF data are damaged, so it was not turned")
        return file
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return file if turn is None else file.transpose(turn)


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    """As L, RGB or RGBA; what is grey and nowhere transparent stays L,
    which is the same in less memory.
    """
    if picture.mode == mode and "transparency" not in picture.info:
        return picture
    if picture.mode in _NO_COLOURS_OF_ITS_OWN:
        picture = picture.convert("RGB")
    is_transparent = picture.has_transparency_data
    if picture.mode in ("1", "L") and not is_transparent:
        return picture.convert("L")
    if mode == "RGBA" or not is_transparent:
        return picture.convert(mode)
    return _over_white(picture, mode)


def _over_white(picture: Image.Image, mode: str) -> Image.Image:
    result = Image.new(mode, picture.size)
    # in bands: the largest pictures fit in memory twice, not four times
    for top in range(0, picture.height, _BAND):
        box = (0, top, picture.width, min(top + _BAND, picture.height))
        band = picture.crop(box).convert("RGBA")
        white = Image.new("RGBA", band.size, (255, 255, 255, 255))
        result.paste(Image.alpha_composite(white, band).convert(mode), box)
    return result
