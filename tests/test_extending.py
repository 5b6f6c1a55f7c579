"""A package that pip installs brings one kind of everything, and vdiff does with them what it does with its own."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vdiff import checkpoint, cli, mark
from vdiff.recipe import tables

EXAMPLE = Path(__file__).parents[1] / "examples" / "vdiff-example"
KINDS = ["npy", "dit", "straight", "consistency_toy", "adams", "brightness"]
PAIRS = "edges"
"""Its metric of pairs; metrics of both sorts have one table."""
SMALL = ["train.updates=8", "train.save_every=3", "distill.updates=4", "distill.start_steps=4", "distill.end_steps=1"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip has put the example, entry points and all."""
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    place = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--target", str(place), str(EXAMPLE)], check=True)
    return place


@pytest.fixture
def here(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with pictures in an array and the example's recipe."""
    monkeypatch.syspath_prepend(installed)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    pictures = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), np.uint8)
    np.save(tmp_path / "pictures" / "images.npy", pictures)
    np.save(tmp_path / "pictures" / "labels.npy", np.arange(40) % 10)
    (tmp_path / "recipe.yaml").write_text((EXAMPLE / "recipe.yaml").read_text("utf-8"))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "vdiff_example"]:
        del sys.modules[name]


def vdiff(*arguments: str, changes: list[str] = SMALL, code: int = 0) -> None:
    more = [word for change in changes for word in ("--set", change)]
    assert cli.main([*arguments, *more]) == code


TRAIN, DISTILL = ("train", "--device", "cpu"), ("distill", "--device", "cpu")


def test_every_kind_of_the_example_is_one_of_its_table(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [kind for kind, table in zip(KINDS, tables(), strict=True) if kind not in table.sections()] == []
    assert PAIRS in tables()[-1].sections()
    assert [table.doubts() for table in tables()] == [[]] * len(tables())
    vdiff("recipes", "check", changes=[])
    vdiff("recipes", "schema", changes=[])
    schema = capsys.readouterr().out
    # a metric is named by a text, which may carry an option
    assert [kind for kind in KINDS[:-1] if f'"{kind}"' not in schema] == []


def test_the_package_checks_its_own_contracts(here: Path, installed: Path) -> None:
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE / "tests")]
    root = Path(__file__).parents[1]
    paths = os.pathsep.join([str(installed), str(root), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        tests, env={**os.environ, "PYTHONPATH": paths}, cwd=here, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout


def test_it_trains_distills_samples_measures_and_is_told_of(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vdiff(*TRAIN)
    vdiff(*DISTILL)
    for model in ("original", "base_1"):
        sampler = [] if model == "original" else ["--sampler", "ddim"]
        vdiff("sample", "--device", "cpu", "--checkpoint", model, "--out", f"{model}.png", "-n", "4", *sampler)
        with Image.open(here / f"{model}.png") as picture:
            assert np.array(picture).std() > 0
    base, student = (checkpoint.read_card(here / "runs/example" / name) for name in ("original", "base_0"))
    assert (base.num_steps, base.times, base.is_denoiser, base.format) == (4, 8, False, 2)
    assert (student.num_steps, student.times, student.is_denoiser, student.format) == (2, 2, True, 1)
    vdiff("evaluate", "--device", "cpu", "--n", "40", "--metrics", "agreement,brightness")
    table = json.loads((here / "runs/example/evaluation/table.json").read_text())
    assert all("brightness" in row["metrics"] for row in table["rows"])
    capsys.readouterr()
    vdiff("inspect", "runs/example/base_1", changes=[])
    assert "dit" in capsys.readouterr().out
    vdiff("inspect", "runs/example/original", changes=[])
    said = " ".join(capsys.readouterr().out.split())
    assert "times 8, which are i / 8 predictions one picture of those that fit" in said
    vdiff("report", "--device", "cpu", "--out", "report.html", changes=[])
    assert "Brightness" in (here / "report.html").read_text("utf-8")


def test_its_metric_of_pairs_goes_wherever_agreement_goes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured = [*SMALL, "evaluate={every: 4, num_images: 6, metrics: [agreement, edges]}"]
    vdiff(*TRAIN, changes=measured)
    vdiff(*DISTILL, changes=measured)
    log = [json.loads(line) for line in (here / "runs/example/log.jsonl").read_text().splitlines()]
    trend = [line["trend"] for line in log if "trend" in line and line["stage"] != "original"]
    assert trend
    assert all(list(each) == ["mse", "psnr", "ssim", "edges"] for each in trend)

    evaluate = ["evaluate", "--device", "cpu", "--n", "40"]
    vdiff(*evaluate, "--metrics", "agreement")
    before = rows_of(here)
    capsys.readouterr()
    vdiff(*evaluate, "--metrics", PAIRS)
    told = capsys.readouterr().out
    assert "edges to" in told
    assert "edges: steps between neighbouring pixels" in told
    for known, row in zip(before, rows_of(here), strict=True):
        for whom in ("teacher", "original"):
            if known[whom] is None:
                assert row[whom] is None
            else:  # what was known is not measured again, and stands beside what is new
                assert {**known[whom], "edges": row[whom]["edges"]} == row[whom]
                assert row[whom]["edges"] > 0
    vdiff("report", "--device", "cpu", "--out", "report.html", changes=[])
    page = (here / "report.html").read_text("utf-8")
    assert "Edges, its teacher" in page
    assert "Difference of edges" in page

    capsys.readouterr()
    vdiff("compare", "base_0", "base_1", "--metrics", "agreement,edges", "--json", changes=[])
    found = json.loads(capsys.readouterr().out)
    assert found["agreement"].keys() == {"mse", "psnr", "ssim"}
    assert found["pairs"]["edges"]["edges"] > 0


def rows_of(here: Path) -> list[dict[str, Any]]:
    table: dict[str, Any] = json.loads((here / "runs/example/evaluation/table.json").read_text())
    return list(table["rows"])


def test_a_base_is_not_asked_for_more_steps_than_its_objective_knows(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vdiff("recipes", "check", changes=["distill.start_steps=16"], code=2)
    said = " ".join(capsys.readouterr().err.split())
    assert "with `consistency_toy` the base knows 8 times, and `distill.start_steps` wants 16 steps of it" in said


def test_a_stopped_run_of_it_has_the_bits_of_an_unbroken_one(here: Path) -> None:
    vdiff(*TRAIN, "--run", "unbroken")
    vdiff(*TRAIN, "--run", "stopped", changes=[*SMALL, "train.updates=5"])
    assert [part.stem for part in (here / "stopped/saves/original/000000005").glob("*.safetensors")].count(
        "objective"
    ) == 1
    vdiff(*TRAIN, "--run", "stopped")
    one, other = (checkpoint.read_card(here / run / "original") for run in ("unbroken", "stopped"))
    assert one.updates == other.updates == 8
    assert one.hash == other.hash


def test_its_model_folder_claims_no_class_of_diffusers_and_says_how_to_load_it(here: Path) -> None:
    vdiff(*TRAIN)
    folder = here / "runs/example/original"
    assert not (folder / "model_index.json").exists()
    readme = (folder / "README.md").read_text()
    assert "diffusers does not know this network (`dit`)" in readme
    assert "vdiff sample" in readme


def test_without_the_package_its_recipe_and_models_say_what_they_need(
    here: Path, installed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vdiff(*TRAIN)
    sys.path.remove(str(installed))
    vdiff("recipes", "check", changes=[], code=2)
    assert "unknown kind `dit` of network" in capsys.readouterr().err
    vdiff("sample", "-r", "digits", "--checkpoint", "runs/example/original", changes=[], code=4)
    assert "install the package that brings" in capsys.readouterr().err


def test_the_example_uses_nothing_that_is_private() -> None:
    for path in (EXAMPLE / "vdiff_example").glob("*.py"):
        assert re.findall(r"import _|(?<!self)\._[a-z]\w*", path.read_text("utf-8")) == [], path.name


def test_its_model_folder_is_refused_when_its_card_tells_of_other_pictures(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vdiff(*TRAIN)
    path = here / "runs/example/original/vdiff.json"
    path.write_text(mark.sealed(json.loads(path.read_text()) | {"shape": [1, 16, 16]}))
    vdiff("sample", "--device", "cpu", "--checkpoint", "original", code=4)
    said = " ".join(capsys.readouterr().err.split())
    assert "contradicts itself: `image_size` in unet/config.json is not what vdiff.json says" in said
