"""The Python API: the same bits as the commands, errors that a person can read,
and results that show themselves.
"""

import hashlib
import io
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vdiff
from tests import api_run
from vdiff import cli


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    api_run.make(folder)
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a store and a run."""
    shutil.copytree(made / "store", tmp_path / "store")
    shutil.copytree(made / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(here: Path) -> vdiff.Model:
    return vdiff.load("runs/tiny/base_1", device="cpu")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_vdiff_imports_neither_torch_nor_numpy_nor_pydantic() -> None:
    code = (
        "import sys, vdiff; print(sorted({'torch', 'numpy', 'pydantic', 'PIL', "
        "'rich'} & set(sys.modules)))"
    )
    assert (
        python(f"{code}; print('load' in dir(vdiff), vdiff.UsageError.exit_code)") == "[]\nTrue 2"
    )


def test_every_public_name_is_there_and_no_other_one_is() -> None:
    assert [name for name in vdiff.__all__ if not hasattr(vdiff, name)] == []
    assert set(vdiff.__all__) <= set(dir(vdiff))
    assert sorted(vdiff.__all__) == list(vdiff.__all__)
    with pytest.raises(AttributeError, match="no attribute `lode`"):
        getattr(vdiff, "lode")  # noqa: B009 - a type checker would find it


def test_no_module_has_the_name_of_something_public() -> None:
    """`import vdiff.run` would put the module in the place of the function."""
    folder = Path(vdiff.__file__).parent
    assert {path.stem for path in folder.iterdir()} & set(vdiff.__all__) == set()


@pytest.mark.parametrize(
    "more", [{}, {"label": 1}, {"sampler": "ancestral"}, {"sampler": {"kind": "ddim", "eta": 0.5}}]
)
def test_a_sample_has_the_bits_of_the_command(here: Path, more: dict[str, object]) -> None:
    options = {"label": ["--class", "1"], "sampler": ["--sampler", "ancestral"]}
    words = [word for name in more for word in options[name]]
    if isinstance(more.get("sampler"), dict):
        words = ["--sampler", "ddim", "--eta", "0.5"]
    model = vdiff.load("runs/tiny/original", device="cpu")
    drawn = model.sample([7, 3, 2**40, 0, 1], steps=8, **more)  # type: ignore[arg-type]
    place = [
        "--recipe",
        "runs/tiny/original",
        "--checkpoint",
        "runs/tiny/original",
        "--device",
        "cpu",
    ]
    seeds = ["--seeds", f"7,3,{2**40},0,1", "--steps", "8"]
    assert cli.main(["sample", *place, *seeds, *words, "--out", "x.npz"]) == 0
    with np.load("x.npz") as expected:
        assert np.array_equal(expected["images"], drawn.uint8.permute(0, 2, 3, 1).numpy())
        assert expected["labels"].tolist() == drawn.labels.tolist()  # type: ignore[union-attr]
        assert json.loads(str(expected["about"])) == drawn.about
    assert drawn.uint8.float().std() > 10


def test_the_bits_do_not_depend_on_the_process(here: Path) -> None:
    """The command runs in a process of its own, whose memory lies elsewhere."""
    place = ["--recipe", "runs/tiny/base_1", "--checkpoint", "runs/tiny/base_1", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "vdiff", "sample", *place, "-n", "6", "--out", "x.npz"],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        check=False,
    )
    assert done.returncode == 0
    with np.load("x.npz") as expected:
        drawn = vdiff.load("runs/tiny/base_1", device="cpu").sample(range(6))
        assert np.array_equal(expected["images"], drawn.uint8.permute(0, 2, 3, 1).numpy())


def test_the_recipe_in_the_folder_says_how_it_draws(here: Path) -> None:
    """Its batch size is 4, and so the batches that are told of."""
    told: list[tuple[int, int]] = []
    vdiff.load("runs/tiny/base_1").sample(
        range(10), watch=lambda done, total: told.append((done, total))
    )
    assert told == [(4, 10), (8, 10), (10, 10)]
    told.clear()
    vdiff.load("runs/tiny/base_1").sample(
        range(10), batch_size=5, watch=lambda *counts: told.append(counts)
    )
    assert told == [(5, 10), (10, 10)]


def test_both_forms_of_an_image_are_one_image(model: vdiff.Model) -> None:
    drawn = model.sample(range(3))
    assert drawn.uint8.dtype == torch.uint8
    assert drawn.float.dtype == torch.float32
    assert torch.equal(drawn.uint8, ((drawn.float + 1) * 127.5).round().clamp(0, 255).byte())
    assert torch.equal(drawn[1].uint8, drawn.uint8[1:2])
    assert (drawn[-1].seeds, drawn[1:].seeds, len(drawn[1:])) == ((2,), (1, 2), 2)
    assert drawn[1:].about["vdiff.seeds"] == "1-2"
    with pytest.raises(IndexError):
        drawn[3]


def test_classes_are_taken_in_turn_or_by_seed(model: vdiff.Model) -> None:
    for label, expected in ((None, [1, 0, 1]), (1, [1, 1, 1]), ([0, 1], [0, 1, 0])):
        labels = model.sample([5, 6, 7], label=label).labels
        assert labels is not None
        assert labels.tolist() == expected


def test_the_denoiser_is_the_model_itself(model: vdiff.Model) -> None:
    z, t = torch.zeros(2, 3, 8, 8), torch.tensor([0.5, 1.0], dtype=torch.float64)
    with torch.no_grad():
        prediction = model.denoiser(z, t, vdiff.Condition(torch.tensor([0, 1])))
    assert prediction.x.shape == z.shape
    assert not any(weight.requires_grad for weight in model.denoiser.network.parameters())


def test_the_precision_is_the_one_that_is_asked_for(here: Path) -> None:
    model = vdiff.load("runs/tiny/base_1", device="cpu", precision="fp32")
    assert (model.precision, str(model.device)) == ("fp32", "cpu")
    assert {weight.dtype for weight in model.denoiser.network.parameters()} == {torch.float32}
    with pytest.raises(vdiff.UsageError, match="no precision `fp8`"):
        vdiff.load("runs/tiny/base_1", precision="fp8")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"seeds": []}, "`seeds` is empty"),
        ({"seeds": [-1]}, "`-1` is no seed"),
        ({"seeds": [2**63]}, "is no seed"),
        ({"seeds": 16}, "write it as seeds=range"),
        ({"seeds": [0.5]}, "whole numbers"),
        ({"steps": 0}, "`steps` should be a whole number from 1 on, not `0`"),
        ({"steps": True}, "not `True`"),
        ({"steps": 4}, "was distilled to 2 steps"),
        ({"batch_size": 0}, "`batch_size` should be"),
        ({"label": 2}, "`2` is no class of `base_1`"),
        ({"label": []}, "no classes in `label`"),
        ({"sampler": "dim"}, "ddim"),
        ({"sampler": {"kind": "ddim", "etta": 1}}, "eta"),
        ({"sampler": {"kind": "ddim", "eta": 2}}, "should be at most 1, is 2"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    model: vdiff.Model, wrong: dict[str, object], told: str
) -> None:
    with pytest.raises(vdiff.UsageError) as caught:
        model.sample(**wrong)  # type: ignore[arg-type]
    assert told in str(caught.value)
    assert "--" not in str(caught.value)  # no option of a command


def test_what_is_hardly_meant_is_a_warning(model: vdiff.Model) -> None:
    with pytest.warns(UserWarning, match="without fresh noise") as found:
        model.sample([0], sampler="ancestral")
    assert found[0].filename == __file__


def test_memory_that_runs_out_is_said_with_what_to_do(model: vdiff.Model) -> None:
    def refuse(*unused: object) -> None:
        raise torch.OutOfMemoryError("cannot have 7 GiB")

    model.denoiser.network.register_forward_pre_hook(refuse)
    with pytest.raises(vdiff.MachineError, match="out of memory: cannot have 7 GiB") as caught:
        model.sample([0])
    assert "batch_size" in caught.value.fix


def test_an_image_that_is_not_finite_is_an_error(model: vdiff.Model) -> None:
    for weight in model.denoiser.network.parameters():
        weight.fill_(math.nan)
    with pytest.raises(vdiff.DivergedError, match="1 of 1 pictures of `base_1`"):
        model.sample([0])


def test_a_watch_that_raises_ends_the_drawing(model: vdiff.Model) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.sample(range(9), watch=stop)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("runs/tiny", "`runs/tiny` is a run"),
        ("runs/tiny/base_9", "take one of: original, base_0, base_1, base_2"),
        ("runs/other/base_1", "there is no model folder `runs/other/base_1`"),
        ("store", "has no vdiff.json"),
        ("runs/tiny/log.jsonl", "there is no model folder"),
        ("~nobody-of-that-name/x", "there is no home folder"),
        ("a\0b", "it holds a zero byte"),
        ("a" * 300, "cannot be read: file name too long"),
    ],
)
def test_what_cannot_be_loaded_is_said(here: Path, path: str, told: str) -> None:
    with pytest.raises(vdiff.VdiffError) as caught:
        vdiff.load(path)
    assert told in str(caught.value)
    assert caught.value.fix


def test_a_name_is_no_path_of_the_current_folder(here: Path) -> None:
    shutil.copytree("runs/tiny/base_1", "base_1")
    with pytest.raises(vdiff.ModelFileError):
        vdiff.load("nowhere/base_1")


def test_a_damaged_model_is_refused(here: Path) -> None:
    with open("runs/tiny/base_1/unet/diffusion_pytorch_model.safetensors", "r+b") as file:
        file.seek(2000)
        file.write(b"\xff" * 8)
    with pytest.raises(vdiff.ModelFileError, match="is damaged"):
        vdiff.load(Path("runs/tiny/base_1"))


@pytest.mark.parametrize("name", ["x.png", "x.npz", "x.zip", "folder"])
def test_saved_images_are_those_of_the_command_and_are_not_replaced_unasked(
    model: vdiff.Model, name: str
) -> None:
    drawn = model.sample(range(4))
    assert drawn.save(name) == Path(name)
    place = [
        "--recipe",
        "runs/tiny/base_1",
        "--checkpoint",
        "runs/tiny/base_1",
        "--device",
        "cpu",
        "-n",
        "4",
    ]
    assert cli.main(["sample", *place, "--out", f"command/{name}" + "/" * (name == "folder")]) == 0
    assert contents(Path(name)) == contents(Path("command") / name)
    with pytest.raises(vdiff.UsageError, match="is there already"):
        drawn.save(name)
    drawn.save(name, force=True)
    assert contents(Path(name)) == contents(Path("command") / name)


def contents(path: Path) -> list[str]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    if path.suffix == ".npz":  # the archive holds the time
        with np.load(path) as arrays:
            return [f"{name} {arrays[name].tolist()}" for name in sorted(arrays)]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def test_nothing_of_others_is_replaced_even_by_force(model: vdiff.Model) -> None:
    Path("mine.png").write_text("a letter")
    with pytest.raises(vdiff.UsageError, match="vdiff did not make it"):
        model.show(1).save("mine.png", force=True)
    assert Path("mine.png").read_text() == "a letter"
    with pytest.raises(vdiff.UsageError, match="names no form"):
        model.show(1).save("x.jpeg")


def test_images_show_themselves_as_the_grid_that_is_saved(model: vdiff.Model) -> None:
    drawn = model.show(4)
    assert repr(drawn) == "ImageBatch(4 images [3, 8, 8], seeds 0-3)"
    with (
        Image.open(io.BytesIO(drawn._repr_png_())) as shown,
        Image.open(drawn.save("x.png")) as saved,
    ):
        assert np.array_equal(np.asarray(shown), np.asarray(saved))
        assert np.array_equal(np.asarray(shown), drawn.grid().permute(1, 2, 0).numpy())
    assert drawn.grid(columns=4).shape == (3, 36, 4 * 34 + 2)
    with pytest.raises(vdiff.UsageError, match="0 columns"):
        drawn.grid(columns=0)
    for use in (drawn[4:].grid, drawn[4:]._repr_png_, lambda: drawn[4:].save("y.png")):
        with pytest.raises(vdiff.UsageError, match="no images"):
            use()


def test_a_model_shows_its_card_and_its_picture(model: vdiff.Model) -> None:
    shown = model._repr_html_()
    assert model.card.hash[:16] in shown
    assert '<th style="text-align: left">steps</th><td style="text-align: left">2</td>' in shown
    assert "data:image/png;base64," in shown
    assert "Model('runs/tiny/base_1', 2 steps," in repr(model)


def test_a_card_cannot_bring_markup_into_a_notebook(model: vdiff.Model) -> None:
    model.path = Path("<script>alert(1)</script>")
    assert "<script" not in model._repr_html_()


def test_a_run_tells_its_models_log_recipe_and_state(here: Path) -> None:
    run = vdiff.run("runs/tiny")
    assert [(name, card.num_steps) for name, card in run.models.items()] == [
        ("original", 8),
        ("base_0", 4),
        ("base_1", 2),
        ("base_2", 1),
    ]
    assert run.recipe.train.updates == 5
    lines = [json.loads(line) for line in Path("runs/tiny/log.jsonl").read_text().splitlines()]
    assert run.log == [line for line in lines if "loss" in line]
    assert [row["update"] for row in run.log if row["stage"] == "original"] == [2, 4, 5]
    assert {type(value) for row in run.log for value in row.values()} == {str, int, float}
    assert run.load("base_0").card.name == "base_0"
    assert run.state is None  # a chain without a command leaves none


def test_a_run_tells_what_was_measured_meanwhile(here: Path) -> None:
    rows = vdiff.run("runs/tiny").trends
    lines = [json.loads(line) for line in Path("runs/tiny/log.jsonl").read_text().splitlines()]
    assert len(rows) == sum(len(line["trend"]) for line in lines if "trend" in line) > 0
    assert {tuple(row) for row in rows} == {("stage", "update", "metric", "value", "num_images")}


def test_what_is_damaged_in_a_log_or_a_run_is_left_out(here: Path) -> None:
    before = vdiff.run("runs/tiny").log
    with open("runs/tiny/log.jsonl", "a") as log:
        log.write(
            '{"stage": "base_2", "update": 3, "loss": {"a": 1}, "grad_norm": '
            'Infinity, "skipped": true}\n'
        )
        log.write('{"stage": "base_2", "update"')
    Path("runs/tiny/base_0/vdiff.json").write_text("{}")
    run = vdiff.run(Path("runs/tiny"))
    assert run.log[:-1] == before
    assert run.log[-1] == {
        "stage": "base_2",
        "update": 3,
        "loss": None,
        "grad_norm": None,
        "learning_rate": None,
        "skipped": None,
    }
    assert list(run.models) == ["original", "base_1", "base_2"]


@pytest.mark.parametrize("path", ["store", "nowhere", "runs/tiny/base_0"])
def test_what_is_no_run_is_said(here: Path, path: str) -> None:
    with pytest.raises(vdiff.DataError, match=path) as caught:
        vdiff.run(path)
    assert caught.value.fix


def test_a_run_and_its_report_show_themselves(here: Path) -> None:
    run = vdiff.run("runs/tiny")
    assert run._repr_html_().count("<svg") == 4
    report = run.report()
    assert '<iframe srcdoc="&lt;!doctype html&gt;' in report._repr_html_()
    assert report.save("a/x.html").read_text("utf-8") == report.html
    with pytest.raises(vdiff.UsageError, match="is there already"):
        report.save("a/x.html")
    report.save("a/x.html", force=True)


def test_a_store_gives_images_with_their_classes(here: Path) -> None:
    store = vdiff.open_store("store", size=8)
    assert (len(store), store.sizes, store.class_names, store.channels) == (
        12,
        (8, 16),
        ["cat", "dog"],
        3,
    )
    assert store.fingerprint == vdiff.load("runs/tiny/original").card.data["fingerprint"]
    items = [store[index] for index in range(len(store))]
    shown = store.show(5)
    for place in range(5):
        assert torch.equal(items[place][0], shown.uint8[place])
    assert shown.labels is not None
    assert shown.labels.tolist() == [label for _, label in items[:5]]
    assert torch.equal(store[-1][0], items[11][0])
    assert torch.equal(shown.float, shown.uint8 / 127.5 - 1)
    with pytest.raises(IndexError):
        store[12]
    with Image.open(io.BytesIO(store._repr_png_())) as picture:
        assert picture.size == (4 * 34 + 2, 3 * 34 + 2)


def test_what_cannot_be_opened_as_a_store_is_said(here: Path) -> None:
    with pytest.raises(vdiff.DataError, match="no image store in `runs`"):
        vdiff.open_store("runs")
    with pytest.raises(vdiff.DataError, match="no pictures of size 32"):
        vdiff.open_store("store", size=32)


def test_a_recipe_with_mistakes_names_their_lines(here: Path) -> None:
    text = Path("runs/tiny/recipe.yaml").read_text()
    Path("x.yaml").write_text(
        text.replace("updates: 5", "updates: -5").replace("flip: true", "flop: true")
    )
    with pytest.raises(vdiff.UsageError) as caught:
        vdiff.read_recipe("x.yaml")
    assert "x.yaml:3:" in str(caught.value)
    assert "x.yaml:6:" in str(caught.value)
    assert (
        vdiff.read_recipe("runs/tiny/base_1")
        == vdiff.read_recipe(Path("runs/tiny"))
        == vdiff.run("runs/tiny").recipe
    )
    with pytest.raises(
        vdiff.UsageError, match="no recipe `digit`; did you mean `digits`"
    ) as caught:
        vdiff.read_recipe("digit")
    assert "--" not in str(caught.value)


def test_progress_is_one_line_in_a_notebook_and_one_in_a_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    vdiff.show_progress(8, 16)
    vdiff.show_progress(16, 16)
    assert capsys.readouterr().err == "16 of 16 pictures\n"
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    vdiff.show_progress(8, 16)
    vdiff.show_progress(16, 16)
    assert capsys.readouterr().err == "\r8 of 16 pictures\r16 of 16 pictures\n"
