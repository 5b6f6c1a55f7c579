"""`vdiff prepare`: the promised line, what it takes from the recipe, and what a signal leaves."""

import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakePictures
from vdiff.cli import main, progress
from vdiff.data import conversion
from vdiff.data.seal import FILE
from vdiff.data.store import ImageStore
from vdiff.errors import DataError, UsageError

RECIPE = """
name: toy
data: {source: pictures, path: data/toy, size: 16, channels: 1, encoding: webp}
network: {width: 8, multipliers: [1]}
train: {updates: 10}
distill: {start_steps: 4, end_steps: 2, updates: 10}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in; signals and the way of talking are put back afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VDIFF_RECIPE", raising=False)
    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    }
    yield tmp_path
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def recipe(here: Path) -> Path:
    path = here / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_the_promised_line_works_where_a_recipe_is(
    recipe: Path, make_pictures: MakePictures, capsys: pytest.CaptureFixture[str]
) -> None:
    make_pictures()
    assert main(["prepare", "--size", "16"]) == 0
    store = ImageStore(Path("data/toy"))
    assert store.metadata is not None
    assert (store.num_images, store.sizes) == (12, (16,))
    assert (store.metadata.channels, store.metadata.encoding) == (1, "webp")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == "next: `vdiff train`"


def test_options_win_over_the_recipe(recipe: Path, make_pictures: MakePictures) -> None:
    make_pictures()
    options = [
        "--size",
        "8",
        "--size",
        "32",
        "--out",
        "other",
        "--channels",
        "3",
        "--encoding",
        "jpeg",
    ]
    assert (
        main(
            [
                "prepare",
                *options,
                "--quality",
                "90",
                "--resampling",
                "box",
                "--set",
                "data.flip=true",
            ]
        )
        == 0
    )
    store = ImageStore(Path("other"))
    assert store.metadata is not None
    assert store.sizes == (8, 32)
    found = store.metadata
    assert (found.channels, found.encoding, found.quality, found.resampling) == (
        3,
        "jpeg",
        90,
        "box",
    )


def test_without_a_size_it_is_that_of_the_recipe(recipe: Path, make_pictures: MakePictures) -> None:
    make_pictures()
    assert main(["prepare"]) == 0
    assert ImageStore(Path("data/toy")).sizes == (16,)


def test_with_source_size_and_place_no_recipe_is_needed(
    make_pictures: MakePictures, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_pictures(classes=("cat", "dog"))
    assert main(["prepare", str(folder), "--size", "8", "--out", "store"]) == 0
    assert ImageStore(Path("store")).class_names == ["cat", "dog"]
    assert "set `path: store` under `data:`" in capsys.readouterr().err


@pytest.mark.parametrize("missing", [["--size", "8"], ["--out", "store"], []])
def test_without_them_the_recipe_that_is_not_there_is_named(
    missing: list[str], make_pictures: MakePictures, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", str(make_pictures()), *missing]) == UsageError.exit_code
    assert "`vdiff init digits`" in capsys.readouterr().err


def test_a_recipe_without_a_source_asks_for_one(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.write_text(RECIPE.replace("source: pictures, ", ""))
    assert main(["prepare"]) == UsageError.exit_code
    assert "the recipe has no `data.source`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "following"),
    [
        (["--out", "other"], "vdiff train --set data.path=other"),
        (["--size", "8"], "vdiff train --set data.size=8"),
        (["--size", "8", "--size", "16"], "vdiff train"),
    ],
)
def test_the_last_line_says_what_to_type_next(
    options: list[str],
    following: str,
    recipe: Path,
    make_pictures: MakePictures,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_pictures()
    assert main(["prepare", *options]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == f"next: `{following}`"


def test_a_dry_run_tells_the_plan_and_writes_nothing(
    recipe: Path, make_pictures: MakePictures, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_pictures(classes=("cat", "dog"))
    before = everything(here)
    assert main(["prepare", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["source"], found["store"]) == ("pictures", "data/toy")
    assert (found["num_images"], found["class_names"], found["sizes"]) == (12, ["cat", "dog"], [16])
    assert found["estimated_bytes"] > 0
    assert not found["already_done"]
    assert main(["prepare", "--dry-run"]) == 0
    assert "pictures  12" in capsys.readouterr().out
    assert everything(here) == before


@pytest.mark.parametrize("place", [".", "/", "..", ""])
@pytest.mark.parametrize("more", [[], ["--force"], ["--dry-run"]], ids=" ".join)
def test_a_place_without_a_name_of_its_own_is_refused(
    place: str,
    more: list[str],
    make_pictures: MakePictures,
    here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_pictures(1)
    before = everything(here)
    assert main(["prepare", "pictures", "--size", "8", "--out", place, *more]) == 2
    assert "a store cannot take the place of" in capsys.readouterr().err
    assert everything(here) == before


def test_a_source_with_an_impossible_name_is_no_bug(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "loop").symlink_to("loop")
    for source in ("x" * 300, "loop", "loop/x"):
        assert main(["prepare", source, "--size", "8", "--out", "store"]) == 3
        assert "bug" not in capsys.readouterr().err


def test_json_is_one_object_with_what_was_done(
    recipe: Path, make_pictures: MakePictures, capsys: pytest.CaptureFixture[str]
) -> None:
    make_pictures(classes=("cat", "dog"))
    assert main(["prepare", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"] == (Path("data/toy") / FILE).stat().st_size
    assert found.pop("seconds") > 0
    del found["bytes"]
    assert found == {
        "store": "data/toy",
        "num_images": 12,
        "num_skipped": 0,
        "skipped_file": None,
        "sizes": [16],
        "class_names": ["cat", "dog"],
        "classes_told": "by their folders",
        "left_out": [],
        "left_out_file": None,
        "resumed_at": 0,
        "already_done": False,
        "decided_by": "",
        "anew": "",
        "notes": {},
        "notes_file": None,
        "hints": [],
    }
    assert main(["prepare", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["already_done"]


def test_a_store_made_in_another_way_is_only_replaced_by_force(
    recipe: Path, make_pictures: MakePictures, capsys: pytest.CaptureFixture[str]
) -> None:
    make_pictures()
    assert main(["prepare"]) == 0
    assert main(["prepare", "--size", "8"]) == UsageError.exit_code
    assert ImageStore(Path("data/toy")).sizes == (16,)
    assert main(["prepare", "--size", "8", "--force"]) == 0
    assert ImageStore(Path("data/toy")).sizes == (8,)


@pytest.mark.parametrize(
    ("share", "code"), [("10%", 0), ("0.1", 0), ("1%", 3), ("0", 3), ("0.01", 3)]
)
def test_unreadable_pictures_are_skipped_up_to_a_share(
    share: str,
    code: int,
    recipe: Path,
    make_pictures: MakePictures,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (make_pictures() / "000.png").write_bytes(b"no picture")
    assert main(["prepare", "--max-bad", share]) == code
    assert Path("data/toy/skipped.tsv").exists() == (code == 0)
    err = capsys.readouterr().err
    assert ("1 picture could not be read" in err) == (code == 0)
    assert ("000.png" in err) == (code == DataError.exit_code)


@pytest.mark.parametrize("share", ["101%", "1.5", "-1%", "few", "nan", "%", ""])
def test_a_share_that_is_none_is_refused(
    share: str,
    recipe: Path,
    make_pictures: MakePictures,
    here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_pictures()
    before = everything(here)
    assert main(["prepare", f"--max-bad={share}"]) == UsageError.exit_code
    assert "is not a share between 0 and 1" in capsys.readouterr().err
    assert everything(here) == before


class Impatient(io.StringIO):
    """A terminal whose user sends a signal when five pictures are done."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__()
        self.waiting = [number]

    def write(self, text: str) -> int:
        if text.startswith("5 of 60 pictures") and self.waiting:
            os.kill(os.getpid(), self.waiting.pop())
        return super().write(text)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_it_cleanly_and_the_same_command_goes_on(
    number: signal.Signals,
    code: int,
    recipe: Path,
    make_pictures: MakePictures,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_pictures(60)
    assert main(["prepare", "--out", "unbroken"]) == 0
    monkeypatch.setattr(conversion, "_CHUNK_PICTURES", 1)
    monkeypatch.setattr(progress, "SECONDS_PER_LINE", 0.0)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Impatient(number))
        assert main(["prepare", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["exit_code"] == code
    assert not Path("data/toy").exists()
    assert main(["prepare", "--json"]) == 0
    assert 0 < json.loads(capsys.readouterr().out)["resumed_at"] < 60
    assert ImageStore(Path("data/toy")).fingerprint == ImageStore(Path("unbroken")).fingerprint
