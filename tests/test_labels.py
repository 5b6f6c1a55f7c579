"""Where classes come from: labels that are there are used,
or it is told why not and what would use them.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.archives import Pack, as_folder, as_tar, as_zip, png
from vdiff.cli import main
from vdiff.data.lmdb_section import LmdbImagesSection
from vdiff.data.prepare import prepare
from vdiff.data.sources import Labels, dataset_json, open_source
from vdiff.data.sources import labels_file as labels_file_of
from vdiff.data.sources.classes import Classes, Lists, classes_of
from vdiff.data.store import ImageStore
from vdiff.errors import DataError


def found(names: Sequence[str], labels_from: Labels = "auto", dataset: object = None) -> Classes:
    lists = Lists()
    if dataset is not None:
        lists.dataset = dataset_json.Found("", json.dumps(dataset).encode())
    return classes_of(names, lists, labels_from)


def in_folders(*folders: str, count: int = 2) -> list[str]:
    """So many pictures in each folder, numbered anew in each."""
    return [f"{folder}/{index}.png" for folder in folders for index in range(count)]


@pytest.mark.parametrize(
    ("names", "classes", "told"),
    [
        (in_folders("cats", "dogs"), ["cats", "dogs"], "by their folders"),
        (in_folders("data/cats", "data/dogs"), ["cats", "dogs"], "by their folders"),
        (["./a/1.png", "./b/2.png"], ["a", "b"], "by their folders"),
        (in_folders(*"0123456789"), list("0123456789"), "by their folders"),
        (in_folders("n01440764", "n01443537"), ["n01440764", "n01443537"], "by their folders"),
        (in_folders("00000", "00001", "00042"), ["00000", "00001", "00042"], "by their folders"),
        (in_folders("train/a", "train/b", "val/a", "val/b"), ["a", "b"], (
            "by the folders in train, val"
        )),
        (in_folders("train/a", "train/b", "test/a"), ["a", "b"], "by the folders in test, train"),
        (in_folders("photo/a", "photo/b", "draft/a", "draft/b"), ["a", "b"], (
            "by the folders in draft, photo"
        )),
        (["1.png", "2.png"], [], "all pictures lie in one folder"),
        (in_folders("only"), [], "all pictures lie in one folder"),
        (in_folders("train", "val"), [], "train, val are parts of a data set, not classes"),
        (["cover.png", *in_folders("cats", (
            "dogs"
        ))], [], "`cover.png` lies outside of the class folders; "
         "`--labels folders` leaves it out and finds 2 classes (cats, dogs)"),
        (["d/1.png", "d/2.png", *in_folders("d/cats", "d/dogs")], [], (
            "`d/1.png` and 1 more lie outside of the class folders; "
            "`--labels folders` leaves them out and finds 2 classes (cats, dogs)"
        )),
        (["test/1.png", *in_folders("train/a", (
            "train/b"
        ))], [], "`test/1.png` lies outside of the class folders; "
         "`--labels folders` leaves it out and finds 2 classes (a, b)"),
        (["a/1.png", "b/deep/2.png"], [], (
            "the folders differ in depth; `--labels folders` takes the topmost "
            "ones as 2 classes (a, b)"
        )),
    ],
)  # fmt: skip
def test_folders_are_classes_where_they_can_be_nothing_else(
    names: list[str], classes: list[str], told: str
) -> None:
    assert (found(names).names, found(names).told) == (classes, told)


def ffhq(count: int, missing: int = 3) -> list[str]:
    """FFHQ's own names: a folder for each thousand, called by its first picture;
    here a hundred each.
    """
    names = [f"{number // 100 * 100:05d}/{number:05d}.png" for number in range(count)]
    del names[150 : 150 + missing]
    return names


@pytest.mark.parametrize(
    "names", [ffhq(350), [f"{index // 10:05d}/img{index:08d}.png" for index in range(40)]]
)
def test_folders_that_count_pictures_are_no_classes(names: list[str]) -> None:
    assert found(names).names == []
    assert "only count the pictures; `--labels folders` takes them" in found(names).told
    assert len(found(names, "folders").names) == 4


def test_numbered_classes_of_unequal_size_do_not_count_even_if_numbered_through() -> None:
    names = [f"{index % 7 % 3:02d}/x.png" for index in range(0)]
    for label, count in enumerate((40, 25, 33)):
        names += [f"{label:02d}/{len(names) + index:05d}.png" for index in range(count)]
    assert found(names).names == ["00", "01", "02"]


def test_labels_of_folders_stand_beside_their_pictures() -> None:
    names = ["dogs/1.png", "cats/1.png", "dogs/2.png"]
    assert found(names).labels == [1, 0, 1]
    assert found(["x.png", *names], "folders").labels == [-1, 1, 0, 1]
    assert found(names, "none").labels == [-1, -1, -1]
    assert found(in_folders("val/b", "train/a", "train/b", count=1)).labels == [1, 0, 1]


NVLABS = {f"{index // 5:05d}/img{index:08d}.png": png(index) for index in range(20)}
LABELS = [[name, 3 * (index % 2)] for index, name in enumerate(NVLABS)]


@pytest.mark.parametrize("top", ["", "top/"])
@pytest.mark.parametrize("pack", [as_folder, as_zip, as_tar])
def test_the_labels_of_dataset_json_are_used(pack: Pack, top: str, tmp_path: Path) -> None:
    files = {f"{top}dataset.json": json.dumps({"labels": LABELS}).encode()}
    files |= {top + name: data for name, data in NVLABS.items()}
    source = pack(files, tmp_path / "source")
    report = prepare(source, tmp_path / "store", sizes=[8])
    labels = ImageStore(report.store).labels
    assert labels is not None
    assert (report.class_names, labels.tolist()) == (["0", "3"], [0, 1] * 10)
    assert (report.classes_told, report.left_out) == ("by `dataset.json`", [])


@pytest.mark.parametrize(
    ("dataset", "told"),
    [
        ({"labels": None}, "`dataset.json` has no labels"),
        ({"images": []}, "`dataset.json` has no labels"),
        ({"labels": []}, (
            "`dataset.json` has no label for 20 of 20 pictures, `00000/img00000000.png` for one"
        )),
        ({"labels": LABELS[:-1]}, (
            "`dataset.json` has no label for 1 of 20 pictures, `00003/img00000019.png` for one"
        )),
        ({"labels": [[name, 0] for name in NVLABS]}, "`dataset.json` has one label only"),
        ({"labels": [[name, [0.5, 0.5]] for name in NVLABS]}, (
            "`dataset.json` cannot be used: its labels are not p"
        )),
        ({"labels": dict(LABELS)}, "`dataset.json` cannot be used: its labels are not a list"),
        ({"labels": [["\x1b[2J", None]]}, (
            r"`dataset.json` cannot be used: its labels are not pairs"
        )),
    ],
)  # fmt: skip
def test_why_the_labels_of_dataset_json_are_not_used_is_told(dataset: object, told: str) -> None:
    classes = found(list(NVLABS), dataset=dataset)
    assert classes.names == []
    assert classes.told.startswith("00000, 00001, 00002, 00003 only count the pictures; ")
    assert told in classes.told
    assert classes.told.isprintable()


def test_a_dataset_json_that_speaks_of_other_things_does_not_hide_class_folders() -> None:
    for dataset in ({"licence": "none"}, {"labels": {"cats": "felis catus"}}):
        classes = found(in_folders("cats", "dogs"), dataset=dataset)
        assert classes.names == ["cats", "dogs"]
        assert classes.told.startswith("by their folders; `dataset.json` ")


def test_a_hostile_dataset_json_is_read_in_its_own_size() -> None:
    names = ["a.png", "b.png"]
    for data in (
        b'{"labels": ' + b"[" * 10**6,
        b'{"labels": [' + b"[]," * 10**6,
        b'{"labels": [["' + b"\\\\" * 10**6,
    ):
        classes = classes_of(names, Lists(dataset_json.Found("", data)), "auto")
        assert "cannot be used" in classes.told
    assert "larger than" in classes_of(names, Lists(dataset_json.Found("", None)), "auto").told


@pytest.mark.parametrize("pack", [as_folder, as_zip, as_tar])
def test_the_numbers_in_the_cls_files_of_a_webdataset_are_used(pack: Pack, tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    for index in range(6):
        files |= {
            f"x/{index}.jpg": png(index),
            f"x/{index}.cls": b"%d\n" % (index % 3 + 7),
            f"x/{index}.json": b"{}",
        }
    source = open_source(pack(files, tmp_path / "a"))
    assert (source.classes.names, source.classes.labels) == (["7", "8", "9"], [0, 1, 2, 0, 1, 2])
    assert source.classes.told == "by the .cls files of the WebDataset"
    assert [str(group) for group in source.left_out.groups()] == ["6 .json: text or data"]
    for odd in (b"", b"-1", b"cat", b"9" * 99):
        source = open_source(pack(files | {"x/3.cls": odd}, tmp_path / f"{len(odd)}{odd[:1]!r}"))
        assert source.classes.names == []
        assert (
            "WebDataset have no label for 1 of 6 pictures, `x/3.jpg` for one" in source.classes.told
        )


def test_strays_are_left_out_when_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"cover.png": png(9)}
    files |= {f"{kind}/{index}.png": png(index) for kind in ("cats", "dogs") for index in range(3)}
    archive = as_zip(files, tmp_path / "a.zip")
    arguments = ["prepare", str(archive), "--size", "8", "--out", str(tmp_path / "store")]
    assert main(arguments) == 0
    assert (
        "no classes: `cover.png` lies outside of the class folders; `--labels folders`"
        in capsys.readouterr().err
    )
    assert main([*arguments, "--labels", "folders"]) == 2  # it is another store
    assert main([*arguments, "--labels", "folders", "--force"]) == 0
    err = capsys.readouterr().err
    assert "2 classes: cats, dogs (by the topmost folders)" in err
    assert "1 .png: outside of the class folders" in err
    assert ImageStore(tmp_path / "store").num_images == 6
    assert (
        tmp_path / "store" / "left_out.tsv"
    ).read_text() == "cover.png\toutside of the class folders\n"
    assert main([*arguments, "--labels", "some"]) == 2


def test_the_data_section_of_a_recipe_may_say_where_labels_come_from() -> None:
    section = LmdbImagesSection(path=Path("x"), size=8, labels="folders")
    assert section.labels == "folders"


@pytest.mark.parametrize("labels_from", ["auto", "folders", "none"])
def test_one_picture_and_odd_names_are_no_trouble(labels_from: Labels, tmp_path: Path) -> None:
    for names in (["a.png"], ["/a.png"], ["../../a.png", "b.png"], ["a//b/./c.png", "a/b/d.png"]):
        source = open_source(
            as_tar({name: png() for name in names}, tmp_path / "a.tar"), labels_from
        )
        assert len(source.files) == len(names)


PETS = {f"{index}.png": png(index) for index in range(4)}
KINDS = ["cat", "dog", "cat", "eel"]


def labels_file(folder: Path, text: str, name: str = "labels.csv") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "0.png,cat\n1.png,dog\n2.png,cat\n3.png,eel\nanother.png,dog\n"),
        ("a.csv", "\ufeffimage_id,x,Label\r\n" + "".join(
            f"{index}.png,7,{kind}\r\n" for index, kind in enumerate(KINDS)
        )),
        ("a.csv", "file,class\n./0.png,cat\nx\\1.png,dog\n1.png,dog\n2.png, cat\n\n3.png,eel\n"),
        ("a.json", json.dumps({f"{index}.png": kind for index, kind in enumerate(KINDS)})),
        ("a.json", json.dumps({"labels": [[f"{i}.png", kind] for i, kind in enumerate(KINDS)]})),
    ],
)  # fmt: skip
def test_a_labels_file_says_the_class_of_each_picture(
    name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = as_zip(PETS, tmp_path / "pets.zip")
    path = labels_file(tmp_path, text, name)
    store = tmp_path / "store"
    arguments = ["prepare", str(source), "--size", "8", "--out", str(store), "--labels", path]
    assert main(arguments) == 0
    assert f"3 classes: cat, dog, eel (by `{path}`)" in capsys.readouterr().err
    found = ImageStore(store)
    assert found.labels is not None
    assert (found.class_names, found.labels.tolist()) == (["cat", "dog", "eel"], [0, 1, 0, 2])


def test_classes_that_are_numbers_are_in_their_order_and_names_alone_are_enough(
    tmp_path: Path,
) -> None:
    source = as_folder({f"a/{name}": data for name, data in PETS.items()}, tmp_path / "pets")
    path = labels_file(tmp_path, json.dumps({f"{i}.png": 10 - i for i in range(4)}), "a.json")
    report = prepare(source, tmp_path / "store", sizes=[8], labels=path)
    assert report.class_names == ["7", "8", "9", "10"]
    found = ImageStore(tmp_path / "store").labels
    assert found is not None
    assert found.tolist() == [3, 2, 1, 0]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.csv", "0.png,cat\n1.png\n2.png,\n,dog\n0.png,dog\n3.png,a,b\n", (
            "5 bad rows: line 2: 1 column, not 2, line 3: no class, line 4: no name, "
            "line 5: `0.png` is of the class `cat` already, and `dog`, line 6: 3 columns, not 2"
        )),
        ("a.csv", '0.png,cat\n"1.png,dog\n', "1 bad row: line 2: "),
        ("a.csv", "0.png,cat\n1.png,cat\n", "names 1 class only"),
        ("a.csv", "", "names 0 classes only"),
        ("a.csv", "0.png,cat\n1.png,dog\n", "has no class for 2 pictures: `2.png`, `3.png`"),
        ("a.json", "[[1, 2], [3], [\"x\", true]]", (
            "3 bad rows: entry 1: no pair of a name and a class, entry 2: no pair of a name and a "
            "class, entry 3: the class of `x` is neither text nor a number"
        )),
        ("a.json", "{", "1 bad row: no JSON: "),
        ("a.json", "7", "1 bad row: it is neither an object nor a list of pairs"),
        ("a.json", "[" * 100_000, "1 bad row: no JSON: "),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_labels_file_is_told_and_nothing_is_written(
    name: str, text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = as_zip(PETS, tmp_path / "pets.zip")
    path = labels_file(tmp_path, text, name)
    before = sorted(tmp_path.iterdir())
    arguments = ["prepare", str(source), "--size", "8", "--out", str(tmp_path / "store")]
    assert main([*arguments, "--labels", path]) == 3
    assert told in " ".join(capsys.readouterr().err.split())
    assert sorted(tmp_path.iterdir()) == before


def test_a_labels_file_that_is_not_there_or_of_another_kind_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = as_zip(PETS, tmp_path / "pets.zip")
    arguments = ["prepare", str(source), "--size", "8", "--out", str(tmp_path / "store")]
    assert main([*arguments, "--labels", str(tmp_path / "no.csv")]) == 3
    assert "no.csv` cannot be read: No such file" in capsys.readouterr().err
    assert main([*arguments, "--labels", "a.txt"]) == 2
    assert "choose one of: auto, folders, none; or name a .csv" in capsys.readouterr().err
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe0")
    assert main([*arguments, "--labels", str(tmp_path / "a.csv")]) == 3
    assert "is no UTF-8 text" in capsys.readouterr().err


def test_names_that_two_pictures_have_are_not_taken_without_their_folders(tmp_path: Path) -> None:
    source = as_folder({"a/0.png": png(0), "b/0.png": png(1), "1.png": png(2)}, tmp_path / "pets")
    path = labels_file(tmp_path, "0.png,cat\n1.png,dog\n")
    with pytest.raises(DataError, match=r"no class for 2 pictures: `a/0\.png`, `b/0\.png`"):
        prepare(source, tmp_path / "store", sizes=[8], labels=path)


def test_a_recipe_may_name_a_labels_file_and_nothing_else() -> None:
    section = LmdbImagesSection(path=Path("x"), size=8, labels="~/pets.csv")
    assert section.labels == str(Path("~/pets.csv").expanduser())
    with pytest.raises(ValidationError, match="labels"):
        LmdbImagesSection(path=Path("x"), size=8, labels="some")


def test_a_picture_that_an_object_of_json_names_twice_is_told(tmp_path: Path) -> None:
    text = '{"a.png": "cat", "a.png": "dog", "b.png": "cat"}'
    place = labels_file(tmp_path, text, "labels.json")
    with pytest.raises(DataError, match="is of the class `cat` already, and `dog`"):
        labels_file_of.read(Path(place))
    listed = labels_file(tmp_path, '{"labels": [["a.png", 0], ["b.png", 1]]}', "labels.json")
    assert labels_file_of.read(Path(listed)).classes == {"a.png": "0", "b.png": "1"}
