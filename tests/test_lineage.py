"""The lineage of an imported chain starts at the file: its name, its SHA-256, its licence
and what proved the conversion.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.browser import complaints, opened
from tests.test_import import folder, recorded  # noqa: F401 - a fixture
from tests.test_inspect import edit
from vdiff import cli
from vdiff.exchange import bring
from vdiff.model_folder import origin
from vdiff.model_folder.card import read_card

SHORT = ["--set", "distill.start_steps=4", "--set", "distill.end_steps=2"]
SHORT += ["--set", "distill.updates=1", "--set", "distill.batch_size=2"]
SHORT += ["--set", "distill.warmup_updates=0"]


@pytest.fixture
def chain(folder: Path, store: Path) -> Path:  # noqa: F811
    """A run with an imported base and its student."""
    expected = ["--expected", str(recorded(folder))]
    assert cli.main(["import", str(folder), *expected, "--out", "runs/mine"]) == 0
    where = ["-r", "runs/mine/recipe.yaml", "--run", "runs/mine", "--set", f"data.path={store}"]
    # the run keeps the recipe as it was changed, beside the one it had
    shutil.copy("runs/mine/recipe.yaml", "recipe.yaml")
    where[1] = "recipe.yaml"
    assert cli.main(["distill", *where, *SHORT, "--device", "cpu", "-q"]) == 0
    return Path("runs/mine")


def inspected(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.main(["inspect", str(path), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_base_student_and_report_name_the_file_its_proof_and_ask_for_its_licence(
    chain: Path,
    folder: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    sha256 = bring.digest(folder)
    for name in ("original", "base_0"):
        assert cli.main(["inspect", str(chain / name)]) == 0
        told = capsys.readouterr().out
        for words in (sha256, "theirs, diffusers", "largest difference from expected.npz"):
            assert words in told
        assert "Under which licence" in told
    student, base = read_card(chain / "base_0"), read_card(chain / "original")
    assert student.origin == base.origin
    assert (base.is_imported, student.is_imported) == (True, False)
    assert cli.main(["inspect", str(chain)]) == 0
    assert sha256 in capsys.readouterr().out
    found = inspected(chain / "base_0", capsys)
    assert found["origin"]["sha256"] == sha256
    assert [each["name"] for each in found["lineage"]] == ["original"]


def test_the_report_begins_its_line_of_models_with_the_file(
    chain: Path,
    folder: Path,  # noqa: F811
) -> None:
    drawn = ["-n", "1", "--device", "cpu", "-q"]
    assert cli.main(["report", str(chain), "--out", "page.html", *drawn]) == 0
    page = Path("page.html").read_text("utf-8")
    line = page.partition('class="lineage"')[2].partition("</ol>")[0]
    links = line.split("<li")[1:]
    assert len(links) == 3
    assert bring.digest(folder) in links[0]
    assert "largest difference from expected.npz" in links[0]
    assert "Under which licence" in links[0]
    assert "imported from the file above" in links[1]
    assert "distilled from original" in links[2]
    with opened(Path("page.html")) as driver:
        assert complaints(driver) == []
        shown = driver.find_element("class name", "lineage").text
        assert bring.digest(folder) in shown


# ---- licences


def test_the_user_knows_a_licence_best(
    folder: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = ["--expected", str(recorded(folder))]
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert cli.main(["import", str(folder), *expected]) == 0
    assert "Under which licence" not in capsys.readouterr().err
    assert (read_card(Path("runs/theirs/original")).origin or {})["licence"] == "mit"
    assert cli.main(["import", str(folder), *expected, "--licence", "mine", "--force"]) == 0
    assert (read_card(Path("runs/theirs/original")).origin or {})["licence"] == "mine"


# ---- cards of strangers


ODD: list[Any] = [{}, {"file": 3}, {"proof": 5}, {"proof": {"how": "outputs", "difference": "x"}}]
ODD += [{"assumed": {"a": 1}}, {"assumed": [1, None]}, {"told": [3]}, {"told": {"a": [1]}}]
ODD += [{"file": "x" * 5000}, {"proof": {"how": "denoising", "difference": 10**400}}]


@pytest.mark.parametrize("told", ODD, ids=range(len(ODD)))
def test_whatever_a_card_says_of_its_origin_can_be_shown(told: dict[str, Any]) -> None:
    lines = origin.lines(told)
    assert {"imported from", "its SHA-256", "licence", "proof"} <= lines.keys()
    assert all(isinstance(text, str) and len(text) <= 1000 for text in lines.values())


def test_an_origin_of_a_stranger_does_no_harm(
    folder: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["import", str(folder), "--expected", str(recorded(folder))]) == 0
    place = Path("runs/theirs/original")
    edit(place, origin={"file": "<b>a\x0b", "licence": ["\n"], "assumed": ["<script>"]})
    capsys.readouterr()
    code = cli.main(["inspect", str(place)])
    assert "\x0b" not in capsys.readouterr().out
    assert code in (0, 4)
