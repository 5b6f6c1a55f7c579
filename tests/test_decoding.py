"""Pictures from the wild: taken with a note, or skipped with the reason,
and never a line that nobody asked for.
"""

import contextlib
import gc
import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from tests.conftest import noise_picture
from vdiff.cli import main
from vdiff.data.prepare import prepare
from vdiff.images import decoding, images
from vdiff.images.decoding import remarks, webp
from vdiff.images.decoding.damage import DamagedError

PICTURE = noise_picture(16, 12, seed=0)


def as_bytes(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A piece of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(new: bytes) -> bytes:
    """PICTURE as a PNG with a further piece before its pixels."""
    data = as_bytes(PICTURE)
    place = data.index(b"IDAT") - 4
    return data[:place] + new + data[place:]


def reason(data: bytes) -> str:
    with pytest.raises(ValueError) as caught:
        decoding.open_picture(data, 3)
    return str(caught.value)


# ---- what lies beside the pixels

NO_TIFF = b"Exif\0\0this is no TIFF at all, whatever the marker says"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif", [NO_TIFF, b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0"]
)
def test_a_picture_whose_exif_is_none_is_taken_as_it_lies(kind: str, exif: bytes) -> None:
    options = {} if kind == "PNG" else {"quality": 100, "dpi": (72, 72)}
    plain = decoding.open_picture(as_bytes(PICTURE, kind, **options), 3)
    odd = decoding.open_picture(as_bytes(PICTURE, kind, exif=exif, **options), 3)
    assert plain.notes == []
    assert np.array_equal(np.asarray(odd.picture), np.asarray(plain.picture))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_that_is_none_is_noted(kind: str) -> None:
    opened = decoding.open_picture(as_bytes(PICTURE, kind, exif=NO_TIFF, dpi=(72, 72)), 3)
    assert opened.notes == ["the EXIF data are damaged, so it was not turned"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_all_eight_orientations_become_upright(orientation: int, kind: str) -> None:
    upright = np.asarray(
        Image.radial_gradient("L").resize((24, 24)).crop((0, 4, 20, 16)).convert("RGB")
    )
    turned = {
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, 3),
    }.get(orientation, upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    data = as_bytes(Image.fromarray(np.ascontiguousarray(turned)), kind, exif=exif, **options)
    found = np.asarray(decoding.open_picture(data, 3).picture).astype(int)
    assert found.shape == upright.shape
    assert np.abs(found - upright).max() <= (4 if kind == "JPEG" else 0)


BESIDE: dict[str, bytes] = {
    "a checksum of text": with_chunk(chunk(b"tEXt", b"Comment\0hello")[:-1] + b"?"),
    "a method of a profile": with_chunk(chunk(b"iCCP", b"name\0\7" + zlib.compress(b"profile"))),
    "a text of 2 MiB": with_chunk(chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**21)))),
    "a size of pixels": with_chunk(chunk(b"pHYs", b"123")),
    "a gamma": with_chunk(chunk(b"gAMA", b"")),
    "an animation": with_chunk(chunk(b"acTL", bytes(2))),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_is_damaged_beside_the_pixels_does_not_cost_the_picture(name: str) -> None:
    opened = decoding.open_picture(BESIDE[name], 3)
    assert np.array_equal(np.asarray(opened.picture), np.asarray(PICTURE))
    assert opened.notes in (["what it holds beside its pixels is damaged and was left out"], [])


def test_damage_beside_the_pixels_is_noted() -> None:
    assert decoding.open_picture(BESIDE["a checksum of text"], 3).notes != []


def test_segments_of_a_jpeg_that_make_no_sense_do_not_cost_the_picture() -> None:
    data = as_bytes(PICTURE, "JPEG", quality=100)
    plain = np.asarray(decoding.open_picture(data, 3).picture)
    for kind in (0xE1, 0xE2, 0xED, 0xFE):
        for content in (
            b"",
            b"ICC_PROFILE\0",
            b"Photoshop 3.0\x008BIM\4\4",
            b"MPF\0II*\0\xff\xff\xff\xff",
        ):
            segment = bytes([0xFF, kind]) + struct.pack(">H", len(content) + 2) + content
            odd = decoding.open_picture(data[:2] + segment + data[2:], 3)
            assert np.array_equal(np.asarray(odd.picture), plain), (kind, content)


# ---- damaged, and not of an unknown format


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("PNG", "PNG"), ("JPEG", "JPEG"), ("WEBP", "WebP"), ("GIF", "GIF"), ("TIFF", "TIFF"), ((
            "BMP"
        ), (
            "BMP"
        )),
        ("PPM", "PPM"), ("JPEG2000", "JPEG 2000"), ("AVIF", "AVIF"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_file_that_was_cut_off_is_called_damaged(kind: str, name: str, share: float) -> None:
    data = as_bytes(noise_picture(40, 40, seed=0), kind)
    assert reason(data[: int(len(data) * share)]).startswith(f"a damaged {name}: ")


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_a_header_that_makes_no_sense_is_called_damaged(kind: str) -> None:
    data = bytearray(as_bytes(PICTURE, kind))
    data[14:40] = bytes(byte ^ 0x5A for byte in data[14:40])
    said = reason(bytes(data))
    assert said.startswith((f"a damaged {kind}: ", f"a {kind} of a kind that cannot be read: ")), (
        said
    )


@pytest.mark.parametrize(
    "mangle", [(b"\r\n", b"\n"), (b"\n", b"\r\n"), (b"\x89", b"\x09"), (b"\x1a", b""), (b"P", b"p")]
)
def test_a_png_that_was_copied_as_text_is_called_damaged(mangle: tuple[bytes, bytes]) -> None:
    data = as_bytes(PICTURE)
    assert (
        reason(data[:8].replace(*mangle, 1) + data[8:])
        == "a damaged PNG: its first bytes are wrong"
    )


def test_a_tiff_of_a_rare_kind_is_not_called_damaged() -> None:
    data = bytearray(as_bytes(Image.new("L", (4, 4)), "TIFF"))
    place = data.index(struct.pack("<HHI", 258, 3, 1))
    data[place + 8 : place + 10] = struct.pack("<H", 7)  # bits per sample
    assert reason(bytes(data)) == "a TIFF of a kind that cannot be read: unknown pixel mode"


@pytest.mark.parametrize(
    "data", [b"hello", b"<!DOCTYPE html><title>404</title>", bytes(4096), b"PK\3\4", b"Pillow 1 2"]
)
def test_what_is_no_picture_is_not_called_damaged(data: bytes) -> None:
    assert reason(data) == "not a picture of a known format"
    assert decoding.kind_of(data) == ""


def test_a_damaged_picture_can_be_told_from_one_that_is_refused() -> None:
    with pytest.raises(DamagedError):
        decoding.open_picture(as_bytes(PICTURE)[:200], 3)
    with pytest.raises(ValueError, match="too many") as caught:
        decoding.open_picture(b"P6 9500 9500 255\n", 3)
    assert not isinstance(caught.value, DamagedError)


# ---- memory


@pytest.mark.parametrize("kind", ["VP8X", "VP8L", "VP8 "])
def test_a_small_webp_that_asks_for_much_memory_is_refused_before_it_is_opened(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libwebp takes 8 bytes per pixel as soon as it knows the size."""
    options: dict[str, dict[str, object]] = {
        "VP8X": {"exif": NO_TIFF},
        "VP8L": {"lossless": True},
        "VP8 ": {},
    }
    picture = noise_picture(160, 120, seed=0)
    data = bytearray(as_bytes(picture, "WEBP", **options[kind]))
    assert data[12:16] == kind.encode()
    assert webp.size_of(bytes(data)) == picture.size
    assert decoding.count_pixels(bytes(data)) == 160 * 120
    webp.refuse_bomb(bytes(data))
    if kind == "VP8X":
        data[24:30] = (9000 - 1).to_bytes(3, "little") + (8000 - 1).to_bytes(3, "little")
    elif kind == "VP8L":
        data[21:25] = (9000 - 1 | (8000 - 1) << 14).to_bytes(4, "little")
    else:
        data[26:30] = struct.pack("<HH", 9000, 8000)

    def forbid(*unused: object, **unused_too: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr(Image, "open", forbid)
    assert decoding.count_pixels(bytes(data)) == 72_000_000
    assert reason(bytes(data)) == f"9000 x 8000 pixels in {len(data):,} bytes are too many"


def test_a_large_webp_of_a_photograph_is_no_bomb() -> None:
    data = bytearray(as_bytes(PICTURE, "WEBP", exif=NO_TIFF))
    assert data[12:16] == b"VP8X"
    data[24:30] = (9000 - 1).to_bytes(3, "little") + (8000 - 1).to_bytes(3, "little")
    webp.refuse_bomb(bytes(data) + bytes(72_000))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_damaged_picture_does_not_stay_in_memory(kind: str) -> None:
    """An exception that a frame of its own traceback holds would keep the pixels
    until the next collection.
    """
    data = as_bytes(noise_picture(64, 64, seed=0), kind)[:-2000]
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(DamagedError):  # not pytest.raises, which keeps the exception
            decoding.open_picture(data, 3)
        left = [each for each in gc.get_objects() if issubclass(type(each), ImageFile.ImageFile)]
    finally:
        gc.enable()
    assert left == []


# ---- nothing is said aloud


def broken_tiff() -> bytes:
    """A TIFF of which libtiff complains on the standard error stream."""
    data = bytearray(as_bytes(noise_picture(64, 64, seed=0), "TIFF", compression="tiff_lzw"))
    data[500:540] = b"\xff" * 40
    return bytes(data)


def talkative(name: str) -> bytes:
    """Pictures that Pillow takes and warns of."""
    if name == "an animation that is none":
        return with_chunk(chunk(b"acTL", struct.pack(">II", 0, 0)))
    return as_bytes(PICTURE, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x09\0" + bytes(4))


NAMES = ["an animation that is none", "EXIF that is cut off"]


@pytest.fixture
def as_users_have_it() -> Iterator[None]:
    """Warnings as they are outside of the tests, where each would be an error."""
    with warnings.catch_warnings():
        warnings.resetwarnings()
        yield


@pytest.mark.usefixtures("as_users_have_it")
@pytest.mark.parametrize("name", NAMES)
def test_what_pillow_warns_of_becomes_a_note_each_time(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        opened = decoding.open_picture(talkative(name), 3)
        assert [note for note in opened.notes if note.startswith("Pillow warns: ")], opened.notes
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("as_users_have_it")
def test_libtiff_is_silent_while_a_picture_is_read_and_afterwards_as_it_was(
    capfd: pytest.CaptureFixture[str],
) -> None:
    if remarks._set_tiff_handler is remarks._no_tiff_handler:
        pytest.skip("this Pillow does not show its libtiff")
    assert reason(broken_tiff()) == "a damaged TIFF: its data cannot be decoded"
    assert capfd.readouterr() == ("", "")
    with contextlib.suppress(OSError), Image.open(io.BytesIO(broken_tiff())) as picture:
        picture.load()
    assert "tempfile.tif" in capfd.readouterr().err


@pytest.mark.usefixtures("as_users_have_it")
def test_each_thread_hears_of_its_own_picture_only(capfd: pytest.CaptureFixture[str]) -> None:
    plain = as_bytes(PICTURE)
    files = [talkative(NAMES[index // 4 % 2]) if index % 4 == 0 else plain for index in range(200)]
    with ThreadPoolExecutor(8) as pool:
        notes = list(pool.map(lambda data: decoding.open_picture(data, 3).notes, files))
    for index, found in enumerate(notes):
        expected = decoding.open_picture(files[index], 3).notes
        assert found == expected
        assert bool(found) == (index % 4 == 0)
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("as_users_have_it")
def test_warnings_of_others_are_shown_as_before(recwarn: pytest.WarningsRecorder) -> None:
    before = (warnings.showwarning, list(warnings.filters))
    with remarks.listening() as said:
        warnings.warn("of our own", stacklevel=1)
        other = threading.Thread(target=lambda: warnings.warn("of another thread", stacklevel=1))
        other.start()
        other.join()
    assert said == []
    assert {str(each.message) for each in recwarn} == {"of our own", "of another thread"}
    assert (warnings.showwarning, list(warnings.filters)) == before


@pytest.mark.usefixtures("as_users_have_it")
def test_the_command_says_nothing_when_told_to_and_counts_otherwise(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    for index, name in enumerate(NAMES * 2):
        data = talkative(name)
        Path("pictures", f"{index}.{'png' if data[1:4] == b'PNG' else 'jpg'}").write_bytes(data)
    Path("pictures", "broken.tif").write_bytes(broken_tiff())
    arguments = ["prepare", "pictures", "--size", "8", "--out", "store", "--max-bad", "50%"]
    assert main([*arguments, "-q"]) == 0
    assert capfd.readouterr() == ("", "")
    assert main([*arguments, "--force"]) == 0
    said = capfd.readouterr().err
    assert "4 pictures: Pillow warns; see `store/notes.tsv`" in said
    assert "PIL" not in said
    assert "tempfile" not in said
    rows = [line.split("\t") for line in Path("store/notes.tsv").read_text().splitlines()]
    assert {name for name, _ in rows} == {path.name for path in Path("pictures").iterdir()} - {
        "broken.tif"
    }


def test_notes_survive_a_stop_and_go_with_the_store(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(4):
        (folder / f"{index}.png").write_bytes(
            BESIDE["a checksum of text"] if index % 2 else as_bytes(PICTURE)
        )
    report = prepare(folder, tmp_path / "store", sizes=[8])
    note = "what it holds beside its pixels is damaged and was left out"
    assert report.notes == [("1.png", note), ("3.png", note)]
    again = prepare(folder, tmp_path / "store", sizes=[8])
    assert (again.already_done, again.notes) == (True, report.notes)
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [
        "data.mdb",
        "notes.tsv",
        "preview.png",
        "source.json",
        "store.json",
    ]
    assert prepare(folder, tmp_path / "store", sizes=[16], force=True).num_images == 4


# ---- kinds of pixels


def test_every_kind_of_pixel_that_pillow_writes_is_taken_or_refused_in_words() -> None:
    bands = [Image.linear_gradient("L"), Image.radial_gradient("L"), Image.new("L", (256, 256), 90)]
    colours = Image.merge("RGB", bands)
    taken, reasons = 0, set()
    for mode in (
        "1",
        "L",
        "LA",
        "P",
        "PA",
        "RGB",
        "RGBA",
        "RGBX",
        "CMYK",
        "YCbCr",
        "LAB",
        "I",
        "I;16",
        "I;16B",
        "F",
    ):
        picture = (
            colours.convert("L").convert(mode)
            if mode in ("PA", "I;16", "I;16B")
            else colours.convert(mode)
        )
        for kind in ("PNG", "TIFF", "JPEG", "WEBP", "GIF", "BMP", "PPM", "JPEG2000", "AVIF"):
            try:
                data = as_bytes(picture, kind)
            except (OSError, ValueError, KeyError):
                continue  # Pillow writes no such file
            for channels in (1, 3, 4):
                try:
                    taken += images.open_picture(data, channels).mode == images.MODES[channels]
                except ValueError as err:
                    reasons.add(str(err).partition(":")[0].partition(" without ")[2])
    assert taken > 120
    assert reasons == {"a stated range"}


def test_a_comment_is_no_picture_text(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "b" * 1000)
    (tmp_path / "a.png").write_bytes(as_bytes(PICTURE, pnginfo=info))
    assert (
        len(images.encode_picture(images.open_picture((tmp_path / "a.png").read_bytes(), 3), "png"))
        < 1000
    )


def test_pillow_logs_to_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    """It logs errors of TIFF, and Python prints what nobody takes."""
    data = bytearray(as_bytes(PICTURE, "TIFF"))
    place = data.index(struct.pack("<HHI", 277, 3, 1))
    data[place + 8 : place + 10] = struct.pack("<H", 60_000)
    assert reason(bytes(data)).startswith("a damaged TIFF: ")
    assert capfd.readouterr() == ("", "")
