"""What a folder or an archive gives: all its pictures, by links too,
and a reason for everything that is not taken.
"""

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.archives import Pack, add_link, as_folder, as_tar, as_zip, png, tar_block, zip_bytes
from vdiff.data.sources import Source, open_source
from vdiff.data.sources.kinds import BEGINNING, SUFFIXES, no_picture
from vdiff.data.sources.left_out import UNKNOWN
from vdiff.errors import DataError, PausedError
from vdiff.images.decoding.damage import FORMATS

KINDS = pytest.mark.parametrize("pack", [as_folder, as_zip, as_tar])


def names(source: Source) -> list[str]:
    return [file.name for file in source.files]


def left_out(source: Source) -> dict[str, int]:
    return {group.reason.split(";")[0]: group.count for group in source.left_out.groups()}


def contents(source: Source) -> dict[str, bytes]:
    return {picture.file.name: picture.read() for picture in source.pictures(0)}


# ---- content decides


@KINDS
def test_content_decides_where_the_suffix_does_not(pack: Pack, tmp_path: Path) -> None:
    files = {
        name: png(seed)
        for seed, name in enumerate(
            ("scan", "a.jpg?width=1080", "b.jpg.1", "c.jpg~", "D.PNG", "e.heic")
        )
    }
    source = open_source(pack(files, tmp_path / "source"))
    assert contents(source) == files
    assert len(source.left_out) == 0


@KINDS
def test_everything_that_is_not_taken_is_counted_with_its_reason(
    pack: Pack, tmp_path: Path
) -> None:
    heic, jxl = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", b"\xff\x0a junk"
    files = {
        "a.png": png(), "1.heic": heic, "2.HEIC": heic, "noname": heic, "3.jxl": jxl, "4.dng": (
            b"II*\0 junk"
        ),
        "clip.mp4": b"junk", "clip": b"\0\0\0\x18ftypisom", "inner.zip": b"PK", "inner": (
            b"PK\3\4 and so on"
        ),
        "notes.txt": b"BMW", "labels.csv": b"a,b", "README": b"P6 is what I am not", "nothing": b"",
        ".hidden.png": png(), "._a.png": b"\0\5\x16\7", "Thumbs.db": b"junk", (
            "half.jpg.part"
        ): png(),
    }  # fmt: skip
    source = open_source(pack(files, tmp_path / "source"))
    assert names(source) == ["a.png"]
    assert left_out(source) == {
        "formats that vdiff does not read": 5,
        "videos": 2,
        "archives": 2,
        "downloads that were not finished": 1,
        "text or data": 2,
        "no pictures, as their first bytes tell": 1,
        "empty": 1,
        "hidden, or of the system": 3,
    }
    group = source.left_out.groups()[0]
    assert group.suffixes == {".heic": 2, "other": 1, ".jxl": 1, ".dng": 1}
    assert str(group).startswith(
        "2 .heic, 1 .jxl, 1 .dng, 1 others: formats that vdiff does not read; convert"
    )


def test_the_beginning_of_every_format_is_known() -> None:
    picture = Image.new("RGB", (16, 16), "red")
    for kind in FORMATS:
        file = io.BytesIO()
        picture.save(file, kind)
        assert no_picture("name", file.getvalue()[:BEGINNING]) is None, kind
    for text in (
        b"BMW is a car",
        b"P1 of 7",
        b"GIF is a format",
        b"\xff\xd8",
        b"MM",
        b"RIFF and so on, and so on",
    ):
        assert no_picture("name", text) is UNKNOWN, text


def test_files_with_a_known_suffix_are_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_folder(
        {f"{place}{suffix}": b"junk" for place, suffix in enumerate([*SUFFIXES, ".txt", ".json"])},
        tmp_path / "p",
    )
    monkeypatch.setattr(io, "FileIO", None)
    assert len(open_source(tmp_path / "p").files) == len(SUFFIXES)


def test_where_there_are_no_pictures_the_error_says_what_there_is(tmp_path: Path) -> None:
    folder = as_folder(
        {f"{index}.heic": b"\0\0\0\x18ftypheic" for index in range(3)}, tmp_path / "p"
    )
    with pytest.raises(
        DataError, match=r"no pictures in `.*`, only\n  3 \.heic: formats that vdiff does not read"
    ):
        open_source(folder)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (png(), "is a single picture"),
        (b"7z\xbc\xaf\x27\x1c", "of a kind that vdiff does not read"),
        (b"just text", "is not an archive"),
        (b"PK\3\4" + bytes(100), "is cut off"),
        (b"\x1f\x8b\x08" + bytes(20), "cannot be read"),
    ],
)
def test_what_is_no_source_is_called_by_what_it_is(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(DataError, match=words):
        open_source(tmp_path / "file")


# ---- links


def test_links_to_folders_and_files_are_followed(tmp_path: Path) -> None:
    as_folder({"all/cats/1.png": png(1), "all/dogs/2.png": png(2), ".store/blob": png(3)}, tmp_path)
    (tmp_path / "subset" / "dogs").mkdir(parents=True)
    (tmp_path / "subset" / "cats").symlink_to("../all/cats")
    (tmp_path / "subset" / "dogs" / "x.png").symlink_to("../../.store/blob")
    (tmp_path / "subset" / "dogs" / "lost.png").symlink_to("nowhere")
    source = open_source(tmp_path / "subset")
    assert contents(source) == {"cats/1.png": png(1), "dogs/x.png": png(3)}
    assert source.classes.names == ["cats", "dogs"]
    assert left_out(source) == {"links to nothing": 1}


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    as_folder({"p/a/1.png": png(), "q/2.png": png()}, tmp_path)
    (tmp_path / "p" / "a" / "up").symlink_to("..")
    (tmp_path / "p" / "to_q").symlink_to("../q")
    (tmp_path / "q" / "to_p").symlink_to("../p")
    (tmp_path / "p" / "self").symlink_to("self")
    source = open_source(tmp_path / "p")
    assert names(source) == ["a/1.png", "to_q/2.png"]
    assert left_out(source) == {"links to a folder that holds them": 2, "links to nothing": 1}


def test_links_that_lead_to_more_folders_than_anybody_has_are_refused(tmp_path: Path) -> None:
    for depth in range(20):
        (tmp_path / str(depth)).mkdir()
        for name in "ab":
            (tmp_path / str(depth) / name).symlink_to(f"../{depth + 1}")
    as_folder({"20/1.png": png()}, tmp_path)
    with pytest.raises(DataError, match="more than 100,000 folders"):
        open_source(tmp_path / "0")


def test_pictures_that_are_taken_twice_by_links_are_told(tmp_path: Path) -> None:
    as_folder({"p/all/1.png": png(1), "p/all/2.png": png(2), "p/3.png": png(3)}, tmp_path)
    assert open_source(tmp_path / "p").notes == []
    (tmp_path / "p" / "some").symlink_to("all")
    assert open_source(tmp_path / "p").notes == [
        "2 pictures are taken more than once, as links lead to them"
    ]
    assert len(open_source(tmp_path / "p").files) == 5


def linked_tar(path: Path) -> Path:
    as_tar(
        {
            "all/cats/1.png": png(1),
            "all/dogs/2.png": png(2),
            ".store/blob": png(3),
            "z/1.png": png(4),
        },
        path,
    )
    add_link(path, "subset/cats", "../all/cats")
    add_link(path, "subset/again", "cats")
    add_link(path, "subset/dogs/x.png", "../../.store/blob")
    add_link(path, "subset/dogs/hard.png", "all/dogs/2.png", tarfile.LNKTYPE)
    return path


def linked_zip(path: Path) -> Path:
    as_zip(
        {
            "all/cats/1.png": png(1),
            "all/dogs/2.png": png(2),
            ".store/blob": png(3),
            "z/1.png": png(4),
        },
        path,
    )
    links = {
        "cats": "../all/cats",
        "again": "cats",
        "dogs/x.png": "../../.store/blob",
        "dogs/hard.png": "../../all/dogs/2.png",
    }
    with zipfile.ZipFile(path, "a") as archive:
        for name, target in links.items():
            member = zipfile.ZipInfo(f"subset/{name}")
            member.create_system, member.external_attr = 3, 0o120777 << 16
            archive.writestr(member, target)
    return path


@pytest.mark.parametrize("pack", [linked_tar, linked_zip])
def test_links_in_an_archive_lead_to_its_own_files(
    pack: Callable[[Path], Path], tmp_path: Path
) -> None:
    source = open_source(pack(tmp_path / "archive"))
    assert contents(source) == {
        "all/cats/1.png": png(1),
        "all/dogs/2.png": png(2),
        "z/1.png": png(4),
        "subset/cats/1.png": png(1),
        "subset/again/1.png": png(1),
        "subset/dogs/x.png": png(3),
        "subset/dogs/hard.png": png(2),
    }
    assert source.notes == ["3 pictures are taken more than once, as links lead to them"]
    assert left_out(source) == {"hidden, or of the system": 1}
    for start in range(len(source.files)):
        assert [picture.file.name for picture in source.pictures(start)] == names(source)[start:]


def test_links_in_an_archive_never_lead_out_of_it(tmp_path: Path) -> None:
    path = as_tar({"a/1.png": png()}, tmp_path / "t.tar")
    outside = as_folder({"outside.png": png(9)}, tmp_path) / "outside.png"
    for name, target in {
        "a/abs.png": str(outside), "a/up.png": "../../outside.png", "a/self.png": "self.png", (
            "a/round"
        ): (
            "."
        ),
        "top": "a/..", "ping": "pong", "pong": "ping", "a/lost.png": "none.png", "long": (
            "x/"
        ) * 5000,
    }.items():  # fmt: skip
        add_link(path, name, target)
    source = open_source(path)
    assert names(source) == ["a/1.png"]
    assert left_out(source) == {
        "links that lead out of the archive": 2,
        "links to nothing": 5,
        "links to a folder that holds them": 2,
    }


@KINDS
def test_what_systems_keep_on_a_disk_is_none_of_the_pictures(pack: Pack, tmp_path: Path) -> None:
    files = {f"{kind}/{index}.png": png(index) for kind in ("cats", "dogs") for index in range(2)}
    theirs = {
        "cats/@eaDir/0.png/SYNOFILE_THUMB_M.png": png(), "$RECYCLE.BIN/S-1-5/old.png": png(), (
            "#recycle/b.png"
        ): png(),
        "System Volume Information/x": b"junk", "lost+found/7": png(),
    }  # fmt: skip
    source = open_source(pack(files | theirs, tmp_path / "source"))
    assert names(source) == sorted(files)
    assert source.classes.names == ["cats", "dogs"]
    assert list(left_out(source)) == ["hidden, or of the system"]


# ---- zip


def test_the_last_part_of_a_zip_is_known_for_one(tmp_path: Path) -> None:
    whole = as_zip({"a.png": png(), "b.png": png(2)}, tmp_path / "whole.zip").read_bytes()
    end = whole.rfind(b"PK\5\6")
    (tmp_path / "part.zip").write_bytes(
        whole[len(whole) // 2 : end + 4] + b"\1\0\1\0" + whole[end + 8 :]
    )
    with pytest.raises(DataError, match="one part of an archive in several files"):
        open_source(tmp_path / "part.zip")


def test_backslashes_separate_folders_where_no_slash_does(tmp_path: Path) -> None:
    files = {
        f"data\\{kind}\\{index}.png": png(index) for kind in ("cats", "dogs") for index in range(2)
    }
    files |= {"__MACOSX\\data\\x.png": b"junk", "data\\.cache\\x.png": b"junk"}
    source = open_source(as_zip(files, tmp_path / "w.zip"))
    assert source.classes.names == ["cats", "dogs"]
    assert names(source)[0] == "data/cats/0.png"
    assert left_out(source) == {"hidden, or of the system": 2}
    mixed = open_source(as_zip({"a/b.png": png(), "a\\b.png": png()}, tmp_path / "x.zip"))
    assert names(mixed) == ["a/b.png", "a\\b.png"]


def test_a_name_that_is_not_the_utf_8_it_says_is_read_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "b.zip").write_bytes(
        zip_bytes([(b"Bild \x81\x82.png", png(1)), ("ü.png".encode(), png(2))], flags=0x800)
    )
    source = open_source(tmp_path / "b.zip")
    assert [data for _, data in sorted(contents(source).items())] == [png(1), png(2)]


def test_of_files_with_one_name_the_last_is_taken_and_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(
        zip_bytes([(b"a.png", png(1)), (b"a.png", png(2)), (b"b.png", png(3))])
    )
    source = open_source(tmp_path / "a.zip")
    assert contents(source) == {"a.png": png(2), "b.png": png(3)}
    assert left_out(source) == {"names that come again in the archive": 1}


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_every_way_of_packing_that_zipfile_writes_is_read(method: int, tmp_path: Path) -> None:
    files = {f"{index}.png": png(index, size=64) for index in range(3)} | {
        "big.bmp": bytes(300_000)
    }
    assert {**contents_or_reasons(open_source(as_zip(files, tmp_path / "a.zip", method)))} == {
        **files,
        "big.bmp": "not a picture of a known format",
    }


def contents_or_reasons(source: Source) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    for picture in source.pictures(0):
        try:
            found[picture.file.name] = picture.read()
        except ValueError as err:
            found[picture.file.name] = str(err)
    return found


def change(path: Path, place: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(data)


def test_what_is_wrong_with_one_file_of_a_zip_is_the_reason_why_it_is_skipped(
    tmp_path: Path,
) -> None:
    path = as_zip({f"{index}.png": png(index, size=32) for index in range(6)}, tmp_path / "a.zip")
    with zipfile.ZipFile(path) as archive:
        first, start = [member.header_offset for member in archive.infolist()], archive.start_dir
    entry = 46 + len("0.png")
    change(path, start + 0 * entry + 8, b"\1")  # encrypted
    change(path, start + 1 * entry + 10, b"\x5d")  # zstd
    change(path, first[2] + 200, b"??")  # its bytes
    change(path, first[3], b"??")  # its own header
    change(path, start + 4 * entry + 20, b"\xff\xff\0\0")  # its packed size
    reasons = contents_or_reasons(open_source(path))
    assert [str(reasons[f"{index}.png"]).split(";")[0].split(",")[0] for index in range(5)] == [
        "it is encrypted",
        "it is packed with zstd",
        "it is not what was packed (its checksum differs)",
        "its place in the archive is damaged",
        "it overlaps with the next file of the archive",
    ]
    assert reasons["5.png"] == png(5, size=32)


def test_a_zip_of_more_than_4_gib_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        with archive.open("a.png", "w", force_zip64=True) as file:
            file.write(png(1))
        archive.fp.seek(2**32 + 5)  # type: ignore[union-attr]
        archive.start_dir = 2**32 + 5
        archive.writestr("b.png", png(2))
    assert contents(open_source(tmp_path / "a.zip")) == {"a.png": png(1), "b.png": png(2)}


def test_a_zip_behind_a_program_is_read(tmp_path: Path) -> None:
    data = as_zip({"a.png": png(1), "b.png": png(2)}, tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.exe").write_bytes(b"MZ a program" + data)
    assert contents(open_source(tmp_path / "a.exe")) == {"a.png": png(1), "b.png": png(2)}


@pytest.mark.parametrize(("field", "place"), [("files", 10), ("bytes", 12), ("offset", 16)])
def test_an_end_that_does_not_fit_the_list_is_damage(
    field: str, place: int, tmp_path: Path
) -> None:
    path = as_zip({f"{index}.png": png(index) for index in range(4)}, tmp_path / "a.zip")
    end = path.stat().st_size - 22
    before = path.read_bytes()[end + place]
    change(path, end + place, bytes([before ^ 1]))
    with pytest.raises(DataError, match="cannot be read"):
        open_source(path)


# ---- tar


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_gives_the_same(mode: str, format_: int, tmp_path: Path) -> None:
    files = {"short.png": png(1), "ü/" + "n" * 90 + ".png": png(2), "d/" * 60 + "x.png": png(3)}
    if format_ != tarfile.USTAR_FORMAT:
        files["l" * 150 + "/" + "n" * 200 + ".png"] = png(4)
    with tarfile.open(tmp_path / ("a.tar"), mode, format=format_) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), 1.5  # type: ignore[assignment]
            archive.addfile(member, io.BytesIO(data))
    assert contents(open_source(tmp_path / "a.tar")) == files


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_that_is_cut_off_anywhere_is_an_error_or_says_that_its_end_is_missing(
    mode: str, tmp_path: Path
) -> None:
    path = as_tar({f"{index}.png": png(index) for index in range(3)}, tmp_path / "a.tar", mode)
    data = path.read_bytes()
    whole = len(open_source(path).files)
    for size in range(1, len(data) - 1 if mode != "w" else 3 * 1024, 7 if mode != "w" else 64):
        path.write_bytes(data[:size])
        try:
            source = open_source(path)
        except DataError:
            continue
        assert len(source.files) == whole or "may have been cut off" in source.notes[0], size


def test_a_damaged_header_is_not_the_end_of_a_tar(tmp_path: Path) -> None:
    data = as_tar(
        {f"{index}.png": png(index) for index in range(3)}, tmp_path / "a.tar"
    ).read_bytes()
    place = data.index(b"1.png")
    for broken in (
        data[:place] + b"?" + data[place + 1 :],
        data[:place] + bytes(512) + data[place + 512 :],
    ):
        (tmp_path / "a.tar").write_bytes(broken)
        with pytest.raises(
            DataError, match=rf"damaged at byte {place + 512 * (broken[place] == 0):,}"
        ):
            open_source(tmp_path / "a.tar")


def test_tars_that_were_joined_are_read_to_the_last(tmp_path: Path) -> None:
    one, two = (as_tar({name: png()}, tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    (tmp_path / "both.tar").write_bytes(one + two)
    assert names(open_source(tmp_path / "both.tar")) == ["a.png", "b.png"]
    (tmp_path / "more.tar").write_bytes(one + b"something else" * 99)
    assert "what follows the end of the archive" in open_source(tmp_path / "more.tar").notes[0]


def test_a_flipped_bit_in_a_packed_tar_is_found_by_its_checksum(tmp_path: Path) -> None:
    path = as_tar({"a.bmp": b"BM" + bytes(5000), "b.png": png()}, tmp_path / "a.tar", "w:gz")
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # in the checksum itself
    path.write_bytes(data)
    with pytest.raises(DataError, match="cannot be read"):
        open_source(path)


def test_sparse_and_special_members_are_told(tmp_path: Path) -> None:
    blocks = [tar_block(b"a.png", 4), b"junk".ljust(512, b"\0"), tar_block(b"s.png", 0, b"S")]
    blocks += [
        tar_block(b"pax", 22, b"x"),
        b"22 GNU.sparse.major=1\n".ljust(512, b"\0"),
        tar_block(b"t.png", 0),
    ]
    blocks += [tar_block(b"fifo.png", 0, b"6"), bytes(1024)]
    (tmp_path / "a.tar").write_bytes(b"".join(blocks))
    source = open_source(tmp_path / "a.tar")
    assert names(source) == ["a.png"]
    assert left_out(source) == {"stored as sparse files": 2, "no ordinary files": 1}


def test_a_folder_that_may_not_be_looked_into_is_an_error(tmp_path: Path) -> None:
    as_folder({"p/a/1.png": png(), "p/b/1.png": png()}, tmp_path)
    (tmp_path / "p" / "a").chmod(0)
    if os.access(tmp_path / "p" / "a", os.R_OK):
        pytest.skip("this user may look into everything")
    with pytest.raises(PausedError, match="cannot be read: permission denied"):
        open_source(tmp_path / "p")
