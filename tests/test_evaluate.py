"""`vdiff evaluate`: one table of a whole run, that goes on where it was, and what it refuses."""

import json
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import noise_picture
from tests.forked import Forked, vdiff, vdiff_and_workers
from tests.full_disk import full_disk
from tests.test_sample import models  # noqa: F401 - a fixture
from tests.tiny import RECIPE, TinyRun
from vdiff.cli import main
from vdiff.data.prepare import prepare
from vdiff.disk import array_file
from vdiff.errors import Stopped
from vdiff.evaluation.samples import SampleRequest, Samples
from vdiff.evaluation.subjects import SOLVERS, of_run
from vdiff.images.images import to_float
from vdiff.machine.machine import Machine
from vdiff.metrics import table
from vdiff.metrics.agreement import agreement
from vdiff.model_folder import checkpoint
from vdiff.reporting.pair import drawn as compared
from vdiff.reporting.pictures import Studio
from vdiff.runs.folder import RunFolder

QUICK = ("--n", "12", "--metrics", "agreement,fd_pixel:4,swd", "--device", "cpu")


@pytest.fixture(scope="module")
def place(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A recipe, stores and a run of three models:
    the second is the first one's student, the third the second one's.
    """
    found = tmp_path_factory.mktemp("place")
    for number in range(12):
        picture = found / "pictures" / ("cat", "dog")[number % 2] / f"{number}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        noise_picture(12, 10, number).save(picture)
    prepare(found / "pictures", found / "store", sizes=[8])
    prepare(found / "pictures", found / "other", sizes=[16])
    prepare(found / "pictures", found / "grey", sizes=[8], channels=1)
    (found / "recipe.yaml").write_text(RECIPE.format(store="store"), encoding="utf-8")
    shutil.copytree(models, found / "runs/tiny")
    folder = RunFolder(found / "runs/tiny")
    folder.log.touch()
    parent = None
    for name in ("original", "base_0", "base_1"):
        if parent is not None:
            link(folder.model(name), parent)
        parent = checkpoint.read_card(folder.model(name))
    return found


NUM_ROWS = 5 + 2 * len(SOLVERS)
"""Of the run: three models, and the base in 4 and 2 steps, by DDIM and each solver."""


@pytest.fixture(scope="module")
def measured_place(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, evaluated."""
    found = tmp_path_factory.mktemp("measured") / "place"
    shutil.copytree(place, found)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(found)
        evaluate("-q")
    return found


@pytest.fixture(scope="module")
def kept_place(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, evaluated, with the pictures that were drawn for it."""
    found = tmp_path_factory.mktemp("kept") / "place"
    shutil.copytree(place, found)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(found)
        evaluate("--keep-samples", "-q")
    return found


@pytest.fixture
def run(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run that is not evaluated yet, in the current folder."""
    shutil.copytree(place, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return RunFolder(Path("runs/tiny"))


@pytest.fixture
def measured(measured_place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run that is evaluated, in the current folder."""
    shutil.copytree(measured_place, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return RunFolder(Path("runs/tiny"))


@pytest.fixture
def kept(kept_place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run that is evaluated and keeps its pictures, in the current folder."""
    shutil.copytree(kept_place, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return RunFolder(Path("runs/tiny"))


def link(folder: Path, parent: checkpoint.ModelCard) -> None:
    """Make `parent` the teacher of a model."""
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
        *[("original", steps, "solved") for steps in (4, 2) for _ in SOLVERS],
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
    solved = [row for row in found.rows if row.role == "solved"]
    assert {row.sampler for row in solved if row.num_steps == 4} == {
        "unipc grid=uniform",
        "unipc grid=logsnr",
        "ipndm grid=logsnr",
    }
    assert all(row.original is not None for row in solved)
    best = min(solved[:3], key=lambda row: row.metrics["fd_pixel"].value)
    assert next(row for row in found.shown() if row.role == "solved") == best
    out = capsys.readouterr().out
    assert "n = 12; seeds 0-11; ddim eta=0.0" in out
    assert "4 first principal components" in out
    assert not list((run.evaluation / "samples").glob("*"))


def test_agreement_is_that_of_the_pictures_that_are_drawn(measured: RunFolder) -> None:
    drawn = {}
    for name in ("base_0", "base_1"):
        assert (
            main(
                [
                    "sample",
                    "--checkpoint",
                    name,
                    "-n",
                    "12",
                    "--out",
                    f"{name}.npz",
                    "--device",
                    "cpu",
                ]
            )
            == 0
        )
        with np.load(f"{name}.npz") as arrays:
            drawn[name] = to_float(torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2))
    expected = agreement(drawn["base_1"], drawn["base_0"])
    found = content(measured)["rows"][-1]["teacher"]
    assert found["psnr"] == pytest.approx(expected.psnr)
    assert found["ssim"] == pytest.approx(expected.ssim)


def test_one_object_on_stdout_and_one_row_for_a_model(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
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
    samples = Samples(run.evaluation / "samples", subject, SampleRequest(None, 12, 0, 4))
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
    damage(samples.folder / "00000005.npz", "a cut")
    samples.draw(machine, again.append)
    assert torch.equal(samples[0:12], whole)
    assert torch.equal(samples[3:8], whole[3:8])


def drawn_by(run: RunFolder, num_images: int, first_seed: int, batch_size: int = 4) -> Samples:
    samples = Samples(
        run.evaluation / "samples",
        of_run(run)[0],
        SampleRequest(None, num_images, first_seed, batch_size),
    )
    samples.draw(Machine("fp32", "cpu"), lambda count: None)
    return samples


def test_a_seed_has_one_class_whatever_the_range_and_the_command(run: RunFolder) -> None:
    whole, part = drawn_by(run, 8, 0)[0:8], drawn_by(run, 5, 3)[0:5]
    assert torch.equal(part, whole[3:])
    studio = Studio({"original": run.model("original")}, run.evaluation / "report", range(3, 8))
    reported = studio.strip("original", "original", 8).pictures
    beside = compared((run.model("original"),) * 2, ("a", "b"), range(3, 8)).a.strip.pictures
    assert torch.equal(reported, part)
    assert torch.equal(beside, part)


def test_numbers_of_classes_that_were_counted_otherwise_do_not_meet(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--first-seed", "1", "--metrics", "agreement")
    assert main(["evaluate", *QUICK, *more]) == 0
    known = content(run)
    assert known["protocol"]["labels"] == "classes 0-1 by seed"
    known["protocol"]["labels"] = (
        "classes 0-1 in turn"  # as it was said when the first picture had class 0
    )
    run.table.write_text(json.dumps(known))
    assert main(["evaluate", *QUICK, *more]) == 2
    assert (
        "`labels` differs: classes 0-1 in turn and classes 0-1 by seed" in capsys.readouterr().err
    )
    assert (
        SampleRequest(None, 12, 4, 4).labels(2)
        == SampleRequest(None, 12, 0, 4).labels(2)
        == "classes 0-1 in turn"
    )


@pytest.mark.parametrize(
    ("num_images", "clock", "seconds"),
    [
        (
            14,
            [0, 10, 11, 13, 20, 22, 30, 37, 40],
            4 / 8,
        ),  # neither the first batch nor the last, smaller one
        (6, [0, 10, 11, 13, 20], 12 / 6),  # no full one after the first
        (4, [0, 10, 11], 10 / 4),
    ],
)
def test_seconds_per_picture_leave_out_the_first_batch_and_what_is_shown_between(
    run: RunFolder,
    num_images: int,
    clock: list[float],
    seconds: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """clock: when the drawing begins, then for each batch when it is there and
    when that has been told.
    """
    monkeypatch.setattr(
        "vdiff.evaluation.samples.time", SimpleNamespace(perf_counter=iter(clock).__next__)
    )
    assert drawn_by(run, num_images, 0).seconds_per_image() == pytest.approx(seconds)


def test_small_parts_in_a_row_open_each_chunk_once(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vdiff.evaluation.samples._MOST_IN_CHUNK", 5)
    samples = Samples(run.evaluation / "samples", of_run(run)[0], SampleRequest(None, 12, 0, 4))
    samples.draw(Machine("fp32", "cpu"), lambda count: None)
    whole, opened, images = samples[0:12], [], Samples._images

    def open_chunk(self: Samples, start: int) -> torch.Tensor:
        opened.append(start)
        return images(self, start)

    monkeypatch.setattr(Samples, "_images", open_chunk)
    for _ in range(2):
        assert torch.equal(
            torch.cat([samples[start : start + 2] for start in range(0, 12, 2)]), whole
        )
    assert opened == [0, 5, 10] * 2  # and nothing stays in memory afterwards


def test_a_signal_ends_an_evaluation_that_goes_on_with_what_is_drawn(run: RunFolder) -> None:
    more = [
        "--n",
        "80",
        "--batch-size",
        "4",
        "--metrics",
        "agreement",
        "--device",
        "cpu",
        "--keep-samples",
    ]
    drawn: dict[Path, int] = {}
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = Forked(vdiff, ["evaluate", *more], Path.cwd(), {"OMP_NUM_THREADS": "1"})
        deadline = time.monotonic() + 120
        while len(list(run.evaluation.glob("samples/*/[0-9]*.npz"))) == len(drawn):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        told = process.communicate(timeout=60)[0]
        assert process.returncode == code, told
        assert "Traceback" not in told
        assert not run.table.exists()
        before, drawn = drawn, times(run)
        assert before.items() <= drawn.items()
    assert main(["evaluate", *more]) == 0
    assert drawn.items() < times(run).items()
    assert run.table.exists()
    assert not list(run.evaluation.glob("**/.*partial*"))


def times(run: RunFolder) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in run.evaluation.glob("samples/*/[0-9]*.npz")}


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "a flipped bit":
        path.write_bytes(
            data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
        )
    elif how == "a cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "a huge header":
        path.write_bytes(
            data.replace(b"(12, ", b"(12000000000, ", 1).replace(b" " * 9 + b"\n", b"\n", 1)
        )
    elif how == "another shape":
        path.write_bytes(
            array_file.packed(
                {"images": np.zeros((1, 3, 8, 8), np.uint8), "seconds": np.array(1.0)}
            )
        )
    else:
        found = array_file.read(path)
        assert found is not None
        path.write_bytes(
            array_file.packed(
                {name: array[:1] if array.ndim else array for name, array in found.items()}
            )
        )


@pytest.mark.parametrize(
    "how",
    ["a flipped bit", "a cut", "a huge header", "another shape", "right words about wrong arrays"],
)
def test_pictures_and_statistics_that_are_damaged_are_made_again(kept: RunFolder, how: str) -> None:
    before, number = content(kept)["rows"], 0
    kept.table.unlink()
    for path in kept.evaluation.glob("*/**/*.npz"):
        number += 1
        damage(path, how)
    evaluate("--keep-samples", "-q")
    assert number > 3
    assert [row["metrics"] for row in content(kept)["rows"]] == [row["metrics"] for row in before]


def test_links_in_the_place_of_what_is_kept_are_neither_followed_nor_replaced(
    kept: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = content(kept)["rows"]
    kept.table.unlink()
    found = sorted(kept.evaluation.glob("*/**/*.npz"))
    for path in found:
        path.rename(path.with_name("elsewhere"))
        path.symlink_to("elsewhere")
    evaluate("--keep-samples", "-q", code=2)
    assert "00000000.npz` is there already, as a link" in capsys.readouterr().err
    for path in (path for path in found if path.parent.parent.name == "samples"):
        path.unlink()
    evaluate("--keep-samples", "-q")
    assert [row["metrics"] for row in content(kept)["rows"]] == [row["metrics"] for row in rows]
    assert all(path.is_symlink() for path in found if path.parent.name == "reference")
    assert all((path.parent / "elsewhere").is_file() for path in found)


def test_a_folder_that_is_a_link_is_not_evaluated_into(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("outside").mkdir()
    run.evaluation.mkdir()
    for name in ("samples", "reference", "evaluation.json"):
        (run.evaluation / name).symlink_to(Path("outside").absolute())
        evaluate(code=6)
        assert "is a link out of the run" in capsys.readouterr().err
        (run.evaluation / name).unlink()
    assert not list(Path("outside").iterdir())


def test_a_full_disk_ends_an_evaluation_and_what_is_drawn_stays(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    with full_disk(2000):
        evaluate(code=6)
    assert "the disk is full" in capsys.readouterr().err
    assert not run.table.exists()
    assert not list(run.evaluation.glob("**/.*partial*"))
    evaluate()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--n", "13"), "`num_images` differs: 12"),
        (("--first-seed", "1"), "`first_seed` differs: 0"),
        (("--set", "sample.sampler=ancestral"), "`sampler` differs: ddim eta=0.0"),
        (("--metrics", "agreement,swd:8"), "`swd` compares other features: pixels along 64"),
        (("--data", "grown"), "`reference` differs"),
    ],
)
def test_numbers_of_two_protocols_do_not_meet(
    measured: RunFolder,
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    noise_picture(8, 8, 99).save("pictures/cat/99.png")
    prepare(Path("pictures"), Path("grown"), sizes=[8])
    before = measured.table.read_bytes()
    assert main(["evaluate", *QUICK, *arguments]) == 2
    assert f"another protocol ({message}" in capsys.readouterr().err
    assert measured.table.read_bytes() == before
    assert not list((measured.evaluation / "samples").glob("*"))


def test_a_table_of_another_protocol_is_replaced_when_asked(measured: RunFolder) -> None:
    assert main(["evaluate", *QUICK, "--n", "13", "--force"]) == 0
    assert content(measured)["protocol"]["num_images"] == 13


def network_calls(*arguments: str, capsys: pytest.CaptureFixture[str]) -> int:
    capsys.readouterr()
    assert main(["evaluate", *QUICK, *arguments, "--dry-run", "--json"]) == 0
    return int(json.loads(capsys.readouterr().out)["network_calls"])


def test_what_a_table_knows_is_not_measured_again(
    measured: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert network_calls(capsys=capsys) == 0
    before = measured.table.read_bytes()
    evaluate()
    assert measured.table.read_bytes() == before
    assert network_calls("--force", capsys=capsys) == 12 * (8 + (4 + 2) * (2 + len(SOLVERS)))
    assert network_calls("--force", "--no-solvers", capsys=capsys) == 12 * (8 + (4 + 2) * 2)


def test_a_further_stage_gets_its_row_and_the_others_keep_theirs(
    measured: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    known = content(measured)
    known["rows"] = [row for row in known["rows"] if row["model"] != "base_1"]
    known["rows"][0]["metrics"]["swd"]["value"] = (
        123.0  # so that a second measurement of it would be seen
    )
    measured.table.write_text(json.dumps(known))
    assert network_calls(capsys=capsys) == 12 * (8 + 4 + 2)  # itself, its teacher and the original
    evaluate()
    rows = content(measured)["rows"]
    assert rows[:-1] == known["rows"]
    assert (rows[-1]["model"], rows[-1]["teacher"]["name"], rows[-1]["original"]["name"]) == (
        "base_1",
        "base_0",
        "original",
    )


def test_a_network_that_looks_at_pictures_tells_how_far_it_is(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch_fidelity", reason="the extra [eval] is not installed")
    import tests.test_fidelity  # noqa: F401 - registers the network `small`

    assert main(["evaluate", *QUICK, "--n", "13", "--metrics", "fid:small"]) == 0
    told = capsys.readouterr().err
    assert told.count("13 pictures through the network of a metric") == NUM_ROWS
    assert told.count("12 pictures through the network of a metric") == 1  # the reference
    assert "`fd_small` of 13 samples is too high" in told


def test_only_distances_that_few_samples_make_too_high_are_warned_of(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *QUICK, "--metrics", "agreement,fd_pixel:4,swd"]) == 0
    assert "too high" not in capsys.readouterr().err


def test_further_metrics_extend_the_table(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *QUICK, "--metrics", "agreement"]) == 0
    first = content(run)
    assert first["protocol"]["reference"] is None
    assert main(["evaluate", *QUICK, "--metrics", "swd"]) == 0
    second = content(run)
    assert second["protocol"]["reference"] is not None
    assert second["protocol"]["features"].keys() == {"agreement", "swd"}
    for before, after in zip(first["rows"], second["rows"], strict=True):
        assert after.pop("metrics").keys() == {"swd"}
        assert after == {name: value for name, value in before.items() if name != "metrics"}
    assert network_calls("--metrics", "agreement,swd", capsys=capsys) == 0


def test_a_model_that_was_made_again_is_measured_again(
    measured: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    link(measured.model("base_1"), checkpoint.read_card(measured.model("original")))
    assert network_calls(capsys=capsys) == 12 * (8 + 2)
    evaluate()
    last = content(measured)["rows"][-1]
    assert last["teacher"]["name"] == "original"
    assert last["hash"] == checkpoint.read_card(measured.model("base_1")).hash
    assert len(content(measured)["rows"]) == NUM_ROWS


@pytest.mark.parametrize(
    ("columns", "left_out"),
    [(60, ["dB", "ssim", "picture"]), (45, ["swd", "dB", "ssim"]), (200, [])],
)
def test_the_table_fits_the_terminal(
    measured: RunFolder,
    columns: int,
    left_out: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    evaluate()
    found = capsys.readouterr()
    lines = re.sub(r"\x1b\[\d*m", "", found.out.split("\n\n")[0]).splitlines()
    assert all(len(line) <= columns and "…" not in line for line in lines)
    assert [line.split()[0] for line in lines[-7:]] == [
        "original",
        "original,",
        "original,",
        "original,",
        "original,",
        "base_0",
        "base_1",
    ]
    for name in ("steps", "fd_pixel", "swd", "dB", "ssim"):
        assert (name not in "".join(lines[:-7])) == (name in left_out)
    assert all(name in found.err for name in left_out)
    assert all(len(line) <= columns for line in found.out.split("\n\n")[1].splitlines())


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (0.1, 0.0, 0.3, "0.10 ±0.15"),
        (0.1857, 0.1357, 0.2357, "0.186 ±0.050"),
        (16.7018, 16.6778, 16.7258, "16.702 ±0.024"),
        (4321.0, 4000.0, 4642.0, "4321 ±321"),
        (2e-8, 1e-8, 3e-8, "2e-08 ±1e-08"),
        (0.1, None, None, "0.1"),
        (1.25, 1.25, 1.25, "1.25"),
    ],
)
def test_a_number_is_as_exact_as_its_interval(
    value: float, low: float | None, high: float | None, text: str
) -> None:
    from vdiff.cli.evaluation_table import _value

    assert _value(table.Value(value=value, low=low, high=high)) == text


def test_a_student_far_down_a_chain_is_compared_with_the_original_also_alone(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny_run.path)
    tiny_run.base(run="runs/tiny")
    tiny_run.chain(run="runs/tiny").distill()
    capsys.readouterr()
    assert main(["evaluate", "runs/tiny/base_2", *QUICK, "--metrics", "agreement", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["teacher"]["name"], row["original"]["name"]) == ("base_1", "original")


def test_pictures_are_kept_when_asked(run: RunFolder) -> None:
    evaluate("--keep-samples")
    assert len(list((run.evaluation / "samples").iterdir())) == NUM_ROWS


def test_a_dry_run_writes_nothing(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate("--dry-run", "--json")
    assert json.loads(capsys.readouterr().out)["network_calls"] == 12 * (
        8 + (4 + 2) * (2 + len(SOLVERS))
    )
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
        (("--data", "other"), 3, "holds no pictures of size 8, which the model draws"),
        (("--data", "nowhere"), 3, "make one: vdiff prepare PICTURES --size 8"),
        (
            ("--data", "pictures"),
            3,
            "vdiff prepare pictures --size 8 --set data.channels=3 --out STORE",
        ),
        (("--data", "grey"), 3, "have 1 channels"),
        (("--n", "3"), 2, "needs at least 5 samples"),
        (("--metrics", "fid", "--weights", "none.pth"), 4, "no weights in `none.pth`"),
        (
            ("--metrics", "fid,precision", "--weights", "none.pth"),
            2,
            "weights of inception-v3-compat and vgg16",
        ),
        (
            ("--metrics", "swd", "--weights", "none.pth"),
            2,
            "no metric that is asked for reads weights",
        ),
        (
            ("--metrics", "agreement", "--weights", "none.pth"),
            2,
            "no metric that is asked for reads weights",
        ),
        (("--metrics", "kid"), 2, "`kid` needs at least 1,000 samples"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    run: RunFolder,
    arguments: tuple[str, ...],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["evaluate", *QUICK, *arguments]) == code
    err = capsys.readouterr().err
    assert message in err
    assert "fix: " in err
    assert not run.table.exists()


def test_a_run_without_models_is_refused(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in run.models():
        shutil.rmtree(run.model(name))
    evaluate(code=2)
    assert "vdiff train" in capsys.readouterr().err


def test_two_processes_make_the_table_of_one(measured: RunFolder) -> None:
    one = content(measured)
    measured.table.unlink()
    arguments = ["evaluate", *QUICK, "--gpus", "2"]
    process = Forked(vdiff_and_workers, arguments, Path.cwd(), {"OMP_NUM_THREADS": "1"})
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    two = content(measured)
    assert one["protocol"] == two["protocol"]
    for row, other in zip(one["rows"], two["rows"], strict=True):
        assert (row["model"], row["num_steps"]) == (other["model"], other["num_steps"])
        for name, value in row["metrics"].items():
            assert other["metrics"][name]["value"] == pytest.approx(value["value"], rel=1e-3)


def test_a_base_that_is_guided_or_no_denoiser_has_no_row_of_a_solver(run: RunFolder) -> None:
    assert {subject.role for subject in of_run(run)} >= {"solved", "undistilled"}
    assert "solved" not in {subject.role for subject in of_run(run, solvers=False)}
    model = checkpoint.load(run.model("original"))
    changes: list[dict[str, Any]] = [
        {"is_denoiser": False},
        {"guidance": {"kind": "baked", "value": 2.0}},
        {"times": 8},
    ]
    for change in changes:
        checkpoint.save(run.model("original"), replace(model.card, **change), model.denoiser)
        assert "solved" not in {subject.role for subject in of_run(run)}


def test_solvers_are_tried_in_few_steps_only(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In many, nobody is short of calls, and an evaluation would cost twice as much."""
    monkeypatch.setattr("vdiff.evaluation.subjects.MOST_SOLVED", 2)
    found = [(each.num_steps, each.solver) for each in of_run(run) if each.role == "solved"]
    assert found == [(2, solver) for solver in SOLVERS]
