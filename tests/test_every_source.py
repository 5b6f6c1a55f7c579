"""What every kind of source must do: the same pictures in the same order, classes,
marks and stores, however packed.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.archives import as_folder, as_tar, as_zip, png
from vdiff import cli
from vdiff.data import SOURCES
from vdiff.data.prepare import prepare
from vdiff.data.sources import Source, open_source
from vdiff.data.store import ImageStore
from vdiff.errors import DataError, MachineError, Stopped

SIZE = 8
NAMES = [f"{kind}/{index}.png" for kind in ("cat", "dog") for index in range(4)]

Pack = Callable[[dict[str, bytes], Path], Path]

EXPECTED: dict[str, Pack] = {
    "folder": lambda files, path: as_folder(files, path / "pictures"),
    "tar": lambda files, path: as_tar(files, path / "pictures.tar"),
    "zip": lambda files, path: as_zip(files, path / "pictures.zip"),
}
"""For every kind: files by name, colour pictures of 8 pixels in two class folders,
packed into a folder.

A source without an entry here fails every test below.
"""

every_kind = pytest.mark.parametrize("kind", list(SOURCES))


def packed(kind: str, path: Path, first_seed: int = 0) -> Path:
    path.mkdir(exist_ok=True)
    return EXPECTED[kind](
        {name: png(first_seed + index, SIZE) for index, name in enumerate(NAMES)}, path
    )


def opened(kind: str, path: Path, first_seed: int = 0) -> Source:
    return open_source(packed(kind, path, first_seed))


def stored(path: Path) -> list[bytes]:
    store = ImageStore(path)
    return [store.read(index, SIZE) for index in range(store.num_images)]


@every_kind
def test_it_is_read_by_its_kind(kind: str, tmp_path: Path) -> None:
    assert type(opened(kind, tmp_path)) is SOURCES.find(kind)


@every_kind
def test_it_lists_all_pictures_with_their_classes(kind: str, tmp_path: Path) -> None:
    source = opened(kind, tmp_path)
    assert len(source.files) == len(NAMES)
    assert all(file.num_bytes > 0 for file in source.files)
    assert len(source.classes.names) == 2
    assert source.classes.labels == [0] * 4 + [1] * 4
    assert len(source.left_out) == 0


@every_kind
@pytest.mark.parametrize("start", [0, 3, 8])
def test_it_hands_out_the_pictures_from_any_place_on(kind: str, start: int, tmp_path: Path) -> None:
    source = opened(kind, tmp_path)
    found = list(source.pictures_from(start))
    assert [picture.file for picture in found] == source.files[start:]
    assert [picture.read() for picture in found] == [
        picture.read() for picture in source.pictures_from(0)
    ][start:]


@every_kind
def test_another_time_it_is_the_same(kind: str, tmp_path: Path) -> None:
    source = opened(kind, tmp_path)
    again = open_source(source.path)
    assert list(again.files) == list(source.files)
    assert (again.fingerprint, again.stamp, again.marks) == (
        source.fingerprint,
        source.stamp,
        source.marks,
    )


@every_kind
def test_the_stamp_tells_that_a_picture_has_changed(kind: str, tmp_path: Path) -> None:
    before = opened(kind, tmp_path).stamp
    path = packed(kind, tmp_path, first_seed=100)
    for each in [path, *path.rglob("*")]:
        os.utime(each, ns=(2**60, 2**60))  # some file systems have coarse times
    assert open_source(path).stamp != before


@every_kind
def test_a_store_of_it_holds_its_pictures_and_is_gone_on_with(kind: str, tmp_path: Path) -> None:
    path = packed(kind, tmp_path)
    prepare(path, tmp_path / "whole", sizes=[SIZE], num_threads=1)
    whole = stored(tmp_path / "whole")
    assert len(set(whole)) == len(NAMES)

    def stop(progress: object) -> None:
        raise Stopped(15, "stopped")

    with pytest.raises(Stopped):
        prepare(path, tmp_path / "stopped", sizes=[SIZE], num_threads=1, on_progress=stop)
    prepare(path, tmp_path / "stopped", sizes=[SIZE], num_threads=1)
    assert stored(tmp_path / "stopped") == whole
    assert (
        ImageStore(tmp_path / "stopped").fingerprint == ImageStore(tmp_path / "whole").fingerprint
    )
    assert prepare(path, tmp_path / "whole", sizes=[SIZE]).already_done


@every_kind
def test_changed_pictures_are_prepared_again(kind: str, tmp_path: Path) -> None:
    prepare(packed(kind, tmp_path), tmp_path / "store", sizes=[SIZE])
    before = stored(tmp_path / "store")
    path = packed(kind, tmp_path, first_seed=100)
    for each in [path, *path.rglob("*")]:
        os.utime(each, ns=(2**60, 2**60))
    assert not prepare(path, tmp_path / "store", sizes=[SIZE]).already_done
    assert not set(stored(tmp_path / "store")) & set(before)


# ---- kinds of other packages

GUEST = """
from pathlib import Path
from vdiff.data.sources.picture import Picture
from vdiff.data.sources.source import Listing, Source
import io

class Guest(Source):
    @classmethod
    def recognises(cls, path, beginning):
        return beginning.startswith(b"guest")

    def listing(self):
        found = Listing()
        for index in (2, 0, 1):
            found.files.add(f"{index}.png", 10, index)
        return found

    def pictures(self, start):
        for index in range(start, 3):
            yield Picture(self.files[index], io.BytesIO)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Puts a package of one module where Python finds it, as pip does."""
    place = tmp_path / "installed"
    place.mkdir()
    monkeypatch.syspath_prepend(place)
    names: list[str] = []

    def put(source: str, kind: str, name: str = "guest") -> None:
        (place / f"{name}.py").write_text(source)
        told = place / f"{name}-1.0.dist-info"
        told.mkdir()
        (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (told / "entry_points.txt").write_text(f"[vdiff.sources]\n{kind} = {name}:Guest\n")
        importlib.invalidate_caches()
        names.append(name)

    yield put
    for name in names:
        sys.modules.pop(name, None)


def guests(path: Path, name: str = "pictures.guest") -> Path:
    (path / name).write_bytes(b"guest")
    return path / name


def test_a_kind_of_another_package_is_known_by_its_first_bytes(
    install: Callable[..., None], tmp_path: Path
) -> None:
    install(GUEST, "anything")
    source = open_source(guests(tmp_path, "pictures.bin"))
    assert type(source).__name__ == "Guest"
    assert [file.name for file in source.files] == ["0.png", "1.png", "2.png"]


def test_a_kind_named_as_the_suffix_goes_before_those_of_vdiff(
    install: Callable[..., None], tmp_path: Path
) -> None:
    install(GUEST.replace('b"guest"', 'b"PK"'), "npz")
    data = {name: png(index, SIZE) for index, name in enumerate(NAMES)}
    assert type(open_source(as_zip(data, tmp_path / "a.npz"))).__name__ == "Guest"
    assert type(open_source(as_zip(data, tmp_path / "a.zip"))).__name__ == "ZipSource"


def test_for_folders_and_archives_no_other_package_is_imported(
    install: Callable[..., None], tmp_path: Path
) -> None:
    install(GUEST, "other")
    for kind in SOURCES.builtin():
        opened(kind, tmp_path / kind)
    assert "guest" not in sys.modules


def test_a_folder_without_pictures_is_shown_to_the_kinds_of_others(
    install: Callable[..., None], tmp_path: Path
) -> None:
    install(GUEST.replace('beginning.startswith(b"guest")', "path.is_dir()"), "other")
    assert type(open_source(as_folder({"a.dat": b"?"}, tmp_path / "a"))).__name__ == "Guest"
    assert type(open_source(as_folder({"a.png": png()}, tmp_path / "b"))).__name__ == "FolderSource"


BROKEN = {
    "nothing left of it": ("", "AttributeError: module 'guest' has no attribute 'Guest'"),
    "no source": ("class Guest: ...\n", "it is no subclass of `vdiff.data.sources.source.Source`"),
    "without a listing": (GUEST.replace("def listing", "def other"), "it lacks `listing`"),
    "without pictures": (GUEST.replace("def pictures", "def other"), "it lacks `pictures`"),
    "without recognises": (GUEST.replace("def recognises", "def other"), "it lacks `recognises`"),
    "no library": (
        "import no_such_library\n",
        "ModuleNotFoundError: No module named 'no_such_library'",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_kind_is_one_error_and_others_go_on(
    install: Callable[..., None], what: str, tmp_path: Path
) -> None:
    source, words = BROKEN[what]
    install(source, "guest")
    assert len(opened("zip", tmp_path).files) == len(NAMES)
    with pytest.raises(
        MachineError, match=r"the source `guest` of the package `guest 1\.0` cannot be used"
    ) as found:
        open_source(guests(tmp_path))
    assert found.value.where == f"`guest:Guest`: {words}"
    assert SOURCES.doubts() == [f"{found.value.problem}: {found.value.where}"]
    with pytest.raises(DataError, match="is not an archive of pictures") as told:
        open_source(guests(tmp_path, "pictures.bin"))
    assert SOURCES.doubts()[0] in told.value.problem
    assert "folder, tar, zip, guest" in told.value.fix


def test_a_listing_that_is_none_is_told_as_a_fault_of_its_package(
    install: Callable[..., None], tmp_path: Path
) -> None:
    """Not as a bug of vdiff, which is where it showed."""
    install(GUEST.replace("return found", 'return ["0.png"]'), "guest")
    with pytest.raises(MachineError, match=r"`guest` of the package `guest 1\.0`") as found:
        open_source(guests(tmp_path))
    assert "`guest:Guest.listing` gives a `list`" in found.value.where


def test_a_name_that_two_packages_claim_is_told_with_both(
    install: Callable[..., None], tmp_path: Path
) -> None:
    install(GUEST, "guest")
    install(GUEST, "guest", name="other")
    with pytest.raises(
        MachineError,
        match=r"the packages `.* 1\.0` and `.* 1\.0` both bring a source called `guest`",
    ):
        open_source(guests(tmp_path))


def test_a_name_that_vdiff_has_stays_its_own(install: Callable[..., None], tmp_path: Path) -> None:
    install(GUEST, "zip")
    assert type(opened("zip", tmp_path)).__name__ == "ZipSource"
    assert "vdiff's own is used" in SOURCES.doubts()[0]


def test_an_error_in_a_kind_of_another_package_names_that(
    install: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(GUEST.replace("found = Listing()", 'raise RuntimeError("not today")'), "guest")
    path = guests(tmp_path)
    assert cli.main(["prepare", str(path), "--size", "8", "--out", str(tmp_path / "store")]) == 6
    assert "the package `guest 1.0` failed: RuntimeError: not today" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("range(0, 4)", "gave `0.png` where its list has `1.png`"),
        ("(1, 2, 2)", "gave `2.png` where its list has nothing more"),
    ],
)
def test_pictures_that_are_not_those_of_the_list_are_refused(
    install: Callable[..., None], wrong: str, words: str, tmp_path: Path
) -> None:
    install(GUEST.replace("range(start, 3)", wrong), "guest")
    source = open_source(guests(tmp_path))
    with pytest.raises(DataError, match=words) as found:
        list(source.pictures_from(1))
    assert "`Guest` of `guest`" in found.value.fix


@pytest.mark.parametrize("kind", ["folder", "zip", "guest"])
def test_pictures_stand_by_name_and_of_one_name_only_once(
    install: Callable[..., None], kind: str, tmp_path: Path
) -> None:
    install(GUEST.replace("(2, 0, 1)", "(1, 0, 1)"), "guest")
    files = {name: png(index, SIZE) for index, name in enumerate(reversed(NAMES))}
    path = EXPECTED[kind](files, tmp_path) if kind in EXPECTED else guests(tmp_path)
    source = open_source(path)
    names = [file.name for file in source.files]
    assert names == sorted(set(names))
    if kind == "guest":
        assert names == ["0.png", "1.png"]
        assert [(name, reason.is_loss) for name, reason in source.left_out.names] == [
            ("1.png", True)
        ]
