"""A picture that the machine cannot read for now is not a bad one:
another try, or a stop from which it goes on.
"""

import errno
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from PIL import Image, WebPImagePlugin

from tests.conftest import MakePictures, noise_picture
from vdiff.cli import main
from vdiff.data import conversion, patience
from vdiff.data.opened import forget
from vdiff.data.prepare import PrepareSummary, prepare
from vdiff.data.sources import tar_file
from vdiff.data.store import ImageStore
from vdiff.errors import DataError, PausedError
from vdiff.images import images

SECONDS = 180.0

PASSING = [
    errno.EMFILE,
    errno.ENFILE,
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EAGAIN,
    errno.ENOMEM,
]
LASTING = [errno.EACCES, errno.EPERM]


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every picture is converted alone and committed at once, and nobody waits long."""
    monkeypatch.setattr(conversion, "_CHUNK_PICTURES", 1)
    monkeypatch.setattr(conversion, "_COMMIT_SECONDS", -1.0)
    monkeypatch.setattr(patience, "WAITS", (0.0, 0.0, 0.0))


class Refusal:
    """Opening a file of this name fails the first `times` times."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, name: str, error: Exception, times: int = 1000
    ) -> None:
        self.tries = 0
        self.times = times
        opened = io.FileIO

        def refuse(path: Any, *arguments: Any) -> io.FileIO:
            if Path(path).name == name:
                self.tries += 1
                if self.tries <= self.times:
                    raise error
            return opened(path, *arguments)

        monkeypatch.setattr(io, "FileIO", refuse)


def fingerprint(report: PrepareSummary) -> str:
    return ImageStore(report.store).fingerprint


@pytest.mark.parametrize("number", [*PASSING, *LASTING], ids=errno.errorcode.get)
def test_what_the_machine_refuses_stops_with_all_that_was_done_and_the_same_command_goes_on(
    number: int, make_pictures: MakePictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_pictures(12)
    unbroken = fingerprint(prepare(folder, tmp_path / "unbroken", sizes=[8]))
    with monkeypatch.context() as patch:
        refusal = Refusal(patch, "007.png", OSError(number, os.strerror(number)))
        with pytest.raises(PausedError, match=r"`007\.png` cannot be read: ") as caught:
            prepare(folder, tmp_path / "store", sizes=[8], max_bad=1.0, num_threads=2)
        assert refusal.tries == (1 if number in LASTING else 4)
    assert (caught.value.exit_code, os.strerror(number).lower() in caught.value.problem) == (
        6,
        True,
    )
    assert "the same command then goes on" in caught.value.fix
    assert not (tmp_path / "store").exists()
    report = prepare(folder, tmp_path / "store", sizes=[8], max_bad=1.0)
    assert (report.resumed_at, report.num_images, report.num_skipped) == (7, 12, 0)
    assert fingerprint(report) == unbroken


def test_what_stops_at_the_first_picture_leaves_nothing(
    make_pictures: MakePictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_pictures(3)
    Refusal(monkeypatch, "000.png", PermissionError(errno.EACCES, "a test"))
    with pytest.raises(PausedError):
        prepare(folder, tmp_path / "store", sizes=[8])
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


@pytest.mark.parametrize("number", PASSING, ids=errno.errorcode.get)
def test_what_passes_soon_costs_nothing_but_a_note(
    number: int, make_pictures: MakePictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_pictures(5)
    unbroken = fingerprint(prepare(folder, tmp_path / "unbroken", sizes=[8]))
    with monkeypatch.context() as patch:
        Refusal(patch, "003.png", OSError(number, os.strerror(number)), times=2)
        report = prepare(folder, tmp_path / "store", sizes=[8])
    assert (report.num_images, report.num_skipped) == (5, 0)
    assert report.notes == [("003.png", f"needed another try: {os.strerror(number).lower()}")]
    assert fingerprint(report) == unbroken


def test_the_command_says_which_picture_and_ends_with_6(
    make_pictures: MakePictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make_pictures(4)
    Refusal(monkeypatch, "002.png", OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
    assert (
        main(["prepare", str(folder), "--size", "8", "--out", str(tmp_path / "store"), "-q"]) == 6
    )
    said = capsys.readouterr().err
    assert "`002.png` cannot be read: too many open files" in said
    assert "ulimit -n" in said


def test_tries_are_some_seconds_apart() -> None:
    assert 1 <= sum((0.1, 0.4, 1.5)) <= 5
    assert patience.WAITS == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "number", [errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP], ids=errno.errorcode.get
)
def test_a_file_that_is_gone_or_none_is_skipped_with_the_reason(
    number: int, make_pictures: MakePictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_pictures(4)
    Refusal(monkeypatch, "002.png", OSError(number, os.strerror(number)))
    report = prepare(folder, tmp_path / "store", sizes=[8], max_bad=0.5)
    assert (report.num_images, report.num_skipped) == (3, 1)


def test_a_folder_that_cannot_be_listed_for_now_is_not_called_damaged(
    make_pictures: MakePictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_pictures(4)

    def refuse(path: Any) -> Any:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PausedError, match="cannot be read"):
        prepare(folder, tmp_path / "store", sizes=[8])


def test_a_tar_file_whose_disk_fails_in_the_midst_stops_and_goes_on(
    make_pictures: MakePictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(make_pictures(8, size=(64, 64)), "a")
    unbroken = fingerprint(prepare(tmp_path / "a.tar", tmp_path / "unbroken", sizes=[8]))
    read = tar_file._Data.read
    taken: set[int] = set()

    def fail(data: Any, size: int = -1, /) -> bytes:
        taken.add(id(data))
        if len(taken) > 5:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        kept.append(data)
        return read(data, size)

    kept: list[Any] = []  # so that none of them has the name of an earlier one
    with monkeypatch.context() as patch:
        patch.setattr(tar_file._Data, "read", fail)
        with pytest.raises(PausedError):
            prepare(tmp_path / "a.tar", tmp_path / "store", sizes=[8], num_threads=1)
    report = prepare(tmp_path / "a.tar", tmp_path / "store", sizes=[8])
    assert 0 < report.resumed_at < 8
    assert fingerprint(report) == unbroken


# ---- memory


def no_memory(*unused: object, **unused_too: object) -> Any:
    raise MemoryError


def out_of_memory(*unused: object, **unused_too: object) -> Any:
    raise OSError("out of memory error when reading image file")


def broken(*unused: object, **unused_too: object) -> Any:
    raise OSError("broken data stream when reading image file")


def nothing_is_free(num_bytes: int) -> bool:
    return False


WHERE: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "reading": (io, "FileIO", no_memory),
    "decoding": (Image.Image, "convert", no_memory),
    "Pillow's words": (Image.Image, "convert", out_of_memory),
    "libjpeg's words": (Image.Image, "convert", broken),
    "resizing": (Image.Image, "resize", no_memory),
    "encoding": (Image.Image, "save", no_memory),
    "the encoder's words": (Image.Image, "save", out_of_memory),
}


@pytest.mark.parametrize("where", WHERE)
def test_when_memory_runs_out_it_stops_and_nothing_is_skipped(
    where: str, make_pictures: MakePictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_pictures(6)
    for index in range(6):
        noise_picture(12, 10, seed=index, mode="RGBA").save(folder / f"{index:03d}.png")
    unbroken = fingerprint(prepare(folder, tmp_path / "unbroken", sizes=[8]))
    stop_at(3, folder, tmp_path / "store")
    holder, name, effect = WHERE[where]
    with monkeypatch.context() as patch:
        patch.setattr(holder, name, effect)
        patch.setattr(conversion, "has_memory", nothing_is_free)
        with pytest.raises(PausedError, match="memory ran out"):
            prepare(folder, tmp_path / "store", sizes=[8], max_bad=1.0)
    report = prepare(folder, tmp_path / "store", sizes=[8], max_bad=1.0)
    assert (report.resumed_at, report.num_images, report.num_skipped) == (3, 6, 0)
    assert fingerprint(report) == unbroken


def stop_at(count: int, folder: Path, store: Path) -> None:
    """Prepare the first `count` pictures: the next one cannot be read."""
    with pytest.MonkeyPatch.context() as patch:
        Refusal(patch, f"{count:03d}.png", OSError(errno.EIO, "a test"))
        with pytest.raises(PausedError):
            prepare(folder, store, sizes=[8], num_threads=1)


def test_memory_that_was_short_for_a_moment_costs_nothing_but_a_note(
    make_pictures: MakePictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resize, fails = Image.Image.resize, [True, True, False]

    def sometimes(*arguments: Any) -> Any:
        return no_memory() if fails and fails.pop() else resize(*arguments)

    folder = make_pictures(3)
    fails.reverse()
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "resize", sometimes)
        patch.setattr(conversion, "has_memory", nothing_is_free)
        report = prepare(folder, tmp_path / "store", sizes=[8], num_threads=1)
    assert (report.num_images, report.num_skipped) == (3, 0)
    assert report.notes == [("000.png", "needed another try: memory ran out")]


def test_a_picture_that_asks_for_absurd_memory_is_its_own_fault(
    make_pictures: MakePictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_pictures(3)
    noise_picture(40, 40, seed=0).save(folder / "001.webp")
    monkeypatch.setattr(WebPImagePlugin.WebPImageFile, "load", no_memory)
    report = prepare(folder, tmp_path / "store", sizes=[8], max_bad=0.5)
    assert (report.num_images, report.num_skipped) == (3, 1)
    assert report.skipped_file is not None
    assert (
        report.skipped_file.read_text()
        == "001.webp\tit takes more memory than a picture of its size should\n"
    )


def test_a_preview_that_cannot_be_drawn_for_lack_of_memory_is_no_bug(
    make_pictures: MakePictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vdiff.data import preview

    def damaged(*unused: object) -> Any:
        raise ValueError("could not create decoder object")

    folder = make_pictures(3)
    with monkeypatch.context() as patch:
        patch.setattr(images, "decode", damaged)
        patch.setattr(preview, "has_memory", nothing_is_free)
        with pytest.raises(PausedError, match="memory ran out"):
            prepare(folder, tmp_path / "store", sizes=[8])
    assert prepare(folder, tmp_path / "store", sizes=[8]).resumed_at == 3


def test_a_reason_is_never_empty(
    make_pictures: MakePictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty one once made a stored picture of nothing."""
    folder = make_pictures(3)
    (folder / "001.webp").write_bytes(b"RIFF0000WEBPVP8 ")

    def nothing(*unused: object) -> Any:
        raise ValueError

    monkeypatch.setattr(WebPImagePlugin.WebPImageFile, "_open", nothing)
    report = prepare(folder, tmp_path / "store", sizes=[8], max_bad=0.5)
    assert report.skipped_file is not None
    assert report.skipped_file.read_text() == "001.webp\ta damaged WebP: its data make no sense\n"
    assert report.num_images == 3


def test_a_thread_that_cannot_be_started_is_the_machines_trouble(
    make_pictures: MakePictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    folder = make_pictures(3)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(PausedError, match="no further thread"):
            prepare(folder, tmp_path / "store", sizes=[8])
    assert prepare(folder, tmp_path / "store", sizes=[8]).num_images == 3


def test_a_store_that_cannot_be_opened_for_now_is_not_thrown_away(
    make_pictures: MakePictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_pictures(6)
    stop_at(4, folder, tmp_path / "store")
    for error in (
        lmdb.Error("data.mdb: Too many open files"),
        lmdb.MemoryError("data.mdb: Cannot allocate memory"),
    ):

        def refuse(*unused: object, error: lmdb.Error = error, **unused_too: object) -> Any:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(lmdb, "open", refuse)
            with pytest.raises(PausedError, match="cannot write the image store"):
                prepare(folder, tmp_path / "store", sizes=[8])
    assert prepare(folder, tmp_path / "store", sizes=[8]).resumed_at == 4


@pytest.mark.parametrize("number", [*PASSING, *LASTING], ids=errno.errorcode.get)
def test_a_store_that_cannot_be_read_for_now_is_neither_damaged_nor_thrown_away(
    number: int, make_pictures: MakePictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun, finished, and with its pages looked at before it is opened."""
    pread = os.pread

    def refuse(descriptor: int, *place: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("data.mdb"):
            raise OSError(number, os.strerror(number))
        return pread(descriptor, *place)

    folder = make_pictures(6)
    stop_at(4, folder, tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", refuse)
        with pytest.raises(PausedError, match=os.strerror(number).lower()):
            prepare(folder, tmp_path / "store", sizes=[8])
    assert prepare(folder, tmp_path / "store", sizes=[8]).resumed_at == 4
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", refuse)
        for use in (ImageStore, partial(prepare, folder, sizes=[8])):
            with pytest.raises(PausedError, match=os.strerror(number).lower()):
                use(tmp_path / "copy")
    opened, place = ImageStore(tmp_path / "copy"), tmp_path / "copy"
    forget(place)
    if number in PASSING:
        with monkeypatch.context() as patch:
            patch.setattr(lmdb, "open", partial(refuse_lmdb, f"{place}: {os.strerror(number)}"))
            with pytest.raises(MACHINE, match=os.strerror(number)):
                opened.read(0, 8)
    opened.verify()


MACHINE = (PausedError, lmdb.MemoryError)


def refuse_lmdb(reason: str, *unused: object, **unused_too: object) -> Any:
    raise (lmdb.MemoryError if "memory" in reason else lmdb.Error)(reason)


LIMITED = """
import re, resource, sys
import torch
from pathlib import Path
from vdiff.data import conversion
from vdiff.data.prepare import prepare
from vdiff.errors import MachineError
conversion._CHUNK_PICTURES = 1
kind, folder, store = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
limit, workers = int(sys.argv[4]), 4
if kind == "memory":
    now = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (now + limit, now + limit))
else:
    now = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (now + limit, now + limit))
try:
    report = prepare(folder, store, sizes=[32], max_bad=1.0, num_threads=workers)
    print("done", report.num_images, report.num_skipped)
except MachineError as err:  # exit code 6, with everything kept
    print("paused", err.problem)
"""


def limited(kind: str, folder: Path, store: Path, limit: int) -> str:
    arguments = [sys.executable, "-c", LIMITED, kind, str(folder), str(store), str(limit)]
    ran = subprocess.run(arguments, capture_output=True, text=True, timeout=SECONDS)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


@pytest.mark.parametrize("megabytes", [90, 180, 300])
def test_with_little_memory_good_pictures_are_stored_or_it_stops(
    megabytes: int, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(16):
        kind = ("png", "jpg", "webp", "tif")[index % 4]
        Image.radial_gradient("L").convert("RGB").resize((1500, 1500)).save(
            folder / f"{index:02}.{kind}"
        )
    said = limited("memory", folder, tmp_path / "store", megabytes * 10**6)
    assert re.fullmatch(r"done 16 0\n|paused .*\n", said), said
    report = prepare(folder, tmp_path / "store", sizes=[32])
    assert (report.num_images, report.num_skipped) == (16, 0)


@pytest.mark.parametrize("files", [0, 2])
def test_with_few_open_files_good_pictures_are_stored_or_it_stops(
    files: int, make_pictures: MakePictures, tmp_path: Path
) -> None:
    folder = make_pictures(60)
    said = limited("files", folder, tmp_path / "store", files)
    assert re.fullmatch(r"done 60 0\n|paused .*\n", said), said
    report = prepare(folder, tmp_path / "store", sizes=[32])
    assert (report.num_images, report.num_skipped) == (60, 0)


def test_a_damaged_picture_is_still_a_bad_one(make_pictures: MakePictures, tmp_path: Path) -> None:
    folder = make_pictures(9)
    (folder / "003.png").write_bytes((folder / "003.png").read_bytes()[:100])
    with pytest.raises(DataError, match="003"):
        prepare(folder, tmp_path / "store", sizes=[8])
    assert np.asarray(
        ImageStore(prepare(folder, tmp_path / "store", sizes=[8], max_bad=0.2).store).sizes
    ) == [8]
