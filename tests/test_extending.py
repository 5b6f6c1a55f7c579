"""A package that pip installs brings one kind of everything,
and vdiff does with them what it does with its own.
"""

import io
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
import torch
from PIL import Image

from tests import test_every_source
from vdiff import cli
from vdiff.data.store import ImageStore
from vdiff.diffusion.condition import Condition
from vdiff.disk import manifest
from vdiff.formats import FORMATS
from vdiff.formats.adapter import ForeignModel
from vdiff.formats.contents import contents_of
from vdiff.model_folder import checkpoint
from vdiff.recipe.recipe import tables

EXAMPLE = Path(__file__).parents[1] / "examples" / "vdiff-example"
KINDS = ["npy", "dit", "straight", "consistency_toy", "adams", "brightness"]
PAIRS = "edges"
"""Its metric of pairs; metrics of both sorts have one table."""
SMALL = [
    "train.updates=8",
    "train.save_every=3",
    "distill.updates=4",
    "distill.start_steps=4",
    "distill.end_steps=1",
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip has put the example, entry points and all."""
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    place = tmp_path_factory.mktemp("installed")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
    ]
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


def test_every_kind_of_the_example_is_one_of_its_table(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [
        kind for kind, table in zip(KINDS, tables(), strict=True) if kind not in table.sections()
    ] == []
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
        tests,
        env={**os.environ, "PYTHONPATH": paths},
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout


def test_it_trains_distills_samples_measures_and_is_told_of(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vdiff(*TRAIN)
    vdiff(*DISTILL)
    for model in ("original", "base_1"):
        sampler = [] if model == "original" else ["--sampler", "ddim"]
        vdiff(
            "sample",
            "--device",
            "cpu",
            "--checkpoint",
            model,
            "--out",
            f"{model}.png",
            "-n",
            "4",
            *sampler,
        )
        with Image.open(here / f"{model}.png") as picture:
            assert np.array(picture).std() > 0
    base, student = (
        checkpoint.read_card(here / "runs/example" / name) for name in ("original", "base_0")
    )
    assert (base.num_steps, base.times, base.is_denoiser, base.format) == (4, 8, False, 2)
    assert (student.num_steps, student.times, student.is_denoiser, student.format) == (
        2,
        2,
        False,
        1,
    )
    vdiff("evaluate", "--device", "cpu", "--n", "40", "--metrics", "agreement,brightness")
    table = json.loads((here / "runs/example/evaluation/table.json").read_text())
    assert all("brightness" in row["metrics"] for row in table["rows"])
    capsys.readouterr()
    vdiff("inspect", "runs/example/base_1", changes=[])
    assert "dit" in capsys.readouterr().out
    vdiff("inspect", "runs/example/original", changes=[])
    said = " ".join(capsys.readouterr().out.split())
    assert "times 8, which are i / 8 predictions not the mean of what fits" in said
    vdiff("report", "--device", "cpu", "--out", "report.html", changes=[])
    assert "Brightness" in (here / "report.html").read_text("utf-8")


def test_its_metric_of_pairs_goes_wherever_agreement_goes(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    assert (
        "with `consistency_toy` the base knows 8 times, "
        "and `distill.start_steps` wants 16 steps of it"
    ) in said


def test_a_stopped_run_of_it_has_the_bits_of_an_unbroken_one(here: Path) -> None:
    vdiff(*TRAIN, "--run", "unbroken")
    vdiff(*TRAIN, "--run", "stopped", changes=[*SMALL, "train.updates=5"])
    assert [
        part.stem for part in (here / "stopped/saves/original/000000005").glob("*.safetensors")
    ].count("objective") == 1
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


def npz(path: Path, first: int = 0, count: int = 40) -> Path:
    """Grey pictures of ten classes in one file."""
    images = np.random.default_rng(first).integers(0, 256, (count, 8, 8), np.uint8)
    np.savez(path, images=images, labels=np.arange(count) % 10)
    return path


STORE = ["data={kind: lmdb, path: store, size: 8, channels: 1}", *SMALL]


def test_a_source_of_it_becomes_a_store_that_training_reads(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(npz(here / "pictures.npz"))
    asked = ["prepare", source, "--out", "store", "--size", "8", "--channels", "1"]
    vdiff(*asked, changes=[])
    assert "40 pictures of 8 pixels in `store`" in capsys.readouterr().err
    store = ImageStore(here / "store")
    assert store.class_names == [str(label) for label in range(10)]
    assert store.labels is not None
    assert store.labels.tolist() == sorted(index % 10 for index in range(40))
    pixels = np.load(source)["images"]
    with Image.open(io.BytesIO(store.read(1, 8))) as second:  # of class 0: number 0, 10, 20, 30
        assert np.array_equal(np.array(second), pixels[10])
    vdiff(*asked, changes=[])
    assert (
        "holds these pictures already, by the size and the times of the file"
        in capsys.readouterr().err
    )
    vdiff(*TRAIN, changes=STORE)
    assert checkpoint.read_card(here / "runs/example/original").data[
        "fingerprint"
    ] == store.fingerprint_of(8)


def test_a_damaged_source_of_it_is_an_error_in_words(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, data in (
        ("cut.npz", npz(here / "whole.npz").read_bytes()[:100]),
        ("junk.npz", b"PK\3\4" + bytes(99)),
    ):
        (here / name).write_bytes(data)
        vdiff("prepare", name, "--out", "store", "--size", "8", changes=[], code=3)
        assert f"`{name}` has no `images` that can be read" in capsys.readouterr().err


def test_the_kinds_of_sources_are_told_where_somebody_looks(
    here: Path, installed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "list.txt").write_text("a.png")
    vdiff("prepare", "list.txt", "--out", "store", "--size", "8", changes=[], code=3)
    assert "give one of these with pictures in it: folder, tar, zip, npz" in capsys.readouterr().err
    paths = os.pathsep.join([str(installed), *sys.path])
    told = subprocess.run(
        [sys.executable, "-m", "vdiff", "prepare", "--help"],
        env={**os.environ, "PYTHONPATH": paths, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "one of: folder, tar, zip, npz" in " ".join(told.split())


@pytest.mark.parametrize(
    "name", [name for name in vars(test_every_source) if name.startswith("test_")][:7]
)
def test_the_source_of_it_does_what_every_source_must(
    here: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def pack(files: dict[str, bytes], path: Path) -> Path:
        images = [np.array(Image.open(io.BytesIO(data)).convert("RGB")) for data in files.values()]
        np.savez(
            path / "pictures.npz",
            images=np.stack(images),
            labels=[name.split("/")[0] for name in files],
        )
        return path / "pictures.npz"

    monkeypatch.setitem(test_every_source.EXPECTED, "npz", pack)
    check = getattr(test_every_source, name)
    starts = [{"start": start} for start in (0, 3, 8)] if "from_any_place" in name else [{}]
    for number, more in enumerate(starts):
        place = here / str(number)
        place.mkdir()
        check("npz", tmp_path=place, **more)
    assert len(list(here.iterdir())) >= len(starts)


def test_a_format_of_it_is_described_read_and_written(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vdiff(*TRAIN)
    made = checkpoint.load(here / "runs/example/original")
    diffusion = {"schedule": "straight", "predicts": "v"}
    model = ForeignModel(made.denoiser, "dit", diffusion, (1, 8, 8), num_classes=10, num_steps=1024)
    path = here / "loose.safetensors"
    FORMATS.find("loose")().write(model, path, {})
    capsys.readouterr()
    vdiff("inspect", str(path), changes=[])
    told = capsys.readouterr().out
    assert "weights of vdiff-example" in told
    assert "width 32" in told
    again = FORMATS.find("loose")().read(contents_of(path), {})
    assert (again.shape, again.num_classes, again.network) == ((1, 8, 8), 10, "dit")
    z, t, label = torch.randn(4, 1, 8, 8), torch.full((4,), 0.5), torch.arange(4)
    first, second = (each.denoiser(z, t, Condition(label)) for each in (model, again))
    assert torch.equal(first.x, second.x)
    assert first.x.std() > 0


def test_the_example_uses_nothing_that_is_private() -> None:
    for path in (EXAMPLE / "vdiff_example").glob("*.py"):
        assert re.findall(r"import _|(?<!self)\._[a-z]\w*", path.read_text("utf-8")) == [], (
            path.name
        )


def test_its_model_folder_is_refused_when_its_card_tells_of_other_pictures(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vdiff(*TRAIN)
    path = here / "runs/example/original/vdiff.json"
    path.write_text(manifest.sealed(json.loads(path.read_text()) | {"shape": [1, 16, 16]}))
    vdiff("sample", "--device", "cpu", "--checkpoint", "original", code=4)
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "contradicts itself: `image_size` in unet/config.json is not what vdiff.json says" in said
    )
