"""Folders that earlier versions of vdiff wrote:
they load, draw what they drew then, and go on from their saves.
"""

import json
import shutil
from pathlib import Path

import pytest

from tests.golden.make import pictures
from tests.tiny import TinyRun
from vdiff.cli import app
from vdiff.disk import manifest
from vdiff.model_folder import checkpoint
from vdiff.model_folder.card import FORMAT, MANIFEST

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = sorted(path.name for path in GOLDEN.glob("format_*"))


@pytest.fixture(params=VERSIONS)
def here(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a golden folder, as the current one;
    `golden.make` wrote it and the numbers in `pictures.json`.
    """
    shutil.copytree(GOLDEN / request.param, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_there_is_one_for_every_format_and_all_are_small() -> None:
    assert {"format_1", f"format_{FORMAT}"} <= set(VERSIONS)
    for version in VERSIONS:
        assert (
            sum(path.stat().st_size for path in (GOLDEN / version).rglob("*") if path.is_file())
            < 200_000
        ), version


def test_a_golden_model_is_whole_and_draws_what_it_drew(here: Path) -> None:
    folder = here / "runs/golden/original"
    assert checkpoint.damage(folder) == []
    assert pictures(folder) == pytest.approx(
        json.loads(Path("pictures.json").read_text())["original"], abs=2e-3
    )


def test_a_golden_model_knows_the_times_that_its_card_says() -> None:
    """To format 1, a base knew all times; the new fields mean what an older
    vdiff did with every model.
    """
    cards = {
        version: checkpoint.read_card(GOLDEN / version / "runs/golden/original")
        for version in VERSIONS
    }
    assert [(card.times, card.is_denoiser) for card in cards.values()] == [
        (None, True),
        (16, False),
    ]
    assert {(card.sampler, card.guidance, card.codec) for card in cards.values()} == {
        (None, None, "pixels")
    }


def test_a_golden_run_goes_on_from_its_save(here: Path) -> None:
    run = TinyRun(here, Path("recipe.yaml").read_text())
    run.chain(run="runs/golden").distill()
    assert not [line for line in run.said if "passed over" in line or "kept as it was" in line], (
        run.said
    )
    updates = [
        json.loads(line)["update"]
        for line in Path("runs/golden/log.jsonl").read_text().splitlines()
    ]
    assert updates == [10, 20, 30, 2, 4, 6, 8]
    assert pictures(here / "runs/golden/base_0") == pytest.approx(
        json.loads(Path("pictures.json").read_text())["base_0"], abs=2e-3
    )


def test_a_golden_model_answers_the_command_line(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["sample", "--checkpoint", "original", "-n", "2", "--out", "x.png"]) == 0
    assert Path("x.png").is_file()
    assert app.run(["inspect", "--verify"]) == 0


def test_a_newer_format_is_refused_and_says_who_made_it(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("runs/golden/original", MANIFEST)
    path.write_text(
        manifest.sealed(
            json.loads(path.read_text()) | {"format": FORMAT + 1, "made_by": "vdiff 9.1"}
        )
    )
    for command in (
        ["sample", "--checkpoint", "original", "--out", "x.png"],
        ["distill"],
        ["inspect", "original"],
    ):
        assert app.run(command) == 4
        said = " ".join(capsys.readouterr().err.split())
        assert "made by vdiff >= 9.1" in said
        assert "pip install --upgrade vdiff-distill" in said
    assert not Path("x.png").exists()
