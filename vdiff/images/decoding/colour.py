"""Colour profiles: what a file's numbers look like, as numbers of sRGB.

Relative colorimetric with black point compensation, the usual choice for photographs: colours that
sRGB has stay what they are, white stays white, black becomes black, and the others become the
nearest that it has. Computed by LittleCMS in 8 bits, before the picture is resized. A picture
without a profile counts as sRGB and keeps its numbers, and so does one whose profile is sRGB in
effect. A profile that cannot be used is left out, and a note says so.
"""

import hashlib
import io
import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE_BYTES = 4 * 2**20
"""Printers' profiles have up to 3 MB."""
_MAX_DIFFERENCE = 3
"""What is sRGB in effect: profiles of sRGB differ by 1 of 255 from one another,
the nearest other one by 9.
"""
_BUILDING_BYTES = 2**25
_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_KEPT = 64


class UnusableProfileError(ValueError):
    """A profile is left out, for this reason."""


@dataclass(frozen=True)
class Conversion:
    """From the numbers of a profile to those of sRGB.

    mode: of the pictures that it is for: RGB, L or CMYK.
    transforms: by the mode that a picture has; none where nothing would change.
    greys: what each grey becomes, 256 values.
    """

    mode: str
    transforms: dict[str, ImageCms.ImageCmsTransform]
    greys: list[int]


def in_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    """A picture of 8 bits per channel in sRGB, with its transparency.

    UnusableProfileError if the profile is none for it.   MemoryError if memory runs out.
    """
    if picture.mode in ("LAB", "1"):
        return (
            picture  # Lab tells its colours itself; black and white look the same in every profile
        )
    conversion = _conversion_of(profile)
    if picture.mode == "CMYK" or conversion.mode == "CMYK":
        if picture.mode != conversion.mode:
            raise UnusableProfileError("the colour profile is for pictures of another kind")
        return conversion.transforms["CMYK"].apply(picture)
    if picture.mode in ("L", "LA"):
        return _with_greys(picture, conversion.greys)
    if conversion.mode == "L":
        raise UnusableProfileError("the colour profile is for grey pictures")
    if not conversion.transforms:
        return picture
    if picture.mode not in ("RGB", "RGBA") or "transparency" in picture.info:
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    return conversion.transforms[picture.mode].apply_in_place(picture)


def _with_greys(picture: Image.Image, greys: list[int]) -> Image.Image:
    if greys == list(range(256)):
        return picture
    if picture.has_transparency_data:
        grey, alpha = picture.convert("LA").split()
        return Image.merge("LA", (grey.point(greys), alpha))
    return picture.point(greys)


_conversions: "OrderedDict[bytes, Conversion | str]" = OrderedDict()
"""By the hash of a profile; where there is none, the reason."""
_lock = threading.Lock()


def _conversion_of(profile: bytes) -> Conversion:
    """What was made for the same profile before, or a new one; the last 64 are kept."""
    key = hashlib.sha256(profile).digest()
    with _lock:
        found = _conversions.get(key)
        if found is None:
            found = _made(profile)
            _conversions[key] = found
            if len(_conversions) > _KEPT:
                _conversions.popitem(last=False)
        else:
            _conversions.move_to_end(key)
    if isinstance(found, str):
        raise UnusableProfileError(found)
    return found


def _made(profile: bytes) -> Conversion | str:
    if len(profile) > MAX_PROFILE_BYTES:
        return f"the colour profile is larger than {MAX_PROFILE_BYTES:,} bytes"
    try:
        return _build(profile)
    except UnusableProfileError as err:
        return str(err)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        # MemoryError, if that is what LittleCMS lacked: it does not say
        np.empty(_BUILDING_BYTES, np.uint8)
        return "the colour profile is damaged"


def _build(profile: bytes) -> Conversion:
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    mode = _MODES.get(opened.profile.xcolor_space)
    if mode is None or opened.profile.device_class in ("link", "abst", "nmcl"):
        raise UnusableProfileError("the colour profile is not one for pictures")
    transform = _transform(opened, mode, "RGB")
    if mode == "CMYK":
        return Conversion(mode, {mode: transform}, [])
    ramp = Image.frombytes("L", (256, 1), bytes(range(256))).convert(mode)
    greys = list(transform.apply(ramp).convert("L").tobytes())
    if mode == "L":
        is_srgb = all(abs(grey - level) <= _MAX_DIFFERENCE for level, grey in enumerate(greys))
        return Conversion(mode, {}, list(range(256)) if is_srgb else greys)
    if _is_srgb(transform):
        return Conversion(mode, {}, list(range(256)))
    return Conversion(mode, {"RGB": transform, "RGBA": _transform(opened, "RGBA", "RGBA")}, greys)


def _transform(
    profile: ImageCms.ImageCmsProfile, mode: str, result: str
) -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        profile,
        ImageCms.createProfile("sRGB"),
        mode,
        result,
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )


def _is_srgb(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether it leaves all greys and 729 colours from all over the cube nearly as they are."""
    steps = np.linspace(0, 255, 9).round()
    cube = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
    greys = np.arange(256).reshape(1, -1, 1).repeat(3, 2)
    before = np.concatenate([cube, greys], 1).astype(np.uint8)
    after = np.asarray(transform.apply(Image.fromarray(before)))
    return int(np.abs(after.astype(int) - before).max()) <= _MAX_DIFFERENCE
