"""The benchmark for a GPU: as far as it goes without one,
and what it does when memory or time run out.
"""

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import vdiff
from benchmarks.gpu import MANY, Bench, BenchRow, main
from benchmarks.gpu_parties import Work
from benchmarks.guidance import main as guidance
from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.schedule import CosineSchedule
from vdiff.machine.machine import Machine
from vdiff.model_folder import checkpoint
from vdiff.model_folder.card import ModelCard
from vdiff.networks.unet import UNetSection

ROOT = Path(vdiff.__file__).parents[1]


@pytest.fixture(autouse=True)
def frozen() -> Iterator[None]:
    """Every task ends with a collection: what is imported need not be looked through again."""
    gc.freeze()
    yield
    gc.unfreeze()


def table(text: str) -> list[list[str]]:
    """The cells of every line but the first."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_on_a_cpu_it_measures_every_party_at_everything(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    gc.freeze()
    assert main(["--device", "cpu", "--tiny"]) == 0
    rows = table(capsys.readouterr().out)
    counts = {"training": 4, "distilling": 2, "sampling, 1": 5, "sampling, 4": 5}
    for network in ("celeba_u", "cifar10"):
        for what, count in counts.items():
            found = [row for row in rows if row[:2] == [network, what]]
            assert len(found) == count
            assert {row[3] for row in found} == {"1" if what == "sampling, 1" else "4"}
            assert all(
                float(row[5]) > 0 and float(row[6].rstrip("%")) >= 0 and float(row[7]) > 0
                for row in found
            )
    assert len(rows) == 2 * sum(counts.values())
    assert sum(row[2].endswith("CUDA graphs") for row in rows) == 4


def test_when_the_time_is_over_the_rows_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu", "--tiny", "--seconds", "0"]) == 0
    rows = table(capsys.readouterr().out)
    assert {row[4] for row in rows} == {"no time left"}
    assert {row[0] for row in rows} == {"celeba_u", "cifar10"}


def test_as_many_pictures_are_taken_at_once_as_fit() -> None:
    bench, tried = Bench(Machine("fp32", "cpu"), 60), []

    def make(count: int) -> Work:
        tried.append(count)
        if count > MANY // 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return lambda: None

    row = BenchRow("network", "training", "vdiff", MANY)
    assert bench._fitted(row, make)[1] == MANY // 4
    assert tried == [MANY, MANY // 2, MANY // 4]

    def broken(count: int) -> Work:
        raise RuntimeError("no CUDA graphs\nmore about it")

    assert bench._fitted(row, broken) == (None, 0)
    assert row.note == "no CUDA graphs"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_without_a_gpu_the_script_says_so_in_one_line() -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    script = ["bash", str(ROOT / "benchmarks/gpu.sh")]
    done = subprocess.run(script, capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.splitlines() == [
        "error: there is no CUDA GPU, which is what this benchmark measures"
    ]


def test_guided_digits_are_read_and_calls_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With random weights: what cannot be guided has no row but that of g = 1."""
    network = UNetSection(width=4, multipliers=(1,), blocks=1, num_classes=11).build(8, 1)
    for name, times in (("original", None), ("base_0", 2)):
        card = ModelCard(
            name=name,
            stage=0,
            num_steps=2,
            times=times,
            updates=1,
            shape=(1, 8, 8),
            num_classes=10,
            null_class=True,
            num_parameters=1,
            network="unet",
            diffusion={"schedule": {"kind": "cosine"}, "predicts": "v"},
            recipe="",
            is_denoiser=times is None,
        )
        denoiser = Denoiser(network, CosineSchedule(1024), "v")
        checkpoint.save(tmp_path / name, card, denoiser)
    guidance([str(tmp_path), "--n", "60", "--guidance", "1,2", "--epochs", "1"])
    rows = table(capsys.readouterr().out)
    assert [row[:4] for row in rows] == [
        ["original", "2", "1", "2"],
        ["original", "2", "2", "4"],
        ["base_0", "2", "1", "2"],
    ]
    assert all(float(row[5]) > 0 for row in rows)
