"""Whatever happens to pictures, stores and the processes that read them:
one clear error, or the right pictures.
"""

import contextlib
import io
import itertools
import os
import random
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import MakePictures, noise_picture
from tests.full_disk import full_disk
from tests.tiny import TinyRun
from vdiff.cli import main
from vdiff.data import conversion, lmdb_images
from vdiff.data.lmdb_images import LmdbImages
from vdiff.data.loader import batches
from vdiff.data.prepare import PrepareCounts, prepare
from vdiff.data.seal import FILE
from vdiff.data.store import ImageStore, StoreWriter
from vdiff.errors import DataError, InUseError, MachineError, Stopped, UsageError, VdiffError
from vdiff.images import images

SECONDS = 180.0
"""Nothing may last so long; only hangs do."""

FORKS = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


def ending(work: Callable[[], object]) -> int:
    """How a child process that does `work` ends:
    0, the exit code of a VdiffError, 1 for another, or minus a signal.
    """
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            try:
                work()
                code = 0
            except VdiffError as err:
                code = err.exit_code
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def read_all(store: ImageStore) -> list[bytes]:
    return [store.read(index, size) for size in store.sizes for index in range(store.num_images)]


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# ---- a store that is damaged


@pytest.fixture
def big_store(make_pictures: MakePictures, tmp_path: Path) -> Path:
    """A store of 40 pages and more, so that its end is far from its beginning."""
    return prepare(make_pictures(60, size=(40, 40)), tmp_path / "store", sizes=[32]).store


@FORKS
@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9, 0.99])
def test_a_store_that_is_cut_off_while_it_is_read_is_a_data_error(
    share: float, big_store: Path
) -> None:
    file = big_store / FILE

    def work() -> None:
        opened = ImageStore(big_store)
        read_all(opened)
        os.truncate(file, int(file.stat().st_size * share))
        read_all(opened)

    assert ending(work) == DataError.exit_code


@FORKS
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_store_that_is_cut_off_before_another_process_opens_it_is_a_data_error(
    share: float, big_store: Path
) -> None:
    opened = ImageStore(big_store)
    os.truncate(big_store / FILE, int((big_store / FILE).stat().st_size * share))
    assert ending(lambda: read_all(opened)) == DataError.exit_code


@FORKS
@pytest.mark.parametrize("workers", [0, 1])
def test_a_store_that_is_cut_off_in_the_midst_of_a_training_is_a_data_error(
    workers: int, big_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmdb_images, "_CACHE_BYTES", 0)

    def work() -> None:
        source = LmdbImages(ImageStore(big_store), 32, 3)
        stream = batches(source, seed=0, stage=0, batch_size=8, num_workers=workers)
        next(stream)
        os.truncate(big_store / FILE, (big_store / FILE).stat().st_size // 3)
        for _ in range(20):
            next(stream)

    if workers:  # it is the worker that would be killed
        with pytest.raises(DataError, match="cut off"):
            work()
    else:
        assert ending(work) == DataError.exit_code


def test_a_store_that_is_replaced_while_it_is_read_stays_what_it_was(
    big_store: Path, tmp_path: Path
) -> None:
    opened = ImageStore(big_store)
    before = read_all(opened)
    noise_picture(40, 40, seed=1000).save(tmp_path / "pictures" / "000.png")
    prepare(tmp_path / "pictures", big_store, sizes=[8], force=True)
    assert read_all(opened) == before
    assert ImageStore(big_store).sizes == (8,)


def test_reading_leaves_no_trace_in_the_folder_of_the_store(store: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in (store, *store.iterdir())}
    read_all(ImageStore(store))
    assert {path.name: path.stat().st_mtime_ns for path in (store, *store.iterdir())} == before


def outcome(original: Path, damaged: Path, expected: object, writes: bool) -> str:
    """What becomes of a damaged store when it is read through,
    and gone on with when it was not finished.
    """
    try:
        opened = ImageStore(damaged)
        is_same = [read_all(opened), opened.metadata, opened.fingerprint] == expected
        if writes:
            with StoreWriter(damaged) as writer:
                writer.commit({"more": bytes(3000), "8-00000": None})
                writer.commit({"again": bytes(9000), "more": None})
                writer.records("")
    except DataError:
        return "found"
    except MachineError:
        return "found" if writes else "wrong"
    return "harmless" if is_same else "wrong"


def campaign(
    original: Path, flips: list[tuple[int, int]], scratch: Path, writes: bool = False
) -> Counter[str]:
    """Flip each of these bits (place in the file, bit), alone, and count what comes of it;
    crashes are counted too.
    """
    opened = ImageStore(original)
    expected = [read_all(opened), opened.metadata, opened.fingerprint]
    data = (original / FILE).read_bytes()
    scratch.mkdir(exist_ok=True)
    found: list[str] = []
    words = ("found", "harmless", "wrong")
    while len(found) < len(flips):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            for place, bit in flips[len(found) :]:
                signal.alarm(30)  # a hang is a crash too
                changed = bytearray(data)
                changed[place] ^= 1 << bit
                (scratch / "new").write_bytes(changed)
                # another file, as far as LMDB's map is concerned
                (scratch / "new").replace(scratch / FILE)
                os.write(
                    writing, bytes([words.index(outcome(original, scratch, expected, writes))])
                )
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            found += [words[number] for number in pipe.read()]
        if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            found.append(f"ended by {code} at {flips[len(found)]}")
    return Counter(found)


def some_bits(file: Path, count: int, seed: int) -> list[tuple[int, int]]:
    """Half of them anywhere, half in the heads of pages, where LMDB's own numbers are."""
    rng, size = random.Random(seed), file.stat().st_size
    anywhere = [rng.randrange(size) for _ in range(count // 2)]
    heads = [
        4096 * rng.randrange(size // 4096) + rng.randrange(160) for _ in range(count - count // 2)
    ]
    return [(place, rng.randrange(8)) for place in (*anywhere, *heads)]


@FORKS
def test_no_flipped_bit_crashes_a_reader_or_gives_a_wrong_picture(
    store: Path, tmp_path: Path
) -> None:
    counts = campaign(store, some_bits(store / FILE, 600, seed=1), tmp_path / "damaged")
    assert set(counts) == {"found", "harmless"}, counts
    assert counts["found"] > 100


@FORKS
def test_no_flipped_bit_crashes_a_writer_that_goes_on(store: Path, tmp_path: Path) -> None:
    with StoreWriter(
        store
    ) as writer:  # pages that are free again, for which LMDB keeps a tree of its own
        for index in range(8):
            writer.commit({f"x{index}": bytes(5000), f"x{index - 1}": None})
        writer.commit({"x7": None})
    counts = campaign(
        store, some_bits(store / FILE, 400, seed=2), tmp_path / "damaged", writes=True
    )
    assert set(counts) == {"found", "harmless"}, counts


@pytest.mark.parametrize(
    "changed",
    [
        {"sizes": [-8, 16], "crcs": {-8: "0" * 96, 16: "0" * 96}},
        {"sizes": [0], "crcs": {0: "0" * 96}},
        {"sizes": []},
        {"sizes": [], "crcs": {}},
        {"sizes": [8, 8, 16]},
        {"count": -1},
        {"count": 10**12, "labels": None, "crcs": {}},
        {"labels": [-1] * 12},
        {"class_names": None},
        {"channels": 2},
    ],
)
def test_metadata_with_poison_in_it_is_a_data_error(
    changed: dict[str, object], store: Path
) -> None:
    metadata = ImageStore(store).metadata
    assert metadata is not None
    with StoreWriter(store) as writer:
        writer.commit({"vdiff": metadata.model_copy(update=changed).to_json()})
    with pytest.raises(DataError):
        read_all(ImageStore(store))


def test_a_damaged_store_has_the_exit_code_of_data(
    store: Path, make_pictures: MakePictures, capsys: pytest.CaptureFixture[str]
) -> None:
    os.truncate(store / FILE, 10_000)
    arguments = [
        "prepare",
        str(store.parent / "pictures"),
        "--size",
        "8",
        "--size",
        "16",
        "--out",
        str(store),
    ]
    assert main(arguments) == 3
    err = capsys.readouterr().err
    assert "cut off" in err
    assert "vdiff prepare --force" in err
    assert main([*arguments, "--force"]) == 0


def test_a_training_goes_on_with_a_store_that_has_moved(tiny_run: TinyRun, store: Path) -> None:
    tiny_run.base(run="unbroken")
    with pytest.raises(Stopped):
        tiny_run.chain(stop_after=3).train()
    moved = store.rename(store.with_name("elsewhere"))
    assert tiny_run.chain(f"data.path={moved}").train().updates == 5
    assert tiny_run.hashes() == tiny_run.hashes("unbroken")


# ---- pictures


def as_bytes(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def png(
    width: int, height: int, depth: int, kind: int, data: bytes = b"", more: bytes = b""
) -> bytes:
    """A PNG with this header; the colours of `kind` 2 are RGB, of 0 grey. more:
    chunks before the data.
    """
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    chunks = (
        chunk(b"IHDR", header) + more + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


RED, BLUE = (255, 0, 0), (0, 0, 255)


def plain(colour: tuple[int, ...], mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (16, 16), colour)


def animation(kind: str) -> bytes:
    options = {"lossless": True} if kind == "WEBP" else {}
    return as_bytes(
        plain(RED), kind, save_all=True, append_images=[plain(BLUE)], duration=100, **options
    )


def deep_png() -> bytes:
    row = b"\0" + struct.pack(">3H", 65535, 0, 0) * 16
    return png(16, 16, 16, 2, row * 16)


def palette_with_alpha() -> bytes:
    picture = plain(RED).quantize(4)
    return as_bytes(picture, transparency=bytes([255]))


def turned() -> bytes:
    """A camera's picture, red above and blue below when it is shown as it was taken:
    lying on its side in the file.
    """
    picture, exif = plain(RED), Image.Exif()
    picture.paste(BLUE, (8, 0, 16, 16))
    exif[0x0112] = 6
    return as_bytes(picture, "PNG", exif=exif)


ODD: dict[str, bytes] = {
    "animated.gif": animation("GIF"),
    "animated.png": animation("PNG"),
    "animated.webp": animation("WEBP"),
    "cmyk.jpg": as_bytes(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100),
    "cmyk.tif": as_bytes(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "TIFF"),
    "deep.png": deep_png(),
    "jpeg_called.png": as_bytes(plain(RED), "JPEG", quality=100),
    "png_called.jpg": as_bytes(plain(RED)),
    "palette_alpha.png": palette_with_alpha(),
    "several.jpg": as_bytes(
        plain(RED), "MPO", save_all=True, append_images=[plain(BLUE)], quality=100
    ),
}
"""Files that show nothing but red, in a way of their own."""

BAD: dict[str, bytes] = {
    "cut.jpg": as_bytes(noise_picture(32, 32, seed=0), "JPEG")[:-300],
    "cut.png": as_bytes(noise_picture(32, 32, seed=0))[:-300],
    "empty.png": b"",
    "floats.tif": as_bytes(Image.new("F", (16, 16), 0.5), "TIFF"),
    "page.jpg": b"<!DOCTYPE html><title>404 Not Found</title>",
    "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "zeros.gif": bytes(4096),
}


def test_odd_pictures_are_stored_as_they_look_and_bad_ones_are_listed_with_their_reason(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, data in {**ODD, **BAD}.items():
        (folder / name).write_bytes(data)
    report = prepare(folder, tmp_path / "store", sizes=[16], max_bad=0.5)
    opened = ImageStore(report.store)
    assert (report.num_images, report.num_skipped) == (len(ODD), len(BAD))
    for index, name in enumerate(sorted(ODD)):
        pixels = images.decode(opened.read(index, 16), 3).reshape(3, -1).T.astype(int)
        assert np.abs(pixels - RED).max() <= 4, name
    assert report.skipped_file is not None
    lines = [line.split("\t") for line in report.skipped_file.read_text().splitlines()]
    assert [name for name, _ in lines] == sorted(BAD)
    assert all(reason for _, reason in lines)


def test_a_picture_that_lies_on_its_side_is_stored_upright(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "turned.png").write_bytes(turned())
    pixels = images.decode(
        ImageStore(prepare(tmp_path / "pictures", tmp_path / "store", sizes=[16]).store).read(
            0, 16
        ),
        3,
    )
    assert (pixels[:, :8].reshape(3, -1).T == RED).all()
    assert (pixels[:, 8:].reshape(3, -1).T == BLUE).all()


def bombs() -> dict[str, bytes]:
    """Small files that ask for much memory."""
    zeros = zlib.compress(bytes(400 * 2**20), 9)
    gif = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6)
    gif += b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x4c\x01\x00;"
    bmp = as_bytes(plain(RED), "BMP")
    jpeg = bytearray(as_bytes(plain(RED), "JPEG"))
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = struct.pack(">HH", 65500, 65500)
    tiff = bytearray(as_bytes(plain(RED), "TIFF"))
    for tag in (256, 257):
        struct.pack_into(
            "<HHII", tiff, tiff.index(struct.pack("<HHI", tag, 4, 1)), tag, 4, 1, 2**30
        )
    return {
        "wide.png": png(60_000, 60_000, 8, 2),
        "wide.gif": gif,
        "wide.bmp": bmp[:18] + struct.pack("<ii", 60_000, 60_000) + bmp[26:],
        "wide.jpg": bytes(jpeg),
        "wide.tif": bytes(tiff),
        "wide.ppm": b"P6 60000 60000 255\n",
        "text.png": png(16, 16, 8, 0, bytes(17 * 16), chunk(b"zTXt", b"Comment\0\0" + zeros)),
        "text.webp.png": png(
            16, 16, 8, 0, bytes(17 * 16), chunk(b"iTXt", b"Comment\0\1\0\0\0" + zeros)
        ),
        "colours.png": png(16, 16, 8, 0, bytes(17 * 16), chunk(b"iCCP", b"name\0\0" + zeros)),
        "data.png": png(16, 16, 8, 0, bytes(400 * 2**20)),
        "narrow.png": png(2**30, 1, 8, 0),
    }


MEASURE = """
import re, sys
from pathlib import Path
from vdiff.images import images
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        print(path.name, images.decode(path.read_bytes(), 3).shape)
    except ValueError as err:
        print(path.name, err)
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def test_picture_bombs_are_refused_from_their_headers_in_little_memory(tmp_path: Path) -> None:
    folder = tmp_path / "bombs"
    folder.mkdir()
    for name, data in bombs().items():
        (folder / name).write_bytes(data)
    arguments = [sys.executable, "-c", MEASURE, str(folder)]
    ran = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=SECONDS)
    *lines, kilobytes = ran.stdout.splitlines()
    assert len(lines) == len(bombs())
    accepted = {line.split()[0] for line in lines if "(3, 16, 16)" in line}
    # small, whatever lies in them
    assert accepted <= {"data.png", "colours.png", "text.png", "text.webp.png"}, lines
    assert int(kilobytes) * 1024 < 500 * 10**6, lines


def as_zip(files: dict[str, bytes], path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def as_tar(files: dict[str, bytes], path: Path) -> None:
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def as_lying_zip(files: dict[str, bytes], path: Path) -> None:
    """An archive whose list says that all files but the first one have 100 bytes."""
    as_zip(files, path)
    data = path.read_bytes()
    for content in list(files.values())[1:]:
        data = data.replace(struct.pack("<L", len(content)), struct.pack("<L", 100))
    path.write_bytes(data)


PREPARE = """
import re, sys, torch
from pathlib import Path
from vdiff.data.prepare import prepare
def most():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = most()
for archive in map(Path, sys.argv[1:]):
    result = prepare(archive, archive.with_suffix(".store"), sizes=[8], max_bad=1.0, num_threads=4)
    skipped = result.skipped_file.read_text().splitlines()
    print(archive.name, result.num_images, *skipped, sep="; ")
    print(most() - before)
"""


def test_bombs_in_archives_are_refused_from_their_beginning_in_little_memory(
    tmp_path: Path,
) -> None:
    good, zeros = {"good.png": as_bytes(plain(RED))}, bytes(120 * 2**20)
    rows = bytes((30_000 // 8 + 1) * 30_000)
    wide = {
        "1.png": png(30_000, 30_000, 1, 0, rows),
        "2.jpg": bombs()["wide.jpg"],
        "3.gif": bombs()["wide.gif"],
    }
    junk = {f"{number}.png": zeros for number in range(2)}
    # a sort of picture that must be read to its end before anything is known of it
    late = {
        f"{number}.tif": b"II*\0" + struct.pack("<L", len(zeros)) + zeros for number in range(2)
    }
    made: dict[str, dict[str, bytes]] = {"wide": wide, "junk": junk, "late": late}
    names = []
    for name, files in made.items():
        as_zip(good | files, tmp_path / f"{name}-zip.zip")
        as_tar(good | files, tmp_path / f"{name}-tar.tgz")
        names += [f"{name}-zip.zip", f"{name}-tar.tgz"]
    as_lying_zip(good | {"a.tif": late["0.tif"] + zeros}, tmp_path / "lies.zip")
    order = [name for name in names if not name.startswith("late")] + ["lies.zip"]
    order += [name for name in names if name.startswith("late")]
    ran = subprocess.run(
        [sys.executable, "-c", PREPARE, *(str(tmp_path / name) for name in order)],
        capture_output=True,
        text=True,
        check=True,
        timeout=SECONDS,
    )
    lines = ran.stdout.splitlines()
    told, grown = (
        dict(zip(order, lines[::2], strict=True)),
        dict(zip(order, map(int, lines[1::2]), strict=True)),
    )
    assert all(line.split("; ")[1] == "1" for line in told.values()), told
    assert all(
        told[name].count("pixels) exceeds") == 3 for name in ("wide-zip.zip", "wide-tar.tgz")
    ), told
    assert all(
        told[name].count("not a picture") == 2 for name in ("junk-zip.zip", "junk-tar.tgz")
    ), told
    assert max(grown[name] for name in order if not name.startswith("late")) < 100_000, grown
    assert max(grown.values()) < 220_000, grown  # one of 120 MiB at a time


def test_the_largest_transparent_picture_needs_no_third_copy_of_itself(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    Image.new("RGBA", (5000, 5000)).save(tmp_path / "large" / "a.png", compress_level=1)
    arguments = [sys.executable, "-c", MEASURE, str(tmp_path / "large")]
    ran = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=SECONDS)
    shape, kilobytes = ran.stdout.splitlines()
    assert shape == "a.png (3, 5000, 5000)"
    # from, to, and the array of the latter
    assert int(kilobytes) * 1024 < 5000 * 5000 * (4 + 4 + 3) + 100 * 10**6


def test_of_large_pictures_only_one_is_in_memory_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(12):
        noise_picture(80, 80, seed=index).save(folder / f"{index}.png")
    now: list[int] = []
    seen: list[int] = []
    encoded = as_bytes(noise_picture(8, 8, seed=0))

    def encode(*arguments: Any) -> bytes:
        now.append(1)
        seen.append(len(now))
        time.sleep(0.02)
        now.pop()
        return encoded

    monkeypatch.setattr(conversion, "_CHUNK_PICTURES", 1)
    monkeypatch.setattr(images, "encode_picture", encode)
    prepare(folder, tmp_path / "small", sizes=[8], num_threads=4)
    assert max(seen) > 1
    seen.clear()
    monkeypatch.setattr(conversion, "_LARGE_PIXELS", 80 * 80 - 1)
    prepare(folder, tmp_path / "large", sizes=[8], num_threads=4)
    assert seen == [1] * 12


# ---- making a store


def command(pictures: Path, store: Path, *more: str) -> "subprocess.Popen[str]":
    arguments = [
        sys.executable,
        "-m",
        "vdiff",
        "prepare",
        str(pictures),
        "--size",
        "8",
        "--out",
        str(store),
        *more,
    ]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


HOLD = """
import sys, time
from pathlib import Path
from vdiff.data import conversion
from vdiff.data.prepare import prepare
conversion._CHUNK_PICTURES = 1
def wait(progress):
    if progress.done == 3:
        print("holding", flush=True)
        time.sleep(600)
prepare(Path(sys.argv[1]), Path(sys.argv[2]), sizes=[8], on_progress=wait)
"""


def test_the_second_of_two_prepares_names_the_first_and_a_dead_one_is_in_nobodys_way(
    make_pictures: MakePictures, tmp_path: Path
) -> None:
    folder, store = make_pictures(), tmp_path / "store"
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder, store], stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "holding\n"
        # without a look at the pictures
        with pytest.raises(InUseError, match=f"process {first.pid} on"):
            prepare(tmp_path / "no pictures", store, sizes=[8])
        second = command(folder, store)
        said = second.communicate(timeout=SECONDS)[0]
        assert second.returncode == InUseError.exit_code
        assert f"process {first.pid} on" in said
    finally:
        first.kill()
        first.communicate()
    third = command(folder, store)
    assert third.communicate(timeout=SECONDS)[0]
    assert third.returncode == 0
    assert ImageStore(store).num_images == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "store"]
    assert sorted(path.name for path in store.iterdir()) == [
        "data.mdb",
        "preview.png",
        "source.json",
        "store.json",
    ]


class Killer:
    """Ends its process, by SIGKILL, just before the n-th thing that is done to the disk,
    or to the progress.
    """

    def __init__(self, place: Path, moment: int | None) -> None:
        self._place, self._moment = str(place), moment
        self.count = 0
        sys.addaudithook(self._hear)

    def __call__(self, progress: PrepareCounts | None = None) -> None:
        if self.count == self._moment:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event.split(".")[0] in ("open", "os", "shutil") and self._place in str(arguments):
            self()


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every picture is converted alone and committed at once."""
    monkeypatch.setattr(conversion, "_CHUNK_PICTURES", 1)
    monkeypatch.setattr(conversion, "_COMMIT_SECONDS", -1.0)


@FORKS
@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("force", [False, True])
def test_killed_at_any_moment_the_same_command_makes_the_same_store_and_leaves_nothing_else(
    force: bool, make_pictures: MakePictures, tmp_path: Path
) -> None:
    """force: there was another store before, which may only go when the new one is there."""
    folder, place = make_pictures(5), tmp_path / "work"
    wanted = ImageStore(prepare(folder, tmp_path / "unbroken", sizes=[8]).store).fingerprint
    older = ImageStore(prepare(folder, tmp_path / "older", sizes=[16]).store).fingerprint

    def begin() -> None:
        if force:
            prepare(folder, place / "store", sizes=[16], force=True)

    def work(moment: int | None) -> Killer:
        killer = Killer(place, moment)
        prepare(folder, place / "store", sizes=[8], force=force, on_progress=killer)
        return killer

    def count() -> None:
        (tmp_path / "count").write_text(str(work(None).count))

    beside = ["data.mdb", "preview.png", "source.json", "store.json"]
    place.mkdir()
    begin()
    assert ending(count) == 0
    moments = int((tmp_path / "count").read_text())
    assert moments > 20
    for moment in random.Random(0).sample(range(moments), 16) + list(range(moments - 10, moments)):
        begin_anew(place)
        begin()
        assert ending(lambda moment=moment: work(moment)) == -signal.SIGKILL
        places = (place / "store", *place.glob(".store.partial-old-*"))
        whole = [path for path in places if (path / FILE).exists()]
        left = {ImageStore(path).fingerprint for path in whole}
        assert not force or left & {wanted, older}
        report = prepare(folder, place / "store", sizes=[8], force=force)
        assert ImageStore(report.store).fingerprint == wanted
        assert [path.name for path in place.iterdir()] == ["store"], moment
        assert sorted(path.name for path in report.store.iterdir()) == beside, moment


def begin_anew(place: Path) -> None:
    for path in sorted(place.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


@FORKS
@pytest.mark.usefixtures("small_steps")
def test_killed_within_a_commit_the_same_command_makes_the_same_store(
    make_pictures: MakePictures, tmp_path: Path
) -> None:
    folder, store = make_pictures(40), tmp_path / "store"
    wanted = ImageStore(prepare(folder, tmp_path / "unbroken", sizes=[8]).store).fingerprint
    rng = random.Random(0)
    for _ in range(12):
        child = os.fork()
        if child == 0:
            prepare(folder, store, sizes=[8])
            os._exit(0)
        time.sleep(rng.uniform(0, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ImageStore(prepare(folder, store, sizes=[8]).store).fingerprint == wanted
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "store", "unbroken"]


@pytest.mark.parametrize("limit", [1, 4096, 40_000, 70_000, 100_000, 150_000, 250_000])
def test_a_disk_that_is_full_at_any_point_harms_nothing_that_is_there(
    limit: int, make_pictures: MakePictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "_COMMIT_BYTES", 10_000)
    folder, store = make_pictures(40, size=(64, 64)), tmp_path / "store"
    prepare(folder, store, sizes=[8])
    before = contents(store)
    with full_disk(limit), pytest.raises(MachineError) as caught:
        prepare(folder, store, sizes=[64], force=True)
    assert str(store) in str(caught.value)
    assert contents(store) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "store"]


def test_neither_a_link_to_a_store_nor_the_store_is_replaced(
    make_pictures: MakePictures, tmp_path: Path
) -> None:
    folder = make_pictures()
    elsewhere = prepare(folder, tmp_path / "elsewhere", sizes=[8]).store
    before = contents(elsewhere)
    (tmp_path / "store").symlink_to(elsewhere)
    with pytest.raises(UsageError, match="store` is there already, as a link"):
        prepare(folder, tmp_path / "store", sizes=[16], force=True)
    assert (tmp_path / "store").readlink() == elsewhere
    assert contents(elsewhere) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "pictures", "store"]


# ---- processes that load pictures


class Dull:
    """Pictures of 48 KB that come at once; the process that reads them writes down who it is."""

    shape = (3, 128, 128)
    num_classes = 0
    num_images = 10
    num_workers = 1
    fingerprint = "dull"

    def __init__(self, note: Path) -> None:
        self._note = note

    def __getitem__(self, index: int, /) -> tuple[images.Pixels, int]:
        if not self._note.exists():  # once: the test reads it while the worker goes on
            self._note.write_text(str(os.getpid()))
        return np.full(self.shape, index, np.uint8), -1


@pytest.mark.usefixtures("forked_workers")
def test_the_end_of_a_worker_is_told_where_a_batch_is_missing_and_nowhere_else(
    tmp_path: Path,
) -> None:
    stream = batches(Dull(tmp_path / "pid"), seed=0, stage=0, batch_size=2, num_workers=1)
    next(stream)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        time.sleep(0.05)  # an update, or a save: nothing may happen here
    with pytest.raises(MachineError, match="died") as caught:
        list(itertools.islice(stream, 10))
    assert "`data.workers` to 0" in caught.value.fix


def test_too_little_shared_memory_is_a_machine_error_with_advice(tmp_path: Path) -> None:
    """A limit on the size of files is one on pieces of shared memory too."""
    before = set(Path("/dev/shm").glob("torch_*"))
    stream = batches(Dull(tmp_path / "pid"), seed=0, stage=0, batch_size=8, num_workers=1)
    with (
        full_disk(100_000),
        pytest.raises(MachineError, match="cannot be handed to the trainer") as caught,
    ):
        next(stream)
    left = [
        path
        for path in set(Path("/dev/shm").glob("torch_*")) - before
        if (tmp_path / "pid").read_text() in path.name
    ]
    assert not left
    assert "--shm-size" in caught.value.fix
    assert "`data.workers` to 0" in caught.value.fix


class Buggy(Dull):
    """Pictures with a mistake of ours in them."""

    def __getitem__(self, index: int, /) -> tuple[images.Pixels, int]:
        raise RuntimeError("a mistake")


@pytest.mark.usefixtures("forked_workers")
def test_a_mistake_of_ours_in_a_worker_is_not_blamed_on_the_machine(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a mistake"):
        next(batches(Buggy(tmp_path / "pid"), seed=0, stage=0, batch_size=2, num_workers=1))
