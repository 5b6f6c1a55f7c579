"""Grey pictures of more than 8 bits: one rule for all of them, or a reason why they are skipped."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from vdiff.cli import main
from vdiff.data.prepare import PrepareSummary, prepare
from vdiff.data.store import ImageStore
from vdiff.errors import UsageError
from vdiff.images import decoding, images

SECONDS = 180.0
RAMP = np.linspace(0, 1, 64)[None].repeat(64, 0)
ALL = np.arange(65536, dtype=np.uint16).reshape(256, 256)


def as_bytes(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A piece of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def grey(data: bytes, bits: int = 16) -> npt.NDArray[np.uint8]:
    opened = decoding.open_picture(data, 1, bits)
    assert opened.picture.mode == "L"
    return np.asarray(opened.picture)


def tiff(
    values: npt.NDArray[Any], tags: dict[int, tuple[int, int | float]], packed: bytes | None = None
) -> bytes:
    """A TIFF of one strip. tags: number -> (type, value):
    3 short, 4 long, 9 signed long, 11 float.
    """
    height, width = values.shape
    data = values.tobytes() if packed is None else packed
    sample = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    every: dict[int, tuple[int, int | float]] = {
        256: (4, width),
        257: (4, height),
        258: (3, values.itemsize * 8),
    }
    every |= {
        259: (3, 1),
        262: (3, 1),
        273: (4, 8),
        277: (3, 1),
        278: (4, height),
        279: (4, len(data)),
    }
    every |= {339: (3, sample)} | tags
    listed = struct.pack("<H", len(every))
    for tag, (kind, value) in sorted(every.items()):
        listed += struct.pack("<HHI", tag, kind, 1) + struct.pack(
            {3: "<Hxx", 4: "<I", 9: "<i", 11: "<f"}[kind], value
        )
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + listed + bytes(4)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_bits_are_divided_by_257_and_rounded_in_every_format(kind: str) -> None:
    found = grey(as_bytes(Image.fromarray(ALL), kind))
    assert np.array_equal(found, np.floor(ALL / 257 + 0.5).astype(np.uint8))


def test_the_order_of_bytes_does_not_matter() -> None:
    picture = Image.frombytes("I;16B", (256, 256), ALL.astype(">u2").tobytes())
    assert np.array_equal(grey(as_bytes(picture, "TIFF")), grey(as_bytes(Image.fromarray(ALL))))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_whoever_says_that_12_bits_are_used_gets_all_of_them(kind: str) -> None:
    found = grey(as_bytes(Image.fromarray(ALL), kind), bits=12)
    assert np.array_equal(found, np.floor(ALL.clip(0, 4095) / 4095 * 255 + 0.5).astype(np.uint8))


def test_no_picture_is_stretched_to_its_own_values() -> None:
    for top in (4095, 30_000, 65_535):
        levels = (RAMP * top).astype(np.uint16)
        assert grey(as_bytes(Image.fromarray(levels))).max() == round(top / 257)


def test_a_tiff_of_12_bits_states_them() -> None:
    levels = (np.arange(64) * 65).astype(np.uint16)[None].repeat(2, 0)  # 0 to 4095
    pairs = levels.reshape(-1, 2).astype(int)
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs.tolist())
    for bits in (16, 10):
        found = grey(tiff(levels, {258: (3, 12)}, packed), bits)
        assert np.array_equal(found, np.floor(levels / 4095 * 255 + 0.5))


def test_a_pgm_states_its_largest_value() -> None:
    levels = (RAMP * 4095).astype(">u2")
    data = b"P5 64 64 4095\n" + levels.tobytes()
    for bits in (16, 12):
        assert np.abs(grey(data, bits).astype(int) - np.floor(levels / 4095 * 255 + 0.5)).max() == 0


def test_a_tiff_whose_zero_is_white_is_turned_round() -> None:
    levels = (RAMP * 65535).astype(np.uint16)
    assert np.array_equal(grey(tiff(levels, {262: (3, 0)})), 255 - grey(tiff(levels, {})))
    assert np.array_equal(
        grey(tiff(levels // 16, {262: (3, 0)}), 12), 255 - grey(tiff(levels // 16, {}), 12)
    )


REFUSED: dict[str, bytes] = {
    "int32.tif": as_bytes(Image.fromarray((RAMP * 3000 - 1000).astype(np.int32)), "TIFF"),
    "int16.tif": tiff((RAMP * 3000 - 1000).astype(np.int16), {}),
    "uint32.tif": tiff((RAMP * 2**31).astype(np.uint32), {}),
    "float.tif": as_bytes(Image.fromarray(RAMP.astype(np.float32)), "TIFF"),
    "float.pfm": as_bytes(Image.fromarray(RAMP.astype(np.float32)), "PPM"),
    "narrow.tif": tiff(RAMP.astype(np.float32), {340: (11, 1.0), 341: (11, 1.0)}),
    "nan.tif": tiff(RAMP.astype(np.float32), {340: (11, float("nan")), 341: (11, 1.0)}),
    "unsigned.tif": tiff((RAMP * 2**31).astype(np.uint32), {340: (4, 0), 341: (4, 2**32 - 1)}),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_values_without_a_range_are_refused_with_what_to_do(name: str, channels: int) -> None:
    with pytest.raises(ValueError, match="without a stated range: save it with 8 or 16 bits"):
        decoding.open_picture(REFUSED[name], channels)


@pytest.mark.parametrize(
    ("values", "low", "high", "kind"),
    [
        (RAMP.astype(np.float32) * 8 - 4, -4.0, 4.0, 11),
        ((RAMP * 3000 - 1000).astype(np.int32), -1000, 2000, 9),
        ((RAMP * 3000 - 1000).astype(np.int16), -1000, 2000, 9),
        ((RAMP * 70_000).astype(np.uint32), 0, 70_000, 4),
        ((RAMP * 255).astype(np.int32), 0, 255, 9),
    ],
    ids=["float", "CT", "signed", "unsigned", "8 bits in 32"],
)
def test_a_range_that_a_tiff_states_is_used(
    values: npt.NDArray[Any], low: float, high: float, kind: int
) -> None:
    found = grey(tiff(values, {340: (kind, low), 341: (kind, high)}))
    expected = np.floor((values.astype(float) - low) / (high - low) * 255 + 0.5)
    assert np.abs(found - expected).max() <= 1
    assert (found.min(), found.max()) == (0, 255)


def test_what_lies_outside_of_a_stated_range_is_black_or_white() -> None:
    values = np.array([[-np.inf, -9, 0, 0.5, 1, 9, np.inf, np.nan]], np.float32)
    found = grey(tiff(values, {340: (11, 0.0), 341: (11, 1.0)}))
    assert found.tolist() == [[0, 0, 0, 128, 255, 255, 255, 0]]


def test_a_transparent_grey_of_16_bits_stays_transparent() -> None:
    levels = np.full((300, 4), 1000, np.uint16)  # higher than one band
    levels[:, 0] = 1001
    data = as_bytes(Image.fromarray(levels), transparency=1000)
    with_alpha = images.from_picture(images.open_picture(data, 4))
    assert with_alpha[3, 299].tolist() == [255, 0, 0, 0]
    assert images.from_picture(images.open_picture(data, 3))[:, 299].T.tolist() == [
        [4, 4, 4]
    ] + 3 * [[255, 255, 255]]


@pytest.mark.parametrize(("bits", "grey_value"), [(1, 1), (2, 2), (4, 9), (8, 200)])
def test_a_transparent_grey_of_few_bits_stays_transparent(bits: int, grey_value: int) -> None:
    """Pillow spreads the greys over 0 to 255, and not the one that is transparent."""
    row = bytes([0, grey_value << (8 - bits), 0])
    width = 16 // bits
    data = b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, 0, 0, 0, 0)
    )
    data += (
        chunk(b"tRNS", struct.pack(">H", grey_value))
        + chunk(b"IDAT", zlib.compress(row))
        + chunk(b"IEND", b"")
    )
    alpha = images.from_picture(images.open_picture(data, 4))[3, 0]
    assert alpha[0] == 0
    assert alpha[1:].tolist() == [255] * (width - 1)


def test_a_transparent_colour_of_16_bits_is_found_by_its_upper_bytes() -> None:
    """Pillow reads 8 of the 16 bits of each colour."""
    pixels = struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0x1234, 0x5678, 0x8000)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    data += (
        chunk(b"tRNS", pixels[:6])
        + chunk(b"IDAT", zlib.compress(b"\0" + pixels))
        + chunk(b"IEND", b"")
    )
    found = images.from_picture(images.open_picture(data, 4))
    assert found[3, 0].tolist() == [0, 255]
    assert found[:3, 0, 1].tolist() == [0x12, 0x56, 0x80]


# ---- a whole source


def stored(folder: Path, place: Path, pictures: dict[str, bytes], **options: Any) -> PrepareSummary:
    folder.mkdir(exist_ok=True)
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    return prepare(folder, place, **{"sizes": [64], "channels": 1, "max_bad": 0.9, **options})


def ramp(top: int, kind: str = "PNG") -> bytes:
    return as_bytes(Image.fromarray((RAMP * top).astype(np.uint16)), kind)


def test_pictures_that_are_nearly_black_are_told_with_what_to_type(tmp_path: Path) -> None:
    report = stored(
        tmp_path / "a", tmp_path / "store", {"b.png": ramp(4095), "c.tif": ramp(4000, "TIFF")}
    )
    assert report.hints == [
        "no value of the 2 grey pictures of 16 bits is above 4,095, so they are nearly black: "
        "if they use only 12 of their bits, prepare them with `--depth 12 --force`"
    ]
    again = prepare(
        tmp_path / "a", tmp_path / "store", sizes=[64], channels=1, depth=12, force=True
    )
    assert again.hints == []
    brightest = [
        images.decode(ImageStore(again.store).read(index, 64), 1).max() for index in range(2)
    ]
    assert brightest == [255, 249]
    assert ImageStore(again.store).metadata.depth == 12  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "pictures", [{"a.png": ramp(65_535), "b.png": ramp(4095)}, {"a.png": ramp(8192)}]
)
def test_where_one_picture_is_bright_nothing_is_said(
    pictures: dict[str, bytes], tmp_path: Path
) -> None:
    assert stored(tmp_path / "a", tmp_path / "store", pictures).hints == []


def test_pictures_of_8_bits_are_not_counted_among_the_dark_ones(tmp_path: Path) -> None:
    black = {"a.png": as_bytes(Image.new("L", (64, 64)))}
    assert stored(tmp_path / "a", tmp_path / "store", black).hints == []
    assert (
        "the 1 grey"
        in stored(tmp_path / "b", tmp_path / "other", {**black, "b.png": ramp(0)}).hints[0]
    )


def test_refused_pictures_are_listed(tmp_path: Path) -> None:
    pictures = {name: data for name, data in REFUSED.items() if name.endswith(".tif")}
    report = stored(tmp_path / "a", tmp_path / "store", {"a.png": ramp(65_535), **pictures})
    assert (report.num_images, report.num_skipped) == (1, len(pictures))


@pytest.mark.parametrize("depth", [7, 17])
def test_a_depth_that_cannot_be_is_refused(depth: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"cannot use {depth} bits"):
        stored(tmp_path / "a", tmp_path / "store", {"a.png": ramp(9)}, depth=depth)


def test_the_option_and_the_word_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    stored(tmp_path / "a", tmp_path / "unused", {"b.png": ramp(4095)})
    arguments = ["prepare", "a", "--size", "64", "--channels", "1", "--out", "store"]
    assert main(arguments) == 0
    assert "`--depth 12 --force`" in capsys.readouterr().err
    assert main([*arguments, "--depth", "12"]) == UsageError.exit_code
    assert main([*arguments, "--depth", "12", "--force"]) == 0
    assert "--depth" not in capsys.readouterr().err.splitlines()[-1]
    assert main([*arguments, "--depth", "12"]) == 0
    assert "nothing to do" in capsys.readouterr().err


# ---- memory

MEASURE = """
import re, sys
from pathlib import Path
from vdiff.data.conversion import Settings, convert
from vdiff.data.sources import open_source
def most():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
settings = Settings((32,), 3, "png", None, "lanczos")
for chunk in convert(open_source(Path(sys.argv[1])).pictures(0), settings, 1):
    for converted in chunk:
        print(converted.name, len(converted.data), converted.reason, sep="; ")
print(most())
"""


@pytest.mark.parametrize("kind", ["png", "tif", "pgm"])
def test_a_scan_of_81_million_pixels_of_16_bits_fits_in_500_megabytes(
    kind: str, tmp_path: Path
) -> None:
    (tmp_path / "scans").mkdir()
    path = tmp_path / "scans" / f"a.{kind}"
    levels = np.arange(9000, dtype=np.uint16)[None].repeat(9000, 0)
    if kind == "pgm":
        path.write_bytes(b"P5 9000 9000 65535\n" + levels.tobytes())
    else:
        Image.fromarray(levels).save(path, **({"compress_level": 1} if kind == "png" else {}))
    arguments = [sys.executable, "-c", MEASURE, str(tmp_path / "scans")]
    ran = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=SECONDS)
    said, megabytes = ran.stdout.splitlines()
    # Pillow needs 32 bits for each value of a PGM
    assert said == (
        "a.pgm; 0; 9000 x 9000 pixels of 32 bits are too many"
        if kind == "pgm"
        else f"a.{kind}; 1; "
    )
    assert int(megabytes) < 500
