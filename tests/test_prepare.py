"""Pictures become a store: which, in what order, how they look, and what a stop,
a bad file or a full disk leaves.
"""

import fcntl
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import MakePictures, noise_picture
from tests.full_disk import full_disk
from vdiff.data import conversion
from vdiff.data.prepare import PrepareCounts, forecast, prepare
from vdiff.data.store import ImageStore, StoreWriter
from vdiff.errors import DataError, InUseError, MachineError, Stopped, UsageError
from vdiff.images import images


def pixels(store: Path, index: int, size: int, channels: int = 3) -> images.Pixels:
    return images.decode(ImageStore(store).read(index, size), channels)


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, f"top/{file.relative_to(folder)}")
    return path


def tarred(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.add(file, f"top/{file.relative_to(folder)}")
    return path


def stop_after(count: int, error: BaseException) -> Callable[[PrepareCounts], None]:
    def report(progress: PrepareCounts) -> None:
        if progress.done >= count:
            raise error

    return report


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every picture is converted alone and committed at once."""
    monkeypatch.setattr(conversion, "_CHUNK_PICTURES", 1)
    monkeypatch.setattr(conversion, "_COMMIT_SECONDS", -1.0)


def test_pictures_are_stored_in_the_order_of_their_paths_and_sizes(
    make_pictures: MakePictures, tmp_path: Path
) -> None:
    folder = make_pictures(40, size=(16, 16))
    report = prepare(folder, tmp_path / "store", sizes=[16, 8, 16], num_threads=3)
    assert (report.num_images, report.num_skipped, report.sizes, report.resumed_at) == (
        40,
        0,
        (8, 16),
        0,
    )
    assert report.bytes == (tmp_path / "store" / "data.mdb").stat().st_size
    for index in range(40):
        original = np.asarray(noise_picture(16, 16, seed=index)).transpose(2, 0, 1)
        assert np.array_equal(pixels(report.store, index, 16), original)
        assert pixels(report.store, index, 8).shape == (3, 8, 8)


def test_only_the_finished_store_is_left(make_pictures: MakePictures, tmp_path: Path) -> None:
    prepare(make_pictures(), tmp_path / "store", sizes=[8])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "store"]
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [
        "data.mdb",
        "preview.png",
        "source.json",
        "store.json",
    ]


def test_the_preview_shows_the_largest_pictures(
    make_pictures: MakePictures, tmp_path: Path
) -> None:
    prepare(make_pictures(2), tmp_path / "store", sizes=[8, 32])
    with Image.open(tmp_path / "store" / "preview.png") as preview:
        assert preview.size == (2 * 66 + 2, 66 + 2)


def test_class_folders_give_labels_in_the_order_of_their_names(
    make_pictures: MakePictures, tmp_path: Path
) -> None:
    report = prepare(make_pictures(6, classes=("zebra", "ant")), tmp_path / "store", sizes=[8])
    labels = ImageStore(report.store).labels
    assert labels is not None
    assert (report.class_names, labels.tolist()) == (["ant", "zebra"], [0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize("classes", [("",), ("only",), ("", "one"), ("one", "two/deep")])
def test_other_folders_give_no_labels(
    classes: tuple[str, ...], make_pictures: MakePictures, tmp_path: Path
) -> None:
    report = prepare(make_pictures(4, classes=classes), tmp_path / "store", sizes=[8])
    assert (report.num_images, report.class_names, ImageStore(report.store).labels) == (4, [], None)


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_gives_the_store_that_its_folder_gives(
    pack: Callable[[Path, Path], Path], make_pictures: MakePictures, tmp_path: Path
) -> None:
    folder = make_pictures(classes=("a", "b"))
    archive = pack(folder, tmp_path / "archive")
    of_folder = prepare(folder, tmp_path / "one", sizes=[8])
    of_archive = prepare(archive, tmp_path / "two", sizes=[8])
    assert of_archive.class_names == ["a", "b"]
    assert ImageStore(of_folder.store).fingerprint == ImageStore(of_archive.store).fingerprint


def test_nothing_is_ever_extracted_from_an_archive(tmp_path: Path) -> None:
    file = io.BytesIO()
    noise_picture(8, 8, seed=0).save(file, "PNG")
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        for name in ("../../outside.png", "/tmp/outside.png", "inside.png"):
            member = tarfile.TarInfo(name)
            member.size = len(file.getvalue())
            archive.addfile(member, io.BytesIO(file.getvalue()))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    before = sorted(tmp_path.parent.iterdir())
    assert prepare(tmp_path / "evil.tar", tmp_path / "store", sizes=[8]).num_images == 3
    assert sorted(tmp_path.parent.iterdir()) == before


def test_what_is_hidden_or_no_picture_or_a_store_is_left_out(
    make_pictures: MakePictures, tmp_path: Path
) -> None:
    folder = make_pictures(3)
    for name in ("notes.txt", ".hidden.png", "__MACOSX/000.png", ".cache/000.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"junk")
    prepare(folder, folder / "store", sizes=[8])
    assert prepare(folder, tmp_path / "other", sizes=[8]).num_images == 3


def test_names_need_not_be_utf_8(make_pictures: MakePictures, tmp_path: Path) -> None:
    odd = make_pictures(2).rename(tmp_path / os.fsdecode(b"jos\xe9"))
    store = prepare(odd, odd / os.fsdecode(b"\xff"), sizes=[8]).store
    ImageStore(store).verify()
    assert prepare(odd, store, sizes=[8]).already_done
    assert prepare(odd, store, sizes=[16], force=True).num_images == 2


def test_grey_colour_and_transparent_pictures_mix(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for mode in ("L", "RGB", "RGBA"):
        noise_picture(9, 8, seed=0, mode=mode).save(folder / f"{mode}.png")
    for channels in (1, 3, 4):
        report = prepare(folder, tmp_path / f"store{channels}", sizes=[8], channels=channels)
        assert [pixels(report.store, index, 8, channels).shape for index in range(3)] == [
            (channels, 8, 8)
        ] * 3
        assert ImageStore(report.store).summary()["channels"] == channels


@pytest.mark.parametrize("encoding", ["png", "webp", "jpeg"])
def test_pictures_are_stored_in_the_encoding_that_was_asked_for(
    encoding: images.Encoding, make_pictures: MakePictures, tmp_path: Path
) -> None:
    report = prepare(make_pictures(1), tmp_path / "store", sizes=[8], encoding=encoding, quality=90)
    store = ImageStore(report.store)
    with Image.open(io.BytesIO(store.read(0, 8))) as picture:
        assert picture.format == encoding.upper()
    assert store.summary()["quality"] == (90 if encoding == "jpeg" else None)


def test_unreadable_pictures_are_skipped_and_listed(
    make_pictures: MakePictures, tmp_path: Path
) -> None:
    folder = make_pictures(9)
    (folder / "003.png").write_bytes((folder / "003.png").read_bytes()[:100])
    (folder / "005.png").write_bytes(b"")
    report = prepare(folder, tmp_path / "store", sizes=[8], max_bad=0.25)
    assert (report.num_images, report.num_skipped) == (7, 2)
    assert report.skipped_file is not None
    lines = [line.split("\t") for line in report.skipped_file.read_text().splitlines()]
    assert [name for name, _ in lines] == ["003.png", "005.png"]
    assert lines[1][1] == "the file is empty"
    assert np.array_equal(pixels(report.store, 3, 8), pixels(tmp_path / "store", 3, 8))


def test_labels_and_pictures_stay_together_when_some_are_skipped(
    make_pictures: MakePictures, tmp_path: Path
) -> None:
    folder = make_pictures(6, size=(8, 8), classes=("a", "b"))
    (folder / "a" / "002.png").write_bytes(b"junk")
    report = prepare(folder, tmp_path / "store", sizes=[8], max_bad=0.5)
    labels = ImageStore(report.store).labels
    assert labels is not None
    assert labels.tolist() == [0, 0, 1, 1, 1]
    for place, seed in enumerate([0, 4, 1, 3, 5]):
        assert np.array_equal(
            pixels(report.store, place, 8), np.asarray(noise_picture(8, 8, seed)).transpose(2, 0, 1)
        )


def test_too_many_unreadable_pictures_leave_nothing(
    make_pictures: MakePictures, tmp_path: Path
) -> None:
    folder = make_pictures(20)
    (folder / "007.png").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"1 of 20 .*`007\.png`: not a picture") as caught:
        prepare(folder, tmp_path / "store", sizes=[8])
    assert "--max-bad" in caught.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_only_unreadable_pictures_are_an_error_whatever_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").write_bytes(b"junk")
    with pytest.raises(DataError, match="1 of 1"):
        prepare(tmp_path / "pictures", tmp_path / "store", sizes=[8], max_bad=1.0)


def test_a_name_cannot_break_the_list_of_skipped_files(
    make_pictures: MakePictures, tmp_path: Path
) -> None:
    folder = make_pictures(3)
    (folder / "new\nline\tand tab.png").write_bytes(b"")
    (Path(os.fsdecode(os.fsencode(folder) + b"/not-utf8-\xff.png"))).write_bytes(b"")
    report = prepare(folder, tmp_path / "store", sizes=[8], max_bad=1.0)
    assert report.skipped_file is not None
    names = [line.split("\t")[0] for line in report.skipped_file.read_text().splitlines()]
    assert names == [r"new\nline\tand tab.png", r"not-utf8-\xff.png"]


@pytest.mark.parametrize("content", [None, b"", b"just text"])
def test_a_source_without_pictures_writes_nothing(content: bytes | None, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir() if content is None else source.write_bytes(content)
    for action in (forecast, prepare):
        with pytest.raises(DataError):
            action(source, tmp_path / "deep" / "store", sizes=[8])
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_missing_source_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no picture folder or archive"):
        prepare(tmp_path / "nothing", tmp_path / "store", sizes=[8])


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_truncated_archive_is_one_clear_error(
    pack: Callable[[Path, Path], Path], make_pictures: MakePictures, tmp_path: Path
) -> None:
    archive = pack(make_pictures(), tmp_path / "archive")
    archive.write_bytes(archive.read_bytes()[:2000])
    with pytest.raises(DataError, match="archive"):
        prepare(archive, tmp_path / "store", sizes=[8])


@pytest.mark.parametrize(
    "wrong",
    [
        {"sizes": []}, {"sizes": [0]}, {"channels": 2}, {"encoding": "bmp"}, {"resampling": (
            "nearest"
        )},
        {"encoding": "jpeg", "channels": 4}, {"encoding": "jpeg", "quality": 0},
    ],
)  # fmt: skip
def test_settings_that_do_not_exist_are_refused(
    wrong: dict[str, object], make_pictures: MakePictures
) -> None:
    folder = make_pictures(1)
    with pytest.raises(UsageError):
        prepare(folder, folder.with_name("store"), **{("sizes"): [8], **wrong})  # type: ignore[arg-type]
    assert not folder.with_name("store.partial").exists()


def test_the_same_command_again_does_nothing_and_says_so(
    make_pictures: MakePictures, tmp_path: Path
) -> None:
    folder = make_pictures()
    prepare(folder, tmp_path / "store", sizes=[8])
    before = (tmp_path / "store" / "data.mdb").stat()
    again = prepare(folder, tmp_path / "store", sizes=[8])
    assert (again.already_done, again.num_images) == (True, 12)
    assert (tmp_path / "store" / "data.mdb").stat() == before
    assert forecast(folder, tmp_path / "store", sizes=[8]).already_done


def test_another_command_replaces_a_store_only_with_force(
    make_pictures: MakePictures, tmp_path: Path
) -> None:
    folder = make_pictures()
    prepare(folder, tmp_path / "store", sizes=[8])
    with pytest.raises(UsageError) as caught:
        prepare(folder, tmp_path / "store", sizes=[16])
    assert "--force" in caught.value.fix
    assert prepare(folder, tmp_path / "store", sizes=[16], force=True).sizes == (16,)
    assert ImageStore(tmp_path / "store").sizes == (16,)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "store"]


def test_a_damaged_store_is_made_again_only_with_force(
    make_pictures: MakePictures, tmp_path: Path
) -> None:
    folder = make_pictures()
    prepare(folder, tmp_path / "store", sizes=[8])
    (tmp_path / "store" / "data.mdb").write_bytes(b"damaged")
    with pytest.raises(DataError):
        prepare(folder, tmp_path / "store", sizes=[8])
    assert prepare(folder, tmp_path / "store", sizes=[8], force=True).num_images == 12


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_holds_other_things_is_never_replaced(
    force: bool, make_pictures: MakePictures
) -> None:
    folder = make_pictures()
    with pytest.raises(UsageError, match="vdiff did not make it"):
        prepare(folder, folder, sizes=[8], force=force)
    assert len(list(folder.iterdir())) == 12


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Stopped(15, "stopped")])
@pytest.mark.usefixtures("small_steps")
def test_a_stopped_start_is_gone_on_with(
    error: BaseException, make_pictures: MakePictures, tmp_path: Path
) -> None:
    folder = make_pictures(classes=("a", "b"))
    (folder / "a" / "002.png").write_bytes(b"junk")
    whole = prepare(folder, tmp_path / "whole", sizes=[8, 16], max_bad=0.1)
    with pytest.raises(type(error)):
        prepare(
            folder, tmp_path / "store", sizes=[8, 16], max_bad=0.1, on_progress=stop_after(4, error)
        )
    assert not (tmp_path / "store").exists()
    report = prepare(folder, tmp_path / "store", sizes=[8, 16], max_bad=0.1)
    assert report.resumed_at == 5
    assert (report.num_images, report.num_skipped) == (11, 1)
    assert ImageStore(report.store).fingerprint == ImageStore(whole.store).fingerprint
    assert (report.store / "skipped.tsv").read_text() == (whole.store / "skipped.tsv").read_text()


@pytest.mark.usefixtures("small_steps")
def test_changed_pictures_or_settings_begin_anew(
    make_pictures: MakePictures, tmp_path: Path
) -> None:
    def interrupted(sizes: list[int]) -> None:
        with pytest.raises(KeyboardInterrupt):
            prepare(
                folder,
                tmp_path / "store",
                sizes=sizes,
                on_progress=stop_after(4, KeyboardInterrupt()),
            )

    folder = make_pictures()
    interrupted([8])
    interrupted([16])
    noise_picture(40, 40, seed=99).save(folder / "000.png")
    report = prepare(folder, tmp_path / "store", sizes=[16])
    assert (report.resumed_at, report.num_images) == (0, 12)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_is_gone_on_with_too(
    pack: Callable[[Path, Path], Path], make_pictures: MakePictures, tmp_path: Path
) -> None:
    folder = make_pictures()
    archive = pack(folder, tmp_path / "archive")
    with pytest.raises(KeyboardInterrupt):
        prepare(
            archive, tmp_path / "store", sizes=[8], on_progress=stop_after(7, KeyboardInterrupt())
        )
    report = prepare(archive, tmp_path / "store", sizes=[8])
    assert report.resumed_at == 7
    whole = prepare(folder, tmp_path / "whole", sizes=[8])
    assert ImageStore(report.store).fingerprint == ImageStore(whole.store).fingerprint


@pytest.mark.usefixtures("small_steps")
def test_a_damaged_beginning_is_no_beginning(make_pictures: MakePictures, tmp_path: Path) -> None:
    folder = make_pictures()
    with pytest.raises(KeyboardInterrupt):
        prepare(
            folder, tmp_path / "store", sizes=[8], on_progress=stop_after(4, KeyboardInterrupt())
        )
    os.truncate(tmp_path / "store.partial" / "data.mdb", 5000)
    assert prepare(folder, tmp_path / "store", sizes=[8]).resumed_at == 0


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize(
    ("prefix", "found", "changed"),
    [
        ("vdiff-part-", b"{", b"["),
        ("vdiff-part-", b'"labels": [0]', b'"labels": [1]'),
        ("8-", b"IDAT", b"IDAU"),
    ],
)
def test_a_beginning_with_a_changed_record_is_no_beginning(
    prefix: str, found: bytes, changed: bytes, make_pictures: MakePictures, tmp_path: Path
) -> None:
    folder = make_pictures(classes=("a", "b"))
    with pytest.raises(KeyboardInterrupt):
        prepare(
            folder, tmp_path / "store", sizes=[8], on_progress=stop_after(4, KeyboardInterrupt())
        )
    with StoreWriter(tmp_path / "store.partial") as writer:
        key, data = next(iter(writer.records(prefix).items()))
        assert found in data
        writer.commit({key: data.replace(found, changed, 1)})
    assert prepare(folder, tmp_path / "store", sizes=[8]).resumed_at == 0
    store = ImageStore(tmp_path / "store")
    assert store.labels is not None
    assert store.labels.tolist() == [0] * 6 + [1] * 6
    assert all(store.read(index, 8) for index in range(12))


def test_a_store_that_was_finished_but_not_renamed_is_only_renamed(
    make_pictures: MakePictures, tmp_path: Path
) -> None:
    folder = make_pictures()
    prepare(folder, tmp_path / "store", sizes=[8])
    (tmp_path / "store").rename(tmp_path / "store.partial")
    report = prepare(folder, tmp_path / "store", sizes=[8])
    assert (report.resumed_at, report.already_done, report.num_images) == (12, False, 12)


def test_a_killed_process_leaves_a_beginning_and_no_lock(
    make_pictures: MakePictures, tmp_path: Path
) -> None:
    folder = make_pictures()
    program = (
        "import os, sys; from pathlib import Path\n"
        "from vdiff.data import conversion; from vdiff.data.prepare import prepare\n"
        "conversion._CHUNK_PICTURES, conversion._COMMIT_SECONDS = 1, -1\n"
        "kill = lambda progress: progress.done == 5 and os.kill(os.getpid(), 9)\n"
        "prepare(Path(sys.argv[1]), Path(sys.argv[2]), sizes=[8], on_progress=kill)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, str(folder), str(tmp_path / "store")], check=False
    )
    assert killed.returncode == -9
    report = prepare(folder, tmp_path / "store", sizes=[8])
    assert (report.resumed_at, report.num_images) == (5, 12)
    assert not (tmp_path / "store" / ".lock").exists()


def test_two_cannot_prepare_one_store_at_a_time(
    make_pictures: MakePictures, tmp_path: Path
) -> None:
    (tmp_path / "store.partial").mkdir()
    with (tmp_path / "store.partial" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 4711 on elsewhere")
        lock.flush()
        with pytest.raises(InUseError, match="process 4711 on elsewhere"):
            prepare(make_pictures(), tmp_path / "store", sizes=[8])


def test_a_full_disk_is_a_machine_error_and_leaves_nothing(
    make_pictures: MakePictures, tmp_path: Path
) -> None:
    folder = make_pictures(40, size=(64, 64))
    with (
        full_disk(300_000),
        pytest.raises(MachineError, match=r"cannot write .*bytes, [\d,]+ are free"),
    ):
        prepare(folder, tmp_path / "store", sizes=[64])
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_a_place_that_cannot_be_written_to_is_a_machine_error(
    make_pictures: MakePictures, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="file"):
        prepare(make_pictures(), tmp_path / "file" / "store", sizes=[8])


def test_the_plan_tells_what_would_be_made_and_makes_nothing(
    make_pictures: MakePictures, tmp_path: Path
) -> None:
    folder = make_pictures(classes=("a", "b"))
    planned = forecast(folder, tmp_path / "deep" / "store", sizes=[16, 8])
    assert (planned.num_images, planned.class_names, planned.sizes) == (12, ["a", "b"], (8, 16))
    assert planned.free_bytes > planned.estimated_bytes > 0
    assert not planned.already_done
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_progress_counts_up_to_the_end(make_pictures: MakePictures, tmp_path: Path) -> None:
    seen: list[PrepareCounts] = []
    prepare(make_pictures(40), tmp_path / "store", sizes=[8], on_progress=seen.append)
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
    assert seen[-1] == PrepareCounts(done=40, skipped=0, total=40)


def test_work_ahead_is_bounded_and_comes_back_in_order() -> None:
    taken: list[int] = []

    def count() -> "list[int]":
        for number in range(100):
            taken.append(number)
            yield number

    results = conversion.in_order(lambda number: number * number, count(), 2)
    assert next(results) == 0
    assert len(taken) <= 4
    assert list(results) == [number * number for number in range(1, 100)]
