"""Pictures that have changed since a store was made are seen,
those that were only touched are not made again.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.archives import Pack, as_folder, as_tar, as_zip
from vdiff.cli import main
from vdiff.data import conversion
from vdiff.data.metadata import Metadata
from vdiff.data.origin import ORIGIN, Origin
from vdiff.data.prepare import PrepareCounts, PrepareSummary, forecast, prepare
from vdiff.data.sources import open_source
from vdiff.data.store import METADATA, ImageStore, StoreWriter
from vdiff.errors import MachineError, UsageError
from vdiff.images import images

KINDS = pytest.mark.parametrize("pack", [as_folder, as_zip, as_tar])
RED, BLUE = (255, 0, 0), (0, 0, 255)


def bmp(colour: tuple[int, int, int]) -> bytes:
    """A file whose size does not tell its colour."""
    import io

    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "BMP")
    return file.getvalue()


def pictures(*colours: tuple[int, int, int]) -> dict[str, bytes]:
    return {f"{index}.bmp": bmp(colour) for index, colour in enumerate(colours)}


def colours(store: Path) -> list[tuple[int, ...]]:
    opened = ImageStore(store)
    return [
        tuple(images.decode(opened.read(index, 8), 3)[:, 0, 0].tolist())
        for index in range(opened.num_images)
    ]


class Heard(list[str]):
    """What `prepare` tells."""

    def __call__(self, text: str) -> None:
        self.append(text)


def prepared(source: Path, **more: object) -> tuple[PrepareSummary, Heard]:
    heard = Heard()
    report = prepare(source, source.with_name("store"), sizes=[8], tell=heard, **more)  # type: ignore[arg-type]
    return report, heard


def replace(pack: Pack, files: dict[str, bytes], source: Path) -> None:
    """Write other pictures into the place of a source, a moment later as far as
    clocks of disks can tell.
    """
    times = source.stat().st_mtime_ns
    while (pack(files, source)).stat().st_mtime_ns == times and source.is_file():
        pass


@KINDS
def test_pictures_of_the_same_size_that_have_changed_are_made_again(
    pack: Pack, tmp_path: Path
) -> None:
    source = pack(pictures(RED, RED, RED), tmp_path / "source")
    prepared(source)
    replace(pack, pictures(RED, BLUE, RED), source)
    report, heard = prepared(source)
    assert not report.already_done
    assert colours(report.store) == [RED, BLUE, RED]
    assert "have changed since" in heard[-1]
    assert "is made again" in heard[-1]
    assert prepared(source)[0].already_done


@KINDS
def test_nothing_is_done_again_and_it_is_told_by_what_that_was_seen(
    pack: Pack, tmp_path: Path
) -> None:
    source = pack(pictures(RED, BLUE), tmp_path / "source")
    prepared(source)
    report, heard = prepared(source)
    assert (report.already_done, heard) == (True, [])
    assert report.decided_by == open_source(source).decided_by
    assert forecast(source, report.store, sizes=[8]).decided_by == report.decided_by


@pytest.mark.parametrize("pack", [as_folder, as_tar])
def test_pictures_that_were_only_touched_are_read_once_more_and_not_made_again(
    pack: Pack, tmp_path: Path
) -> None:
    source = pack(pictures(RED, BLUE), tmp_path / "source")
    before = (prepared(source)[0].store / "data.mdb").stat()
    for path in [source, *source.rglob("*")] if source.is_dir() else [source]:
        os.utime(path, ns=(1, 1))
    origin = (tmp_path / "store" / ORIGIN).read_bytes()
    assert forecast(source, tmp_path / "store", sizes=[8]).already_done
    assert (tmp_path / "store" / ORIGIN).read_bytes() == origin  # a plan writes nothing
    report, heard = prepared(source)
    assert (report.already_done, report.decided_by) == (True, "content, which was read again")
    assert "read again" in heard[0]
    assert prepared(source)[1] == []  # the new times are kept
    assert (report.store / "data.mdb").stat() == before


def test_a_zip_that_was_packed_again_need_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = as_zip(pictures(RED, BLUE), tmp_path / "source")
    prepared(source)
    as_zip(pictures(RED, BLUE), source)
    monkeypatch.setattr(conversion, "have_marks", None)
    report, heard = prepared(source)
    assert (report.already_done, report.decided_by, heard) == (
        True,
        "the checksums in the archive",
        [],
    )


def test_a_copy_of_the_pictures_is_as_good_as_they_are(tmp_path: Path) -> None:
    source = as_folder(pictures(RED, BLUE), tmp_path / "source")
    store = prepared(source)[0].store
    shutil.copytree(source, tmp_path / "copy")
    assert prepare(tmp_path / "copy", store, sizes=[8]).already_done
    assert prepare(as_folder({}, tmp_path) / "source", store, sizes=[8]).already_done


def test_the_command_names_force_and_how_it_was_decided(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = as_folder(pictures(RED, BLUE), tmp_path / "source")
    arguments = ["prepare", str(source), "--size", "8", "--out", str(tmp_path / "store")]
    assert main(arguments) == 0
    capsys.readouterr()
    assert main(arguments) == 0
    said = (
        f"`{tmp_path}/store` holds these pictures already, by names, sizes and times: "
        "nothing to do; `--force` makes"
    )
    assert said in capsys.readouterr().err
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decided_by"] == "names, sizes and times"
    assert main([*arguments, "--dry-run"]) == 0
    assert (
        "is there already, by names, sizes and times: nothing would be done without `--force`"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("damaged", [None, b"{}", b"[]"])
def test_a_store_of_an_older_vdiff_is_kept_by_names_and_sizes(
    damaged: bytes | None, tmp_path: Path
) -> None:
    source = as_folder(pictures(RED, RED), tmp_path / "source")
    report, _ = prepared(source)
    (report.store / ORIGIN).unlink() if damaged is None else (report.store / ORIGIN).write_bytes(
        damaged
    )
    as_folder(pictures(BLUE, BLUE), source)
    report, _ = prepared(source)
    assert (report.already_done, report.decided_by, colours(report.store)) == (
        True,
        "names and sizes",
        [RED, RED],
    )
    assert report.hints == [
        (
            "an older vdiff made the store, which kept no times: "
            "if pictures changed since, type `--force`"
        )
    ]
    assert colours(prepared(source, force=True)[0].store) == [BLUE, BLUE]


def test_what_an_older_vdiff_left_out_is_told_where_its_store_is_kept(tmp_path: Path) -> None:
    source = as_folder(pictures(RED, RED), tmp_path / "source")
    store = prepared(source)[0].store
    (store / ORIGIN).unlink()
    as_folder({"scan": bmp(RED), "more/2.bmp": bmp(BLUE)}, tmp_path / "more")
    as_folder({"scan": bmp(RED)}, source)
    (source / "more").symlink_to("../more")
    report, _ = prepared(source)
    assert report.already_done
    assert "left out 3 pictures; `--force` takes them" in report.hints[0]


def test_the_fingerprint_that_training_compares_does_not_know_of_times(tmp_path: Path) -> None:
    source = as_folder(pictures(RED, BLUE), tmp_path / "source")
    before = ImageStore(prepared(source)[0].store).fingerprint
    os.utime(source / "0.bmp", ns=(1, 1))
    assert ImageStore(prepared(source, force=True)[0].store).fingerprint == before


def test_a_store_of_other_names_or_settings_is_not_replaced(tmp_path: Path) -> None:
    source = as_folder(pictures(RED, BLUE), tmp_path / "source")
    prepared(source)
    as_folder({"9.bmp": bmp(RED)}, source)
    with pytest.raises(UsageError, match="other pictures"):
        prepared(source)


def test_times_that_cannot_be_kept_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = as_folder(pictures(RED), tmp_path / "source")
    prepared(source)
    os.utime(source / "0.bmp", ns=(1, 1))

    def refuse(*unused: object) -> None:
        raise MachineError("the disk is read-only", "")

    monkeypatch.setattr(Origin, "write", refuse)
    for _ in range(2):
        assert prepared(source)[0].decided_by == "content, which was read again"


# ---- a start that was stopped


def stopped(source: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`prepare`, ended when so many pictures were done and each of them was written to the disk."""

    def stop(progress: PrepareCounts) -> None:
        if progress.done >= count:
            raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "_CHUNK_PICTURES", 1)
    monkeypatch.setattr(conversion, "_COMMIT_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, source.with_name("store"), sizes=[8], on_progress=stop)


@KINDS
@pytest.mark.parametrize("changed", [0, 5])
def test_a_picture_that_changed_while_prepare_was_stopped_is_never_mixed_with_others(
    changed: int, pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pack(pictures(*[RED] * 6), tmp_path / "source")
    stopped(source, 3, monkeypatch)
    after = [RED] * 6
    after[changed] = BLUE
    replace(pack, pictures(*after), source)
    report, _ = prepared(source)
    assert colours(report.store) == after
    assert report.resumed_at == (0 if changed == 0 else 3)
    assert prepared(source)[0].already_done


@KINDS
def test_a_stopped_start_is_gone_on_with_by_a_copy_of_the_pictures(
    pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pack(pictures(*[RED, BLUE] * 3), tmp_path / "source")
    stopped(source, 3, monkeypatch)
    source.rename(tmp_path / "moved")
    (shutil.copytree if (tmp_path / "moved").is_dir() else shutil.copyfile)(
        tmp_path / "moved", source
    )
    report, _ = prepared(source)
    assert (report.resumed_at, colours(report.store)) == (3, [RED, BLUE] * 3)


def test_a_start_of_an_older_vdiff_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It kept nothing by which its pictures could be compared."""
    source = as_folder(pictures(*[RED] * 6), tmp_path / "source")
    stopped(source, 3, monkeypatch)
    with StoreWriter(tmp_path / "store.partial") as writer:
        writer.commit({conversion.JOB: b"0" * 64})
    assert prepared(source)[0].resumed_at == 0


def test_metadata_is_what_it_was(tmp_path: Path) -> None:
    """A store can be given to somebody with an older vdiff."""
    store = prepared(as_folder(pictures(RED), tmp_path / "source"))[0].store
    with StoreWriter(store) as writer:
        document = json.loads(writer.get(METADATA) or b"")
    assert set(document) == {*Metadata.model_fields, "checksum"}
    assert document["source"] == open_source(tmp_path / "source").fingerprint


def test_prepare_needs_neither_torch_nor_half_a_gigabyte(tmp_path: Path) -> None:
    source = as_folder(pictures(RED, BLUE), tmp_path / "source")
    program = (
        "import sys; from pathlib import Path; from vdiff.data.prepare import prepare\n"
        "prepare(Path(sys.argv[1]), Path(sys.argv[2]), sizes=[8])\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(source), str(tmp_path / "store")], check=True
    )
    assert (tmp_path / "store" / "preview.png").exists()
