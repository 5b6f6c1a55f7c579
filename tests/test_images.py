"""Bytes, uint8, floats and grids of pictures."""

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import noise_picture
from vdiff import __version__
from vdiff.errors import MachineError
from vdiff.images import images


def as_bytes(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def png_with_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("encoding", ["png", "webp"])
def test_lossless_encodings_give_back_every_pixel(encoding: images.Encoding, channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (channels, 7, 5), np.uint8)
    assert np.array_equal(images.decode(images.encode(image, encoding), channels), image)


def test_jpeg_comes_close() -> None:
    image = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (3, 32, 1))
    decoded = images.decode(images.encode(image, "jpeg", quality=100), 3)
    assert np.abs(decoded.astype(int) - image).max() <= 3


def test_jpeg_of_four_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="transparency"):
        images.encode(np.zeros((4, 8, 8), np.uint8), "jpeg")


def test_a_rotated_photograph_is_turned_upright() -> None:
    picture = noise_picture(6, 4, seed=0)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
    upright = images.decode(as_bytes(picture, exif=exif), 3)
    expected = np.asarray(picture.transpose(Image.Transpose.ROTATE_270)).transpose(2, 0, 1)
    assert np.array_equal(upright, expected)


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    levels = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    assert images.decode(as_bytes(Image.fromarray(levels)), 1).tolist() == [[[0, 1, 128, 255]]]
    assert images.decode(as_bytes(Image.fromarray(levels), "TIFF"), 3)[2].tolist() == [
        [0, 1, 128, 255]
    ]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_turn_white_unless_the_fourth_channel_is_wanted(mode: str) -> None:
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    picture.putpixel((1, 0), (0, 0, 0, 0))
    data = as_bytes(picture.convert(mode))
    assert images.decode(data, 3)[:, 0].T.tolist() == [[0, 0, 0], [255, 255, 255]]
    assert images.decode(data, 1)[0, 0].tolist() == [0, 255]
    assert images.decode(data, 4)[3, 0].tolist() == [255, 0]


def test_half_transparent_black_on_white_is_grey() -> None:
    assert images.decode(as_bytes(Image.new("RGBA", (1, 1), (0, 0, 0, 128))), 1).item() == 127


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_every_common_kind_of_pixel_becomes_colour(mode: str) -> None:
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    data = as_bytes(Image.new("RGB", (3, 2), (255, 255, 255)).convert(mode), kind)
    for channels in (1, 3, 4):
        decoded = images.decode(data, channels)
        assert decoded.shape == (channels, 2, 3)
        assert decoded.min() >= 254


def test_an_inverted_cmyk_jpeg_of_photoshop_keeps_its_colours() -> None:
    plain = as_bytes(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    assert images.decode(plain, 3)[:, 4, 4].tolist() == pytest.approx([255, 0, 0], abs=4)
    assert b"Adobe" in plain


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = as_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert images.decode(data, 3)[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("side", [9_500, 13_500, 60_000])
def test_a_picture_bomb_is_refused_from_its_header(side: int) -> None:
    with pytest.raises(ValueError, match=r"pixels|bomb|limit"):
        images.decode(png_with_header(side, side), 3)


def test_the_limit_of_pixels_holds_without_any_warning_filter(
    recwarn: pytest.WarningsRecorder,
) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="too many"):
            images.decode(png_with_header(9_500, 9_500), 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello", "known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "known format"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        images.decode(data, 3)


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF"]), share=st.floats(0, 0.9))
def test_a_truncated_file_is_never_a_picture(kind: str, share: float) -> None:
    data = as_bytes(noise_picture(16, 16, seed=1), kind)
    with pytest.raises(ValueError):
        images.decode(data[: int(len(data) * share)], 3)


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"]),
    place=st.integers(0),
    bit=st.integers(0, 7),
)
def test_a_flipped_bit_gives_a_picture_or_a_value_error(kind: str, place: int, bit: int) -> None:
    data = bytearray(as_bytes(noise_picture(8, 8, seed=2), kind))
    data[place % len(data)] ^= 1 << bit
    with contextlib.suppress(ValueError):
        assert images.decode(bytes(data), 3).shape[0] == 3


def test_every_level_survives_the_way_to_floats_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    x = images.to_float(levels)
    assert x.dtype == torch.float32
    assert (x[0], x[-1]) == (-1, 1)
    assert torch.equal(images.to_uint8(x), levels)


def test_floats_outside_the_range_are_clamped() -> None:
    assert images.to_uint8(torch.tensor([-3.0, -1.001, 0.0, 1.2])).tolist() == [0, 0, 128, 255]


def test_a_square_is_cut_from_the_middle_after_resizing_the_short_side() -> None:
    picture = Image.new("RGB", (60, 20), "red")
    picture.paste("blue", (20, 0, 40, 20))
    square = images.fit_square(picture, 10, "box")
    assert np.asarray(square).reshape(-1, 3).tolist() == [[0, 0, 255]] * 100


@pytest.mark.parametrize(("width", "height"), [(33, 20), (20, 33), (47, 31), (16, 90)])
def test_squares_are_those_of_torchvision(width: int, height: int) -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as tv

    picture = noise_picture(width, height, seed=3)
    expected = tv.center_crop(tv.resize(picture, 16, InterpolationMode.LANCZOS), [16, 16])
    assert np.array_equal(
        np.asarray(images.fit_square(picture, 16, "lanczos")), np.asarray(expected)
    )


def test_a_picture_of_the_right_size_is_not_resampled() -> None:
    picture = noise_picture(16, 16, seed=4)
    assert images.fit_square(picture, 16, "lanczos") is picture


def test_a_long_thin_picture_cannot_become_a_bomb() -> None:
    with pytest.raises(ValueError, match="long and narrow"):
        images.fit_square(Image.new("L", (1, 100)), 1024, "box")


def test_a_grid_is_near_square_with_white_between() -> None:
    page = images.grid(torch.zeros(5, 3, 4, 4, dtype=torch.uint8), padding=1)
    assert page.shape == (3, 2 * 5 + 1, 3 * 5 + 1)
    assert page[0, :, 0].unique().tolist() == [255]
    assert page[0, 1:5, 1:5].unique().tolist() == [0]
    assert page[0, 6:, 11:].unique().tolist() == [255]  # the sixth place is empty


def test_a_grid_can_enlarge_small_pictures() -> None:
    image = torch.arange(4, dtype=torch.uint8).view(1, 1, 2, 2)
    assert images.grid(image, padding=0, scale=2)[0].tolist() == [
        [0, 0, 1, 1],
        [0, 0, 1, 1],
        [2, 2, 3, 3],
        [2, 2, 3, 3],
    ]


def test_a_written_png_carries_its_text(tmp_path: Path) -> None:
    image = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    images.write_png(tmp_path / "a.png", image, {"seed": "7", "sampler": "ddim, größer"})
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.text == {
            "Software": f"vdiff {__version__}",
            "seed": "7",
            "sampler": "ddim, größer",
        }
    assert np.array_equal(images.decode((tmp_path / "a.png").read_bytes(), 3), image.numpy())
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_picture_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match=r"file/a\.png"):
        images.write_png(tmp_path / "file" / "a.png", torch.zeros(1, 2, 2, dtype=torch.uint8))


def test_a_gif_shows_every_frame_for_ever(tmp_path: Path) -> None:
    frames = torch.stack(
        [torch.full((1, 4, 4), level, dtype=torch.uint8) for level in (0, 100, 255)]
    )
    images.write_gif(tmp_path / "a.gif", frames, milliseconds=50)
    with Image.open(tmp_path / "a.gif") as picture:
        assert (picture.n_frames, picture.info["duration"], picture.info["loop"]) == (3, 50, 0)
