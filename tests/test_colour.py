"""Colour profiles: what is stored looks like the picture, and nothing but its pixels is stored."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from tests import profiles
from tests.conftest import noise_picture
from vdiff.data.prepare import prepare
from vdiff.data.store import ImageStore
from vdiff.images import decoding, images
from vdiff.images.decoding import colour

Floats = npt.NDArray[np.float64]
ADOBE = profiles.of_display(profiles.ADOBE_RGB, profiles.ADOBE_GAMMA)
PROPHOTO = profiles.of_display(profiles.PROPHOTO, 1.8)
GREYS = profiles.of_greys(1.8)
PRESS = profiles.of_press()
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
SRGB_TO_XYZ = np.array(
    [
        [0.4360747, 0.3850649, 0.1430804],
        [0.2225045, 0.7168786, 0.0606169],
        [0.0139322, 0.0971045, 0.7141733],
    ]
)
"""Adapted to D50 by Bradford's matrix, as in
http://www.brucelindbloom.com/Eqn_RGB_XYZ_Matrix.html.
"""


def as_bytes(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def shown(data: bytes, channels: int = 3) -> npt.NDArray[np.int64]:
    """As [H, W, C]."""
    return (
        images.from_picture(images.open_picture(data, channels)).transpose(1, 2, 0).astype(np.int64)
    )


def srgb_of(linear: Floats) -> Floats:
    """IEC 61966-2-1, in 0..255."""
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def by_closed_form(
    picture: Image.Image, primaries: list[tuple[float, float, float]], gamma: float
) -> Floats:
    xyz = (np.asarray(picture) / 255) ** gamma @ np.array(primaries)
    return srgb_of(xyz @ np.linalg.inv(SRGB_TO_XYZ).T)


def by_hand(picture: Image.Image, profile: bytes) -> npt.NDArray[np.int64]:
    """As somebody would convert it with Pillow."""
    done = ImageCms.profileToProfile(
        picture,
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        "RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    return np.asarray(done).astype(np.int64)


@pytest.mark.parametrize(
    ("profile", "primaries", "gamma", "far", "near"),
    [
        (ADOBE, profiles.ADOBE_RGB, profiles.ADOBE_GAMMA, 8, 1),
        (
            PROPHOTO,
            profiles.PROPHOTO,
            1.8,
            17,
            1.5,
        ),  # where its gamma is steep, half a level of rounding is more
    ],
    ids=["Adobe RGB", "ProPhoto"],
)
def test_colours_are_those_of_the_closed_form(
    profile: bytes,
    primaries: list[tuple[float, float, float]],
    gamma: float,
    far: float,
    near: float,
) -> None:
    picture = noise_picture(200, 200, seed=0)
    expected = by_closed_form(picture, primaries, gamma)
    assert np.abs(np.asarray(picture) - expected).mean() > far
    found = shown(as_bytes(picture, icc_profile=profile))
    assert np.abs(found - expected).max() <= near
    assert np.abs(found - by_hand(picture, profile)).max() == 0


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF"])
def test_every_format_hands_over_its_profile(kind: str) -> None:
    options: dict[str, Any] = (
        {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind != "PNG" else {}
    )
    picture = Image.linear_gradient("L").resize((32, 32)).convert("RGB")
    picture.paste((100, 150, 30), (8, 8, 24, 24))
    untagged = shown(as_bytes(picture, kind, **options))
    tagged = shown(as_bytes(picture, kind, icc_profile=ADOBE, **options))
    expected = by_hand(Image.fromarray(untagged.astype(np.uint8)), ADOBE)
    assert np.abs(expected - untagged).max() > 20
    assert np.abs(tagged - expected).max() <= 1


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("profile", [b"", SRGB])
def test_pictures_without_a_profile_and_in_srgb_keep_their_pixels(
    profile: bytes, channels: int
) -> None:
    for mode in ("L", "RGB", "RGBA"):
        picture = noise_picture(20, 20, seed=1, mode=mode)
        over_white = Image.alpha_composite(
            Image.new("RGBA", picture.size, "white"), picture.convert("RGBA")
        )
        expected = (
            picture.convert("RGBA") if channels == 4 else over_white.convert(images.MODES[channels])
        )
        found = shown(as_bytes(picture, icc_profile=profile or None), channels)
        assert np.array_equal(found.squeeze(), np.asarray(expected))


def test_a_profile_that_is_srgb_but_for_its_gamma_is_another() -> None:
    primaries = [(float(x), float(y), float(z)) for x, y, z in SRGB_TO_XYZ.T]
    picture = Image.new("RGB", (4, 4), (20, 20, 20))
    found = shown(as_bytes(picture, icc_profile=profiles.of_display(primaries, 2.2)))
    assert found[0, 0].tolist() == pytest.approx(
        [srgb_of(np.array((20 / 255) ** 2.19921875)).item()] * 3, abs=1
    )
    assert found[0, 0, 0] != 20


def test_a_grey_profile_is_heeded() -> None:
    ramp = Image.frombytes("L", (256, 1), bytes(range(256)))
    expected = srgb_of((np.arange(256) / 255) ** 1.8)
    found = shown(as_bytes(ramp, icc_profile=GREYS), 1)[0, :, 0]
    assert np.abs(found - expected).max() <= 1.5
    with_alpha = ramp.copy()
    with_alpha.putalpha(77)
    found = shown(as_bytes(with_alpha, icc_profile=GREYS), 4)[0]
    assert np.abs(found[:, 0] - expected).max() <= 1.5
    assert (found[:, 3] == 77).all()


def test_a_grey_picture_with_a_profile_of_colours_is_converted_along_its_greys() -> None:
    ramp = Image.frombytes("L", (256, 1), bytes(range(256)))
    found = shown(as_bytes(ramp, icc_profile=PROPHOTO), 1)[0, :, 0]
    assert np.abs(found - srgb_of((np.arange(256) / 255) ** 1.8)).max() <= 1.5


def test_deep_grey_is_converted_too() -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint16)[None] * 257)
    found = shown(as_bytes(ramp, icc_profile=GREYS), 1)[0, :, 0]
    assert np.abs(found - srgb_of((np.arange(256) / 255) ** 1.8)).max() <= 1.5


@pytest.mark.parametrize("mode", ["RGBA", "P", "key"])
def test_transparency_stays_while_colours_change(mode: str) -> None:
    picture = Image.new("RGBA", (8, 8), (100, 150, 30, 255))
    picture.paste((200, 0, 0, 0), (0, 0, 4, 8))
    options: dict[str, Any] = {"icc_profile": ADOBE}
    if mode == "key":
        options["transparency"] = (200, 0, 0)
    stored = picture.convert({"RGBA": "RGBA", "P": "P", "key": "RGB"}[mode])
    found = shown(as_bytes(stored, **options), 4)
    assert found[0, 0, 3] == 0
    assert found[0, 7].tolist() == [
        *by_hand(Image.new("RGB", (1, 1), (100, 150, 30)), ADOBE)[0, 0],
        255,
    ]
    assert shown(as_bytes(stored, **options), 3)[0, 0].tolist() == [255, 255, 255]


# ---- ink


def test_ink_with_a_profile_looks_as_the_press_prints_it() -> None:
    rng = np.random.default_rng(2)
    picture = Image.fromarray(rng.integers(0, 256, (30, 30, 4), np.uint8), "CMYK")
    data = as_bytes(picture, "TIFF", icc_profile=PRESS)
    assert np.abs(shown(data) - by_hand(picture, PRESS)).max() == 0
    assert np.abs(shown(data) - np.asarray(picture.convert("RGB"))).max() > 50
    assert shown(data, 4)[..., 3].min() == 255
    assert shown(data, 1).shape == (30, 30, 1)


def test_ink_without_a_profile_is_what_it_was() -> None:
    rng = np.random.default_rng(2)
    picture = Image.fromarray(rng.integers(0, 256, (30, 30, 4), np.uint8), "CMYK")
    assert np.array_equal(shown(as_bytes(picture, "TIFF")), np.asarray(picture.convert("RGB")))


def test_inverted_ink_of_photoshop_is_turned_round_before_it_is_converted() -> None:
    picture = Image.new("CMYK", (16, 16), (0, 230, 200, 20))
    data = as_bytes(picture, "JPEG", quality=100, icc_profile=PRESS)
    assert b"Adobe" in data
    assert np.abs(shown(data) - by_hand(picture, PRESS)).max() <= 3


def test_lab_is_a_colour_by_itself() -> None:
    lab = Image.new("RGB", (4, 4), (200, 40, 90)).convert("LAB")
    for profile in (None, LAB):
        data = as_bytes(lab, "TIFF", icc_profile=profile)
        assert shown(data)[0, 0].tolist() == pytest.approx([200, 40, 90], abs=3)
        assert shown(data, 1)[0, 0, 0] == pytest.approx(
            0.299 * 200 + 0.587 * 40 + 0.114 * 90, abs=3
        )
        assert decoding.open_picture(data, 3).notes == []


# ---- profiles that cannot be used

UNUSABLE: dict[str, tuple[str, bytes, str]] = {
    "noise": ("RGB", bytes(range(256)) * 4, "is damaged"),
    "short": ("RGB", ADOBE[:200], "is damaged"),
    "huge": ("RGB", profiles.of_press(5 * 2**20), "is larger than"),
    "of ink": ("RGB", PRESS, "is for pictures of another kind"),
    "of greys": ("RGB", GREYS, "is for grey pictures"),
    "of Lab": ("RGB", LAB, "is not one for pictures"),
    "of colours": ("CMYK", ADOBE, "is for pictures of another kind"),
    "greys for ink": ("CMYK", GREYS, "is for pictures of another kind"),
    "ink for greys": ("L", PRESS, "is for pictures of another kind"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_profile_that_cannot_be_used_is_left_out_with_a_note(name: str) -> None:
    mode, profile, reason = UNUSABLE[name]
    picture = noise_picture(12, 12, seed=3, mode="L" if mode == "L" else "RGB").convert(mode)
    opened = decoding.open_picture(as_bytes(picture, "TIFF", icc_profile=profile), 3)
    assert opened.notes == [note for note in opened.notes if reason in note]
    assert opened.notes[0].startswith("the colour profile ")
    assert np.array_equal(
        np.asarray(opened.picture.convert("RGB")), np.asarray(picture.convert("RGB"))
    )


def test_a_profile_of_over_a_megabyte_in_a_png_costs_the_profile_and_not_the_picture() -> None:
    """Pillow gives up the whole file for it."""
    picture = noise_picture(12, 12, seed=3)
    opened = decoding.open_picture(as_bytes(picture, icc_profile=bytes(2 * 2**20)), 3)
    assert opened.notes == ["what it holds beside its pixels is damaged and was left out"]
    assert np.array_equal(np.asarray(opened.picture), np.asarray(picture))


def test_a_profile_that_memory_was_too_short_for_is_no_damaged_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = as_bytes(
        noise_picture(8, 8, seed=0), icc_profile=profiles.of_display(profiles.ADOBE_RGB, 1.5)
    )

    def refuse(*unused: object) -> Any:
        raise ImageCms.PyCMSError("cannot build transform")

    with monkeypatch.context() as patch:
        patch.setattr(ImageCms, "buildTransform", refuse)
        patch.setattr(colour, "_BUILDING_BYTES", 2**60)
        with pytest.raises(MemoryError):
            decoding.open_picture(data, 3)
    assert decoding.open_picture(data, 3).notes == []


def test_a_profile_is_looked_into_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[None] = []
    build = ImageCms.buildTransform

    def count(*arguments: Any) -> Any:
        built.append(None)
        return build(*arguments)

    monkeypatch.setattr(ImageCms, "buildTransform", count)
    profile = profiles.of_display(profiles.ADOBE_RGB, 1.25)
    for seed in range(20):
        decoding.open_picture(as_bytes(noise_picture(8, 8, seed=seed), icc_profile=profile), 3)
    assert len(built) == 2  # without and with transparency


# ---- what is stored


def with_everything(picture: Image.Image, kind: str) -> bytes:
    """A file with a profile, EXIF, a comment and text, as far as the format has room for them."""
    exif = Image.Exif()
    exif[0x010E] = "a description"
    options: dict[str, Any] = {"icc_profile": SRGB, "exif": exif}
    if kind == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_text("Comment", "a comment")
    if kind == "JPEG":
        options |= {"comment": "a comment", "quality": 95, "subsampling": 0}
    if kind == "WEBP":
        options |= {"lossless": True, "exact": True, "xmp": b"<x:xmpmeta/>"}
    return as_bytes(picture, kind, **options)


@pytest.mark.parametrize("encoding", ["png", "webp", "jpeg"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_nothing_but_pixels_is_stored(kind: str, encoding: images.Encoding, tmp_path: Path) -> None:
    """At the size of the picture, where it is not even resampled."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "plain").mkdir()
    picture = Image.radial_gradient("L").resize((16, 16)).convert("RGB")
    data = with_everything(picture, kind)
    for index in range(3):
        (tmp_path / "pictures" / f"{index}.{kind.lower()}").write_bytes(data)
        Image.fromarray(shown(data).astype(np.uint8)).save(tmp_path / "plain" / f"{index}.png")
    for size in (16, 8):
        options: dict[str, Any] = {
            "sizes": [size],
            "encoding": encoding,
            "quality": 90,
            "force": True,
        }
        found = prepare(tmp_path / "pictures", tmp_path / "store", **options)
        plain = prepare(tmp_path / "plain", tmp_path / "plain store", **options)
        assert ImageStore(found.store).read(1, size) == ImageStore(plain.store).read(1, size)


def test_a_thousand_profiles_of_printers_need_no_room(tmp_path: Path) -> None:
    """The whole profile once went into every record."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    press = profiles.of_press(700_000)
    for index in range(20):
        as_ink = Image.fromarray(np.asarray(noise_picture(32, 32, seed=index, mode="RGBA")), "CMYK")
        as_ink.save(folder / f"{index:02}.jpg", icc_profile=press)
    report = prepare(folder, tmp_path / "store", sizes=[32])
    assert report.bytes < 20 * 8_000
    assert report.notes == []


def test_a_big_damaged_profile_leaves_a_store_that_can_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        noise_picture(16, 16, seed=index).save(
            folder / f"{index}.jpg", icc_profile=bytes(1_300_000)
        )
    report = prepare(folder, tmp_path / "store", sizes=[16])
    store = ImageStore(report.store)
    assert [images.decode(store.read(index, 16), 3).shape for index in range(3)] == [
        (3, 16, 16)
    ] * 3
    assert {note for _, note in report.notes} == {
        "the colour profile is damaged, so it was taken as sRGB"
    }
    assert report.notes_file is not None
    assert report.notes_file.read_text().splitlines()[0].split("\t")[0] == "0.jpg"


def test_stores_of_before_look_as_they_did() -> None:
    """Their records may hold profiles, which were never heeded."""
    picture = noise_picture(16, 16, seed=0)
    for profile in (ADOBE, bytes(2 * 2**20)):
        decoded = images.decode(as_bytes(picture, icc_profile=profile), 3)
        assert np.array_equal(decoded.transpose(1, 2, 0), np.asarray(picture))


def test_what_is_encoded_decodes_to_the_same_pixels() -> None:
    for encoding in ("png", "webp"):
        for channels in (1, 3, 4):
            picture = noise_picture(16, 16, seed=5, mode=images.MODES[channels])
            picture.info |= {
                "icc_profile": bytes(2 * 2**20),
                "comment": b"a" * 100,
                "transparency": 0,
            }
            data = images.encode_picture(picture, encoding)  # type: ignore[arg-type]
            assert len(data) < 16 * 16 * channels + 500
            assert np.array_equal(
                images.decode(data, channels).transpose(1, 2, 0).squeeze(), np.asarray(picture)
            )
