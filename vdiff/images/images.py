"""The four shapes of a picture: bytes of a file, uint8 [C, H, W], float in [-1, 1],
and a cell of a picture grid.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from vdiff import __version__
from vdiff.choices import Encoding as Encoding
from vdiff.choices import Resampling as Resampling
from vdiff.disk import whole_folder
from vdiff.disk.ours import is_picture
from vdiff.errors import DivergedError
from vdiff.images import decoding
from vdiff.images.decoding import MAX_PIXELS as MAX_PIXELS
from vdiff.images.decoding import MODES as MODES
from vdiff.images.decoding import check_beginning as check_beginning
from vdiff.images.decoding import count_pixels as count_pixels

if TYPE_CHECKING:
    from torch import Tensor

Pixels = npt.NDArray[np.uint8]
Picture = Image.Image


def decode(data: bytes, channels: int) -> Pixels:
    """The picture in a record of a store, uint8 [channels, H, W];
    ValueError with the reason if that cannot be.
    """
    return from_picture(decoding.open_record(data, channels))


def encode(image: Pixels, encoding: Encoding, quality: int = 95) -> bytes:
    """The bytes of a file that holds `image`, uint8 [C, H, W].

    PNG and WebP are lossless; `quality` is JPEG's.
    """
    return encode_picture(to_picture(image), encoding, quality)


def encode_picture(picture: Picture, encoding: Encoding, quality: int = 95) -> bytes:
    """As `encode`, from a Pillow picture of 1, 3 or 4 channels of 8 bits.

    Nothing but its pixels is written.
    """
    # Pillow hands on profiles, comments and more from picture to picture, and writes what it finds.
    pixels, file = Image.new(picture.mode, picture.size), io.BytesIO()
    pixels.paste(picture)
    if encoding == "png":
        pixels.save(file, "PNG")
    elif encoding == "webp":
        pixels.save(file, "WEBP", lossless=True, exact=True)
    elif picture.mode == "RGBA":
        raise ValueError("JPEG has no transparency: 4 channels need png or webp")
    else:
        pixels.save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()


def open_picture(data: bytes, channels: int) -> Picture:
    """The first frame of a file, upright, in sRGB, of 1, 3 or 4 channels of 8 bits;
    ValueError if it cannot be had.

    Transparent parts turn white, unless the fourth channel is wanted.
    """
    return decoding.open_picture(data, channels).picture.convert(MODES[channels])


def from_picture(picture: Picture) -> Pixels:
    """A Pillow picture of 8 bits per channel as uint8 [C, H, W]."""
    pixels = np.asarray(picture, dtype=np.uint8)
    return np.array(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1), order="C")


def to_picture(image: Pixels) -> Picture:
    """uint8 [C, H, W] as a Pillow picture."""
    return Image.fromarray(
        np.ascontiguousarray(image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0))
    )


def fit_square(picture: Picture, size: int, resampling: Resampling) -> Picture:
    """The middle `size` x `size` pixels after the shorter side was resized to `size`,
    as torchvision does it.

    A picture that has this size already is not resampled. ValueError if the longer side would
    become absurd.
    """
    if picture.size == (size, size):
        return picture
    short = min(picture.size)
    width, height = (int(size * side / short) for side in picture.size)
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{picture.width} x {picture.height} pixels are too long and narrow for size {size}"
        )
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = picture.resize((width, height), Image.Resampling[resampling.upper()])
    return resized.crop((left, top, left + size, top + size))


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor, made_by: str = "the network") -> Tensor:
    """Float in [-1, 1] as uint8 0..255: rounded, and clamped where x lies outside.

    x: [B, C, H, W].   made_by: the model's name, for the message.
    Errors: DivergedError for NaN or Inf, which would become black.
    """
    check_finite(x, made_by)
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).byte()


def on_white(images: Tensor) -> Tensor:
    """uint8 [..., 4, H, W] as [..., 3, H, W] on a white ground;
    pictures without transparency as they are.
    """
    if images.shape[-3] != 4:
        return images
    colour, opacity = images[..., :3, :, :].int(), images[..., 3:, :, :].int()
    return ((colour * opacity + 255 * (255 - opacity) + 127) // 255).byte()


def check_finite(x: Tensor, made_by: str) -> None:
    """DivergedError for predicted pictures [B, ...] that hold NaN or Inf."""
    if x.isfinite().all():
        return
    bad = int((~x.isfinite().flatten(1).all(1)).sum())
    raise DivergedError(f"{bad} of {len(x)} pictures of `{made_by}` hold NaN or Inf", UNSOUND)


UNSOUND = (
    "draw with --set precision=fp32; if that does not help, make this model again: "
    "lower `learning_rate`, --force"
)
"""What to do about a network whose pictures are not finite."""


def grid(images: Tensor, columns: int | None = None, padding: int = 2, scale: int = 1) -> Tensor:
    """Pictures uint8 [B, C, H, W] side by side on white, uint8 [C, H', W'].

    columns: default near-square.   padding: pixels between and around.
    scale: each pixel becomes scale x scale.
    """
    images = images.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    count, channels, height, width = images.shape
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    rows = math.ceil(count / columns)
    down, across = height + padding, width + padding
    page = images.new_full((channels, rows * down + padding, columns * across + padding), 255)
    for place, image in enumerate(images):
        top, left = place // columns * down + padding, place % columns * across + padding
        page[:, top : top + height, left : left + width] = image
    return page


def write_png(path: Path, image: Tensor, text: Mapping[str, str] | None = None) -> None:
    """Write uint8 [C, H, W] as a PNG that carries `text`, whole or not at all.

    Errors: MachineError if the disk refuses; UsageError for a file that is there and no picture of
    vdiff.
    """
    write_pixels(path, image.cpu().numpy(), text)


def write_pixels(path: Path, image: Pixels, text: Mapping[str, str] | None = None) -> None:
    """As `write_png`, from an array: without torch."""
    _write_picture(path, to_picture(image), text or {})


class ImageRow(NamedTuple):
    """A labelled row of a picture that compares models. pictures: uint8 [n, C, H, W].

    gap: some air above it.
    """

    label: str
    pictures: Tensor
    gap: bool = False


def write_rows(path: Path, rows: Sequence[ImageRow], text: Mapping[str, str] | None = None) -> None:
    """Write labelled rows of pictures of one size as a PNG that carries `text`,
    whole or not at all.
    """
    size = rows[0].pictures.shape[-1]
    strips = [
        grid(on_white(row.pictures), columns=len(row.pictures), scale=max(1, 48 // size))
        for row in rows
    ]
    font = ImageFont.load_default(15)
    left = 12 + math.ceil(max(font.getlength(row.label) for row in rows))
    tops = list(
        itertools.accumulate(
            strip.shape[-2] + 8 * row.gap for strip, row in zip(strips, rows, strict=True)
        )
    )
    page = Image.new("RGB", (left + strips[0].shape[-1] + 4, tops[-1] + 8), "white")
    pen = ImageDraw.Draw(page)
    for row, strip, bottom in zip(rows, strips, tops, strict=True):
        top = bottom - strip.shape[-2] + 4
        page.paste(to_picture(strip.numpy()).convert("RGB"), (left, top))
        pen.text(
            (left - 8, top + strip.shape[-2] / 2), row.label, fill="black", font=font, anchor="rm"
        )
    _write_picture(path, page, text or {})


def write_gif(path: Path, frames: Tensor, milliseconds: int = 80) -> None:
    """Write uint8 [T, C, H, W] as a GIF that repeats for ever, `milliseconds` per frame,
    whole or not at all.

    Transparent parts are white: a GIF knows no half-transparent ones, and would keep the frame
    before in the others.
    """
    first, *rest = [to_picture(frame) for frame in on_white(frames).cpu().numpy()]
    file = io.BytesIO()
    about = f"vdiff {__version__}"
    first.save(
        file, "GIF", save_all=True, append_images=rest, duration=milliseconds, loop=0, comment=about
    )
    _write_whole(path, file.getvalue())


def _write_picture(path: Path, picture: Picture, text: Mapping[str, str]) -> None:
    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    for key, value in {"Software": f"vdiff {__version__}", **text}.items():
        info.add_text(key, value)
    picture.save(file, "PNG", pnginfo=info)
    _write_whole(path, file.getvalue())


def _write_whole(path: Path, data: bytes) -> None:
    whole_folder.write_bytes(path, data, is_picture, is_flushed=False)
