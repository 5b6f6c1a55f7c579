"""`vdiff evaluate`: one table of a whole run, that goes on where it was, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.test_sample import here, models  # noqa: F401 - fixtures
from vdiff import checkpoint
from vdiff.cli import main
from vdiff.data.prepare import prepare
from vdiff.errors import Stopped
from vdiff.evaluation.samples import Samples, Wanted
from vdiff.evaluation.subjects import of_run
from vdiff.images import to_float
from vdiff.metrics import table
from vdiff.metrics.agreement import agreement
from vdiff.run_folder import RunFolder
from vdiff.samplers.ddim import Ddim
from vdiff.training.machine import Machine

QUICK = ("--n", "12", "--metrics", "agreement,fd_pixel:4,swd", "--device", "cpu")


@pytest.fixture
def run(here: Path) -> RunFolder:  # noqa: F811
    """A run of three models, of which the second is the first one's student and the third the second one's."""
    folder = RunFolder(Path("runs/tiny"))
    (folder.path / "log.jsonl").touch()
    parent = None
    for name in ("original", "base_0", "base_1"):
        if parent is not None:
            link(folder.model(name), parent)
        parent = checkpoint.read_card(folder.model(name))
    return folder


def link(folder: Path, parent: checkpoint.ModelCard) -> None:
    """Make `parent` the teacher of a model."""
    from dataclasses import replace

    model = checkpoint.load(folder)
    told = {"name": parent.name, "num_steps": parent.num_steps, "hash": parent.hash}
    checkpoint.save(folder, replace(model.card, parent=told), model.denoiser)


def evaluate(*arguments: str, code: int = 0) -> None:
    assert main(["evaluate", *arguments, *QUICK]) == code


def content(run: RunFolder) -> Any:
    return json.loads(run.table.read_text())


def test_a_run_becomes_one_table(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate()
    found = table.read(run.table)
    assert found is not None
    assert [(row.model, row.num_steps, row.role) for row in found.rows] == [
        ("original", 8, "original"),
        ("original", 4, "undistilled"),
        ("original", 2, "undistilled"),
        ("base_0", 4, "student"),
        ("base_1", 2, "student"),
    ]
    for row in found.rows:
        assert set(row.metrics) == {"fd_pixel", "swd"}
        assert (row.seconds_per_image or 0) > 0
    last = found.rows[-1]
    assert last.teacher is not None
    assert last.original is not None
    assert (last.teacher.name, last.teacher.num_steps) == ("base_0", 4)
    assert (last.original.name, last.original.num_steps) == ("original", 8)
    assert (found.rows[0].teacher, found.rows[0].original) == (None, None)
    assert found.rows[1].original is not None
    out = capsys.readouterr().out
    assert "n = 12; seeds 0-11; ddim eta=0.0" in out
    assert "4 first principal components" in out
    assert not list((run.evaluation / "samples").glob("*"))


def test_agreement_is_that_of_the_pictures_that_are_drawn(run: RunFolder) -> None:
    evaluate()
    drawn = {}
    for name in ("base_0", "base_1"):
        assert main(["sample", "--checkpoint", name, "-n", "12", "--out", f"{name}.npz", "--device", "cpu"]) == 0
        with np.load(f"{name}.npz") as arrays:
            drawn[name] = to_float(torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2))
    expected = agreement(drawn["base_1"], drawn["base_0"])
    found = content(run)["rows"][-1]["teacher"]
    assert found["psnr"] == pytest.approx(expected.psnr)
    assert found["ssim"] == pytest.approx(expected.ssim)


def test_one_object_on_stdout_and_one_row_for_a_model(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate("runs/tiny/base_1", "--json")
    found = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in found["rows"]] == ["base_1"]
    assert found["rows"][0]["teacher"]["name"] == "base_0"
    assert found["rows"][0]["original"]["name"] == "original"
    assert not run.table.exists()


def test_an_interrupted_evaluation_goes_on_after_its_last_chunk(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vdiff.evaluation.samples._MOST_IN_CHUNK", 5)
    subject = of_run(run)[0]
    samples = Samples(run.evaluation / "samples", subject, Wanted(Ddim(), 12, 0, 4))
    machine, told = Machine("fp32", "cpu"), []

    def stop_in_the_second(count: int) -> None:
        told.append(count)
        if sum(told) > 5:
            raise Stopped(15, "enough")

    with pytest.raises(Stopped):
        samples.draw(machine, stop_in_the_second)
    assert [path.name for path in samples.folder.iterdir()] == ["00000000.npz"]
    made = (samples.folder / "00000000.npz").stat().st_mtime_ns
    again: list[int] = []
    samples.draw(machine, again.append)
    assert again[0] == 5
    assert sum(again) == 12
    assert (samples.folder / "00000000.npz").stat().st_mtime_ns == made
    whole = samples[0:12].clone()
    (samples.folder / "00000005.npz").write_bytes(b"damaged")
    samples.draw(machine, again.append)
    assert torch.equal(samples[0:12], whole)
    assert torch.equal(samples[3:8], whole[3:8])


def test_numbers_of_two_protocols_do_not_meet(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate()
    before = run.table.read_bytes()
    assert main(["evaluate", *QUICK, "--n", "13"]) == 2
    assert "another protocol (`num_images` differs: 12)" in capsys.readouterr().err
    assert run.table.read_bytes() == before
    assert main(["evaluate", *QUICK, "--n", "13", "--force"]) == 0
    assert content(run)["protocol"]["num_images"] == 13


def test_pictures_are_kept_when_asked(run: RunFolder) -> None:
    evaluate("--keep-samples")
    assert len(list((run.evaluation / "samples").iterdir())) == 5


def test_a_dry_run_writes_nothing(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate("--dry-run", "--json")
    assert json.loads(capsys.readouterr().out)["network_calls"] == 12 * (8 + 4 + 2 + 4 + 2)
    assert not run.evaluation.exists()


def test_two_evaluations_of_one_run_are_refused_but_a_training_may_go_on(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    with run.evaluating():
        evaluate(code=7)
    assert "works in" in capsys.readouterr().err
    with run.lock():
        evaluate()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--metrics", "fid_pixel"), 2, "unknown kind `fid_pixel`"),
        (("--metrics", "agreement:3"), 2, "takes no option"),
        (("--metrics", "swd,swd"), 2, "twice"),
        (("--metrics", "fd_pixel:many"), 2, "is no components"),
        (("--metrics", "fd_pixel"), 3, "needs at least 65 reference pictures"),
        (("--data", "nowhere"), 3, "there is no image store"),
        (("--data", "other"), 3, "holds no pictures of size 8"),
        (("--data", "grey"), 3, "have 1 channels"),
        (("--n", "3"), 2, "needs at least 5 samples"),
        (("--metrics", "fid", "--weights", "none.pth"), 4, "no weights in `none.pth`"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    run: RunFolder,
    make_pictures: Any,
    arguments: tuple[str, ...],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare(make_pictures(), Path("other"), sizes=[16])
    prepare(make_pictures(), Path("grey"), sizes=[8], channels=1)
    assert main(["evaluate", *QUICK, *arguments]) == code
    err = capsys.readouterr().err
    assert message in err
    assert "fix: " in err
    assert not run.table.exists()


def test_a_run_without_models_is_refused(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    for name in run.models():
        shutil.rmtree(run.model(name))
    evaluate(code=2)
    assert "vdiff train" in capsys.readouterr().err


def test_two_processes_make_the_table_of_one(run: RunFolder) -> None:
    evaluate()
    one = content(run)
    run.table.unlink()
    command = [sys.executable, "-m", "vdiff", "evaluate", *QUICK, "--gpus", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    two = content(run)
    assert one["protocol"] == two["protocol"]
    for row, other in zip(one["rows"], two["rows"], strict=True):
        assert (row["model"], row["num_steps"]) == (other["model"], other["num_steps"])
        for name, value in row["metrics"].items():
            assert other["metrics"][name]["value"] == pytest.approx(value["value"], rel=1e-3)
