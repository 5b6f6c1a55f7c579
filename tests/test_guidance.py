"""`vdiff sample --guidance`: what is drawn, what says so, and which models are refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vdiff
from tests.tiny import TinyRun
from vdiff.cli import guiding, main
from vdiff.diffusion.condition import NOTHING, of_seeds
from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.guided import Guided
from vdiff.diffusion.schedule import CosineSchedule
from vdiff.drawing import classes, guidance
from vdiff.drawing.guidance import Guidance, Guide, guided
from vdiff.drawing.pictures import draw_with
from vdiff.evaluation.subjects import Subject
from vdiff.images.images import to_uint8
from vdiff.metrics import table
from vdiff.model_folder import checkpoint
from vdiff.model_folder.checkpoint import Checkpoint, ModelCard
from vdiff.networks.unet import UNetSection
from vdiff.samplers.ddim import Ddim
from vdiff.samplers.draw import draw

NAMES = ["cat", "dog"]
MODELS: dict[str, dict[str, Any]] = {
    "original": {"null_class": True, "data": {"class_names": NAMES}},
    "weak": {"null_class": True},
    "plain": {},
    "nothing": {"num_classes": 0},
    "weaker_nothing": {"num_classes": 0},
    "student": {"null_class": True, "is_denoiser": False, "times": 4},
    "other_noise": {"null_class": True, "diffusion": {"schedule": "cosine_logsnr"}},
    "small": {"null_class": True, "shape": (3, 16, 16)},
    "baked": {"null_class": True, "guidance": {"kind": "baked", "value": 2.5}},
    "told": {"guidance": {"kind": "input", "low": 1.0, "high": 4.0}},
    "told_high": {"guidance": {"kind": "input", "low": 2.0, "high": 4.0}},
    "future": {"guidance": {"kind": "telepathy"}},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of random weights, each with what makes it special."""
    run = tmp_path_factory.mktemp("models")
    for number, (name, special) in enumerate(MODELS.items()):
        facts: dict[str, Any] = {"num_classes": 2, "null_class": False, "shape": (3, 8, 8)}
        facts |= {"diffusion": {"schedule": {"kind": "cosine", "grid": 64}, "predicts": "v"}}
        facts |= special
        rows = facts["num_classes"] + facts["null_class"]
        section = UNetSection(width=4, multipliers=(1, 2), blocks=1, num_classes=rows or None)
        network = section.build(facts["shape"][-1], 3)
        torch.manual_seed(number)
        for weight in network.parameters():
            torch.nn.init.normal_(weight, std=0.15)
        if facts["diffusion"]["schedule"] == "cosine_logsnr":
            facts["diffusion"] = {"schedule": {"kind": "cosine_logsnr"}, "predicts": "v"}
        card = ModelCard(
            name=name,
            stage=0,
            num_steps=4,
            updates=1,
            num_parameters=sum(weight.numel() for weight in network.parameters()),
            network="unet",
            recipe="",
            **{"times": None, **facts},
        )
        checkpoint.save(run / name, card, Denoiser(network, CosineSchedule(64), "v"))
    return run


@pytest.fixture
def here(tiny_run: TinyRun, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a recipe and these models in its run."""
    shutil.copytree(models, tiny_run.path / "runs" / "tiny")
    monkeypatch.chdir(tiny_run.path)
    return tiny_run.path


def sample(*arguments: str, model: str = "original", code: int = 0) -> None:
    assert main(["sample", "--checkpoint", model, *arguments, "--device", "cpu"]) == code


def images(*arguments: str, model: str = "original") -> Any:
    sample(*arguments, "--out", "x.npz", "--force", model=model)
    with np.load("x.npz") as content:
        return dict(content)["images"]


def loaded(folder: Path, name: str) -> Checkpoint:
    return checkpoint.load(folder / name)


def with_card_of(folder: Path, name: str) -> Checkpoint:
    """Any network, as if it had learned what this card says."""
    return replace(loaded(folder, "plain"), card=checkpoint.read_card(folder / name))


def by_hand(model: Checkpoint, weak: Checkpoint | None = None, **options: Any) -> Any:
    """The pictures of the seeds 0 and 1, as `images` gives them."""
    inner = model.denoiser
    denoiser = Guided(
        inner.network, inner.schedule, inner.predicts, guide=weak and weak.denoiser, **options
    )
    condition = of_seeds(range(2), model.card.num_classes)
    drawn = draw(denoiser, Ddim(), range(2), (3, 8, 8), 4, condition=condition)
    return to_uint8(drawn).permute(0, 2, 3, 1).numpy()


def test_guidance_draws_what_the_guided_denoiser_draws(here: Path, models: Path) -> None:
    original = loaded(models, "original")
    two = ("-n", "2", "--guidance", "2.5")
    plain = images("-n", "2")
    strong = images(*two)
    assert np.array_equal(strong, by_hand(original, guidance=2.5, null_label=2))
    assert not np.array_equal(strong, plain)
    assert np.array_equal(images("-n", "2", "--guidance", "1"), plain)
    within = images(*two, "--guidance-interval", "0.5,2")
    expected = by_hand(original, guidance=2.5, null_label=2, interval=(0.5, 2.0))
    assert np.array_equal(within, expected)
    assert not np.array_equal(within, strong)
    clipped = images(*two, "--clipped", "--clipping-value", "0.5")
    assert not np.array_equal(clipped, strong)


def test_a_weaker_model_guides_with_and_without_classes(here: Path, models: Path) -> None:
    for strong, weak in (("original", "weak"), ("nothing", "weaker_nothing")):
        found = images("-n", "2", "--guidance", "2", "--guide-with", weak, model=strong)
        expected = by_hand(loaded(models, strong), loaded(models, weak), guidance=2.0)
        assert np.array_equal(found, expected)
        assert not np.array_equal(found, images("-n", "2", model=strong))


def test_pictures_say_how_they_were_guided_and_how_many_calls_they_took(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--guidance", "1.5", "--guidance-interval", "0.28,2.9", "--guide-with", "weak"]
    assert main(["--json", "sample", "--checkpoint", "original", "-n", "2", *arguments]) == 0
    said = capsys.readouterr()
    assert "in 4 steps and 8 network calls (ddim eta=0.0, guidance 1.5)" in said.err
    guide = checkpoint.read_card(here / "runs/tiny/weak").hash
    facts = json.loads(said.out)
    assert facts["vdiff.calls"] == "8"
    name = Path(f"samples/original-4-g1.5-in-0.28-2.9-by-{guide[:8]}.png")
    assert facts["out"] == str(name)
    with Image.open(name) as picture:
        text = picture.text  # type: ignore[attr-defined]
    expected = {"guidance": "1.5", "guidance_interval": "0.28-2.9", "guide": guide, "calls": "8"}
    assert {key: text[f"vdiff.{key}"] for key in expected} == expected
    sample("-n", "2")
    with Image.open("samples/original-4.png") as picture:
        plain = picture.text  # type: ignore[attr-defined]
    assert not any("guid" in key or "calls" in key for key in plain)


@pytest.mark.parametrize(
    ("model", "options", "problem"),
    [
        ("plain", ["--guidance", "2"], "`plain` has no null class"),
        ("nothing", ["--guidance", "2"], "`nothing` knows no classes to be guided to"),
        ("student", ["--guidance", "2"], "`student` predicts where a step leads"),
        ("baked", ["--guidance", "2"], "`baked` has guidance 2.5 inside"),
        ("baked", ["--guidance", "2.5", "--guide-with", "weak"], "learned without --guide-with"),
        ("told", ["--guidance", "4.5"], "`told` has learned guidance from 1 to 4"),
        ("told", ["--guidance", "2", "--guidance-interval", "1,2"], "without --guidance-interval"),
        ("future", [], "guidance of the kind `telepathy` inside, unknown here"),
        ("original", ["--guidance", "nan"], "`nan` is no guidance"),
        ("original", ["--guidance", "inf"], "`inf` is no guidance"),
        ("original", ["--guidance-interval", "1,2"], "--guidance-interval does nothing by itself"),
        ("original", ["--guide-with", "weak"], "--guide-with does nothing by itself"),
        ("original", ["--guidance", "2", "--guidance-interval", "2,1"], "is no interval"),
        ("original", ["--guidance", "2", "--guidance-interval", "nan,1"], "is no interval"),
        ("original", ["--guidance", "2", "--guidance-interval", "2"], "`2` is no interval"),
        ("original", ["--guidance", "2", "--guide-with", "nothing"], "`nothing` knows 0 classes"),
        ("original", ["--guidance", "2", "--guide-with", "small"], "makes pictures of (3, 16, 16)"),
        ("original", ["--guidance", "2", "--guide-with", "other_noise"], "another noise schedule"),
        ("original", ["--guidance", "2", "--guide-with", "baked"], "`baked` has guidance inside"),
        ("original", ["--guidance", "2", "--guide-with", "student"], "leads, and not a mean"),
        ("original", ["--class", "2"], "`2` is no class of `original`, which knows 2 classes"),
        ("original", ["--class", "1-7"], "`7` is no class of `original`"),
        ("original", ["--class", "1-0"], "`1-0` is no range of classes"),
        ("original", ["--class", "Dogs"], "did you mean `dog`?"),
        ("original", ["--class", "aardvark"], "there are: `cat`, `dog`"),
        ("plain", ["--class", "cat"], "does not know what its classes are called"),
        ("nothing", ["--per-class", "2"], "`nothing` knows no classes"),
        ("original", ["--per-class", "2", "-n", "3"], "both say how many"),
        ("original", ["--per-class", "2", "--seeds", "1"], "takes as many seeds, and 1 are named"),
    ],
)
def test_what_cannot_be_guided_is_refused_with_advice_and_nothing_is_written(
    here: Path, capsys: pytest.CaptureFixture[str], model: str, options: list[str], problem: str
) -> None:
    before = sorted(here.rglob("*"))
    sample(*options, model=model, code=2)
    said = capsys.readouterr().err
    assert problem in said
    assert "\nfix: " in said
    assert sorted(here.rglob("*")) == before


def test_a_graph_does_not_draw_with_guidance(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vdiff.drawing import onnx_graph

    monkeypatch.setattr(onnx_graph, "NEEDED", ("torch",))
    assert main(["sample", "--checkpoint", "original", "--backend", "onnx", "--guidance", "2"]) == 2
    assert "cannot be drawn by a graph: a graph asks the network once" in capsys.readouterr().err


def test_a_network_that_takes_g_is_told_it(models: Path) -> None:
    nothing = NOTHING
    for name, asked, g in (("told", 2.5, 2.5), ("told", None, 1.0), ("told_high", None, 2.0)):
        model = with_card_of(models, name)
        denoiser, condition = guided(model.card, model.denoiser, Guidance(asked), nothing, 3)
        assert denoiser is model.denoiser
        assert condition.guidance is not None
        assert condition.guidance.dtype == torch.float32
        assert condition.guidance.tolist() == [g] * 3
        assert guidance.strength(model.card, Guidance(asked)) == g
        assert guidance.calls(model.card, Guidance(asked)) == 1
        assert guidance.facts(model.card, Guidance(asked)) == {"guidance": f"{g:g}"}


def test_a_model_with_one_g_inside_takes_that_one_and_says_so(models: Path) -> None:
    model = with_card_of(models, "baked")
    for asked in (None, 2.5):
        found = guided(model.card, model.denoiser, Guidance(asked), NOTHING, 3)
        assert found == (model.denoiser, NOTHING)
        assert guidance.facts(model.card, Guidance(asked)) == {"guidance": "2.5"}


def test_a_guide_must_know_the_times_of_the_model(models: Path) -> None:
    card = loaded(models, "original").card
    weak = loaded(models, "weak")

    def asked(times: int | None) -> Guidance:
        return Guidance(2.0, guide=Guide(weak.folder, replace(weak.card, times=times)))

    assert guidance.way(card, asked(None)) == "twice"
    assert guidance.way(replace(card, times=4), asked(8)) == "twice"
    for own, times in ((None, 8), (8, 4)):
        with pytest.raises(guidance.UsageError, match="knows the times i / "):
            guidance.way(replace(card, times=own), asked(times))


def test_classes_are_known_by_their_names(here: Path) -> None:
    seeds = ("--seeds", "4,4,4")
    by_number = images(*seeds, "--class", "0,1,0")
    assert np.array_equal(images(*seeds, "--class", "cat,dog"), by_number)
    assert np.array_equal(images(*seeds, "--class", "cat, 1"), by_number)
    assert np.array_equal(images(*seeds, "--class", "0-1"), by_number)


def test_so_many_of_each_class_stand_in_rows_with_their_names(here: Path) -> None:
    found = images("--per-class", "3")
    assert len(found) == 6
    assert np.array_equal(found[:3], images("--seeds", "0-2", "--class", "cat"))
    assert np.array_equal(found[3:], images("--seeds", "0-2", "--class", "dog"))
    assert np.array_equal(images("--per-class", "3", "--class", "1"), found[3:])
    assert np.array_equal(images("--per-class", "2", "--seeds", "1,2"), found[[1, 2, 4, 5]])
    sample("--per-class", "3", "--out", "grid.png")
    with Image.open("grid.png") as picture:
        assert picture.text["vdiff.per_class"] == "3"  # type: ignore[attr-defined]
        page = np.asarray(picture.convert("RGB"))
    # two rows of three, each pixel 6 x 6, two pixels between, and the names at the left
    left = page.shape[1] - 3 * 50 - 2 - 4
    for place, expected in enumerate(found):
        top = 4 + 2 + place // 3 * 52
        begin = left + 2 + place % 3 * 50
        part = page[top : top + 48 : 6, begin : begin + 48 : 6]
        assert np.array_equal(part, expected), place
    assert page[:, :left].min() < 128
    assert page[:, left - 6 : left].min() == 255


def test_more_of_a_class_than_fit_into_a_row_make_several(here: Path) -> None:
    sample("--per-class", "18", "--class", "0", "--out", "grid.png")
    with Image.open("grid.png") as picture:
        height = picture.size[1]
    assert height == 2 * 52 + 8 + 8


def test_a_drawing_that_was_stopped_goes_on_with_the_same_guidance_only(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vdiff.drawing import drawing

    usual = drawing.draw_with
    drawn = 0

    def breaking(*given: Any, **options: Any) -> Any:
        nonlocal drawn
        drawn += 1
        if drawn > 1:
            raise KeyboardInterrupt
        return usual(*given, **options)

    monkeypatch.setattr(drawing, "draw_with", breaking)
    whole = ("--per-class", "4", "--batch-size", "4", "--out", "x.npz")
    strong = ("--guidance", "2", "--guide-with", "weak")
    sample(*whole, *strong, code=130)
    monkeypatch.setattr(drawing, "draw_with", usual)
    for other, told in (
        ((), "guidance: 2 -> none"),
        (("--guidance", "3", "--guide-with", "weak"), "guidance: 2 -> 3"),
        (("--guidance", "2"), "guide: "),
        ((*strong, "--guidance-interval", "0,1"), "guidance-interval: none -> 0-1"),
    ):
        sample(*whole, *other, code=2)
        assert told in capsys.readouterr().err
    sample("--batch-size", "4", "--out", "x.npz", "-n", "8", *strong, code=2)
    assert "per-class: 4 -> none" in capsys.readouterr().err
    sample(*whole, *strong)
    again = images("--per-class", "4", "--batch-size", "4", *strong)
    with np.load("x.npz") as content:
        assert np.array_equal(content["images"], again)


def test_without_guidance_the_one_hand_draws_as_ever(models: Path) -> None:
    model = loaded(models, "original")
    plain = draw(model.denoiser, Ddim(), range(3), (3, 8, 8), 4, condition=of_seeds(range(3), 2))
    assert torch.equal(draw_with(model, range(3)), plain)
    assert torch.equal(draw_with(model, range(3), guidance=Guidance(1.0)), plain)


def test_the_python_api_draws_the_same(here: Path) -> None:
    folder = here / "runs/tiny"
    model = vdiff.load(folder / "original", device="cpu")
    weak = vdiff.load(folder / "weak", device="cpu")
    batch = model.sample(
        range(3), label=["dog", 0], guidance=2, guidance_interval=(0.3, 2), guide=weak
    )
    strong = ("--guidance", "2", "--guidance-interval", "0.3,2", "--guide-with", "weak")
    found = images("--seeds", "0-2", "--class", "dog,cat", *strong)
    assert np.array_equal(batch.uint8.permute(0, 2, 3, 1).numpy(), found)
    assert batch.labels is not None
    assert batch.labels.tolist() == [1, 0, 1]
    assert batch.about["vdiff.guidance"] == "2"
    with pytest.raises(vdiff.UsageError, match="has no null class"):
        vdiff.load(folder / "plain", device="cpu").sample(range(2), guidance=2.0)
    wrong: list[dict[str, Any]] = [{"guidance": True}, {"guidance": "much"}]
    wrong += [{"guidance": 2, "guidance_interval": (1,)}]
    for given in wrong:
        with pytest.raises(vdiff.UsageError, match="is no guidance"):
            model.sample(range(2), **given)
    with pytest.raises(vdiff.UsageError, match="did you mean `dog`"):
        model.sample(range(2), label="dogs")


def evaluated(*arguments: str, code: int = 0) -> None:
    usual = ("--n", "8", "--metrics", "agreement,swd", "--device", "cpu", "--no-solvers")
    assert main(["evaluate", "run", *usual, *arguments]) == code


@pytest.fixture
def trained(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a base that has a null class, and a student that cannot be guided."""
    monkeypatch.chdir(tiny_run.path)
    (tiny_run.path / "recipe.yaml").write_text(tiny_run.text)
    tiny_run.base("train.label_drop=0.3")
    tiny_run.chain("train.label_drop=0.3").distill(count=1)
    return tiny_run.path


def test_an_evaluation_has_a_row_for_each_guidance(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def rows() -> list[tuple[str, int, float | None, int | None]]:
        found = table.read(trained / "run/evaluation/table.json")
        assert found is not None
        return [(row.model, row.num_steps, row.guidance, row.num_calls) for row in found.rows]

    plain = [("original", 8, None, None), ("original", 4, None, None), ("base_0", 4, None, None)]
    evaluated("--guidance", "3")
    assert "left out, as they cannot be guided so: `base_0`" in capsys.readouterr().err
    strong = [("original", 8, 3.0, 16), ("original", 4, 3.0, 8)]
    assert rows() == strong
    evaluated()
    assert rows() == plain + strong
    evaluated("--guidance", "1.5")
    mild = [("original", 8, 1.5, 16), ("original", 4, 1.5, 8)]
    assert rows() == plain + mild + strong
    before = (trained / "run/evaluation/table.json").read_bytes()
    evaluated("--guidance", "3")  # known already
    assert (trained / "run/evaluation/table.json").read_bytes() == before
    evaluated("--guidance", "1")  # is none
    assert rows() == plain + mild + strong
    said = capsys.readouterr()
    assert "original, g 1.5, undistilled" in said.out
    assert "4 (8 calls)" in said.out
    assert "original with ddim eta=0.0, guidance 3" in " ".join(said.out.split())
    found = table.read(trained / "run/evaluation/table.json")
    assert found is not None
    assert [(row.model, row.g) for row in found.alike().rows] == [(name, 1.0) for name, *_ in plain]
    undistilled = found.rows[4]
    assert undistilled.original is not None
    assert undistilled.original.sampler == "ddim eta=0.0, guidance 1.5"
    evaluated("--guidance", "nan", code=2)


def test_a_run_of_which_nothing_can_be_guided_is_refused(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny_run.path)
    (tiny_run.path / "recipe.yaml").write_text(tiny_run.text)
    tiny_run.base()
    evaluated("--guidance", "2", code=2)
    assert "`original` has no null class" in capsys.readouterr().err
    assert not (tiny_run.path / "run/evaluation").exists()


def test_two_models_are_compared_under_guidance(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ("--run", "runs/tiny", "--device", "cpu")
    assert main(["--json", "compare", "original", "weak", "--guidance", "2", *run]) == 0
    strong = json.loads(capsys.readouterr().out)
    assert (strong["a"]["guidance"], strong["b"]["guidance"]) == (2.0, 2.0)
    assert main(["--json", "compare", "original", "weak", *run, "--force"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["a"]["guidance"] is None
    assert plain["agreement"] != strong["agreement"]
    Path("compare.png").unlink()
    assert main(["compare", "original", "plain", "--guidance", "2", *run]) == 2
    assert "`plain` has no null class" in capsys.readouterr().err
    assert not Path("compare.png").exists()


def test_classes_that_are_called_by_other_numbers_are_found_by_their_names(models: Path) -> None:
    card = replace(
        checkpoint.read_card(models / "original"), data={"class_names": ["1", "2"]}, num_classes=2
    )
    assert classes.listed(card, "1,2", "--class") == [0, 1]
    assert classes.listed(card, "1-2", "--class") == [0, 1]
    # what is no name is a number, and a number of Python always is
    assert classes.listed(card, "0", "--class") == [0]
    assert classes.numbered(card, 1, "label") == 1


def test_a_model_with_one_g_inside_is_evaluated_with_a_hint(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = loaded(models, "original")
    card = replace(model.card, guidance={"kind": "baked", "value": 1.5})
    subject = Subject(model.folder, card, 4, "student")
    guiding.guidable([subject], 1.5)
    assert capsys.readouterr().err == ""
    guiding.guidable([subject], None)
    assert "`vdiff evaluate --guidance 1.5` sets them" in " ".join(capsys.readouterr().err.split())
