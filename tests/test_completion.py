"""What <TAB> offers, asked as a shell asks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vdiff.recipe import text as recipe_text


def offered(words: str, incomplete: str = "", folder: Path | None = None) -> list[str]:
    """What bash would be given for `vdiff WORDS INCOMPLETE<TAB>`."""
    typed = ["vdiff", *words.split(), incomplete]
    asked = {
        "_VDIFF_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(typed),
        "COMP_CWORD": str(len(typed) - 1),
        "HOME": str(folder),
    }
    code = "import sys; from vdiff.cli import main; sys.argv[0] = 'vdiff'; sys.exit(main([]))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | asked, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recipe with two models, a run beside it, and a folder and a file of the user's."""
    (tmp_path / "recipe.yaml").write_text("name: faces\n")
    for run, model in (("faces", "original"), ("faces", "base_0"), ("other", "original")):
        (tmp_path / "runs" / run / model).mkdir(parents=True)
        (tmp_path / "runs" / run / model / "vdiff.json").write_text("{}")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "weights.safetensors").write_text("")
    return tmp_path


def test_recipes_are_offered_where_one_is_asked_for(folder: Path) -> None:
    shipped = list(recipe_text.shipped())
    assert offered("init", folder=folder) == shipped
    assert offered("init", "di", folder) == ["digits", "digits_classes"]
    for words in ("train -r", "recipes show", "recipes check"):
        assert {*shipped, "recipe.yaml"} <= set(offered(words, folder=folder)), words
        assert "notes.txt" not in offered(words, folder=folder)


@pytest.mark.parametrize("words", ["sample --checkpoint", "distill --from"])
def test_the_models_of_the_run_are_offered(words: str, folder: Path) -> None:
    assert offered(words, folder=folder) == ["original", "base_0", "elsewhere/", "runs/"]
    assert offered(words, "ba", folder) == ["base_0"]
    assert offered(words, "runs/o", folder) == ["runs/other/"]
    assert offered(words, "~/els", folder) == ["~/elsewhere/"]


@pytest.mark.parametrize("words", ["evaluate", "compare", "compare original"])
def test_models_and_runs_are_offered_where_both_are_taken(words: str, folder: Path) -> None:
    assert {"original", "base_0", "runs/faces", "runs/other"} <= set(offered(words, folder=folder))


def test_another_run_is_asked_for_its_own_models(folder: Path) -> None:
    assert offered("sample --run runs/other --checkpoint", "o", folder) == ["original"]
    (folder / "recipe.yaml").write_text("name: [broken\n")
    assert offered("sample --checkpoint", "o", folder) == []


def test_runs_files_and_samplers_are_offered(folder: Path) -> None:
    assert offered("train --run", "runs/", folder) == ["runs/faces", "runs/other"]
    assert offered("report", "runs/f", folder) == ["runs/faces"]
    assert offered("evaluate", "runs/f", folder) == ["runs/faces/"]
    assert offered("inspect", "we", folder) == ["weights.safetensors"]
    assert offered("sample --sampler", folder=folder) == [
        "ddim",
        "ancestral",
        "dpmpp",
        "unipc",
        "ipndm",
        "heun",
    ]
