"""`~` means the home folder wherever a path is written, and never makes a folder of that name."""

from pathlib import Path

import pytest

from vdiff.cli import main
from vdiff.errors import UsageError
from vdiff.recipe import text as recipe_text
from vdiff.recipe.recipe import Recipe
from vdiff.system.home import expanded

TEXT = """\
name: tilde
data: {source: ~/pictures, path: ~/vdiff_data/faces, size: 16}
network: {kind: unet, width: 8, multipliers: [1, 2], blocks: 1}
train: {updates: 2, batch_size: 4, warmup_updates: 0}
distill: {start_steps: 8, end_steps: 4, updates: 2}
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and another one to work in."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def recipe(*changes: str) -> Recipe:
    return recipe_text.validate(
        Recipe, recipe_text.set_values(recipe_text.parse(TEXT, "recipe.yaml"), changes)
    )


def test_paths_of_a_recipe_begin_at_home(home: Path) -> None:
    assert (recipe().data.source, recipe().data.path) == (
        home / "pictures",
        home / "vdiff_data" / "faces",
    )
    assert recipe("data.path=~/other").data.path == home / "other"
    assert recipe("data.path=a/~/b").data.path == Path("a/~/b")


def test_a_home_that_is_not_known_is_a_mistake_with_its_place(home: Path) -> None:
    with pytest.raises(UsageError, match="no home folder `~nobody-of-that-name`") as caught:
        recipe("data.path=~nobody-of-that-name/x")
    assert caught.value.where == "--set data.path"
    with pytest.raises(ValueError, match=r"write `\./~nobody-of-that-name/x`"):
        expanded("~nobody-of-that-name/x")


def test_no_command_makes_a_folder_called_tilde(
    home: Path,
    make_pictures: object,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_pictures(count=6, size=(16, 16)).rename(home / "pictures")  # type: ignore[operator]
    assert main(["init", "digits", "--out=~/recipe.yaml", "-q"]) == 0
    assert main(["recipes", "check", "~/recipe.yaml"]) == 0
    (home / "tilde.yaml").write_text(TEXT)
    monkeypatch.setenv("VDIFF_RECIPE", "~/tilde.yaml")
    assert main(["prepare", "-q"]) == 0
    assert main(["prepare", "~/pictures", "--size", "8", "--out=~/second", "-q"]) == 0
    assert main(["train", "--run=~/run", "--device", "cpu", "-q", "--set", "trackers=[]"]) == 0
    assert (
        main(
            [
                "sample",
                "--checkpoint=~/run/original",
                "-n",
                "1",
                "--steps",
                "2",
                "--out=~/one.png",
                "-q",
            ]
        )
        == 0
    )
    assert main(["inspect", "~/run", "-q"]) == 0
    for made in (
        "recipe.yaml",
        "digits",
        "vdiff_data/faces/data.mdb",
        "second/data.mdb",
        "run/original",
        "one.png",
    ):
        assert (home / made).exists(), made
    assert list(Path().iterdir()) == []
    assert main(["train", "--run=~nobody-of-that-name/run"]) == 2
    assert "no home folder `~nobody-of-that-name`" in capsys.readouterr().err
    assert list(Path().iterdir()) == []
