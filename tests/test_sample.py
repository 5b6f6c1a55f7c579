"""`vdiff sample`: the forms pictures are left in, what they say about themselves,
and what is refused.
"""

import copy
import json
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.full_disk import full_disk
from tests.tiny import TinyRun
from vdiff import digits
from vdiff.cli import main
from vdiff.diffusion.condition import NOTHING, Condition, of_seeds
from vdiff.diffusion.denoiser import Denoiser
from vdiff.disk import manifest
from vdiff.drawing.drawing import ranges
from vdiff.drawing.pictures import draw_with
from vdiff.images.images import to_float, to_uint8
from vdiff.machine.machine import Machine
from vdiff.model_folder import checkpoint
from vdiff.objectives.objective import Task
from vdiff.randomness import Randomness
from vdiff.recipe import text as recipe_text
from vdiff.recipe.recipe import Recipe
from vdiff.samplers.ancestral import Ancestral
from vdiff.samplers.ddim import Ddim
from vdiff.samplers.draw import draw
from vdiff.training.learner import Learner, RngOf


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three models whose weights are random but never zero:
    `original` (8 steps), `base_0` and `base_1`.
    """
    from vdiff.networks.unet import UNetSection

    run = tmp_path_factory.mktemp("models")
    network = UNetSection(width=4, multipliers=(1, 2), blocks=1, num_classes=2).build(8, 3)
    for number, (name, steps) in enumerate([("original", 8), ("base_0", 4), ("base_1", 2)]):
        torch.manual_seed(number)
        for weight in network.parameters():
            torch.nn.init.normal_(weight, std=0.15)
        save(run, name, steps, network, number)
    return run


def save(run: Path, name: str, steps: int, network: torch.nn.Module, stage: int) -> None:
    from vdiff.diffusion.schedule import CosineSchedule

    card = checkpoint.ModelCard(
        name=name,
        stage=stage,
        num_steps=steps,
        times=steps if stage else None,
        updates=1,
        shape=(3, 8, 8),
        num_classes=2,
        num_parameters=sum(weight.numel() for weight in network.parameters()),
        network="unet",
        diffusion={"schedule": {"kind": "cosine", "grid": 64}, "predicts": "v"},
        recipe="",
        parent={"name": "original", "num_steps": 2 * steps, "hash": "0" * 64} if stage else None,
        is_denoiser=stage == 0,
    )
    checkpoint.save(run / name, card, Denoiser(network, CosineSchedule(64), "v"))


@pytest.fixture
def here(tiny_run: TinyRun, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a recipe and a run of three models."""
    shutil.copytree(models, tiny_run.path / "runs" / "tiny")
    monkeypatch.chdir(tiny_run.path)
    return tiny_run.path


def sample(*arguments: str, model: str = "base_0", code: int = 0) -> None:
    assert main(["sample", "--checkpoint", model, *arguments, "--device", "cpu"]) == code


def arrays(path: str) -> dict[str, Any]:
    with np.load(path) as content:
        return dict(content)


def images(*arguments: str, model: str = "base_0") -> Any:
    sample(*arguments, "--out", "x.npz", "--force", model=model)
    return arrays("x.npz")["images"]


def error(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_without_options_there_is_a_grid_in_the_folder_samples(here: Path) -> None:
    sample("--clipped")
    with Image.open("samples/base_0-4-clipped.png") as picture:
        assert picture.size == (2 * 34 + 2,) * 2  # 4 pictures of the recipe, enlarged 4 times


def test_a_picture_says_where_it_comes_from(here: Path) -> None:
    sample("-n", "2", "--out", "grid.png")
    with Image.open("grid.png") as picture:
        text = picture.text  # type: ignore[attr-defined]
    assert text["vdiff.model"] == checkpoint.read_card(Path("runs/tiny/base_0")).hash
    assert text["vdiff.sampler"] == "ddim eta=0.0"
    assert (text["vdiff.stage"], text["vdiff.steps"], text["vdiff.seeds"]) == ("base_0", "4", "0-1")
    assert text["Software"].startswith("vdiff ")


def test_all_forms_hold_the_same_pictures(here: Path) -> None:
    expected = images("--seeds", "3,1")
    assert arrays("x.npz")["seeds"].tolist() == [3, 1]
    assert arrays("x.npz")["labels"].tolist() == [1, 1]
    assert json.loads(str(arrays("x.npz")["about"]))["vdiff.steps"] == "4"
    sample("--seeds", "3,1", "--out", "folder/")
    sample("--seeds", "3,1", "--out", "some/where/x.zip")
    assert sorted(path.name for path in Path("folder").iterdir()) == ["000001.png", "000003.png"]
    with zipfile.ZipFile("some/where/x.zip") as archive:
        assert archive.namelist() == ["000003.png", "000001.png"]
        for place, name in enumerate(archive.namelist()):
            with (
                Image.open(archive.open(name)) as zipped,
                Image.open(Path("folder") / name) as single,
            ):
                assert np.array_equal(np.asarray(zipped), expected[place])
                assert np.array_equal(np.asarray(single), expected[place])
                assert single.text[("vdiff.seeds")] == str(int(name[:6]))  # type: ignore[attr-defined]


def test_a_seed_that_is_asked_for_twice_gives_two_files(here: Path) -> None:
    sample("--seeds", "5,5,5", "--out", "folder/")
    assert sorted(path.name for path in Path("folder").iterdir()) == [
        "000005-2.png",
        "000005-3.png",
        "000005.png",
    ]
    sample("--seeds", "5,5", "--out", "x.zip")


def test_a_strip_shows_the_way_from_noise_to_picture(here: Path) -> None:
    sample("--strip", "-n", "2", "--out", "strip.png")
    with Image.open("strip.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (2 * 34 + 2, 5 * 34 + 2, 3)  # 2 pictures, the noise and 4 steps
    last = pixels[2:34:4, 4 * 34 + 2 : 5 * 34 : 4]
    assert np.array_equal(last, images("-n", "2")[0])


def test_a_step_that_needs_several_network_calls_is_told_as_such(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sample("--steps", "2", "-n", "1", model="original")
    assert "in 2 steps (ddim" in capsys.readouterr().err
    monkeypatch.setattr(Ddim, "calls_per_step", 2)
    sample("--steps", "2", "-n", "1", "--force", model="original")
    assert "in 2 steps and 4 network calls (ddim" in capsys.readouterr().err
    sample("--steps", "4", "-n", "1", "--sampler", "heun", "--force", model="original")
    assert "in 4 steps and 7 network calls (heun grid=uniform)" in capsys.readouterr().err


def test_a_gif_is_a_film_of_the_way(here: Path) -> None:
    sample("--gif", "-n", "1")
    with Image.open("samples/base_0-4.gif") as film:
        assert film.n_frames > 1  # type: ignore[attr-defined]
        assert film.size == (36, 36)


@pytest.mark.parametrize("options", [[], ["--sampler", "ancestral"], ["--eta", "0.5", "--clipped"]])
def test_the_batch_size_changes_no_picture_by_more_than_a_shade(
    here: Path, options: list[str]
) -> None:
    first, second = (
        images("-n", "5", "--batch-size", size, *options, model="original") for size in ("1", "64")
    )
    different = np.abs(first.astype(int) - second.astype(int))
    assert different.max() <= 1
    assert (different > 0).mean() <= 0.005  # a value must lie on the edge between two shades
    assert len(np.unique(first)) > 50


@pytest.mark.parametrize("sampler", [Ddim(), Ddim(eta=0.5), Ancestral(0.5)], ids=str)
def test_the_batch_size_changes_numbers_by_rounding_at_most(models: Path, sampler: Any) -> None:
    model = checkpoint.load(models / "original").denoiser
    condition = of_seeds(range(5), 2)
    alone, together = (
        draw(model, sampler, range(5), (3, 8, 8), 4, condition=condition, batch_size=size)
        for size in (1, 64)
    )
    assert (alone - together).abs().max() < 1e-6
    assert alone.std() > 0.1


@pytest.fixture(scope="module")
def taught() -> Denoiser:
    """The network of the recipe `digits` after a few updates:
    none of its layers is zero any more.
    """
    more = ["train.updates=12", "train.batch_size=16", "train.warmup_updates=0", "train.ema=null"]
    recipe = recipe_text.validate(Recipe, recipe_text.set_values(recipe_text.find("digits"), more))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network, settings = recipe.network.build(8, 1), recipe.train
    student = Denoiser(network, recipe.diffusion.schedule.build(), recipe.diffusion.predicts)
    objective = settings.objective.build(Task(settings.weighting, settings.updates, num_steps=8))
    made = Learner(student, objective, settings, Machine("fp32", "cpu"))
    x = to_float(torch.from_numpy(digits.load()[0][:16]))
    for update in range(12):
        made.step(x, NOTHING, RngOf(0, 0, update, torch.arange(16), 16))
    return made.result()


@pytest.mark.parametrize("sampler", [Ddim(), Ddim(eta=0.5, clip=1.2)], ids=str)
def test_a_real_network_draws_the_same_pictures_in_any_batch_to_rounding(
    taught: Denoiser, sampler: Any
) -> None:
    """float32 rounds by 6e-8; sums of some 600 products and 8 steps make of that less than 1e-4,
    1/78 of a shade.

    In float64, which rounds by 1e-16, the same must be below 1e-12: so it is rounding, and nothing
    of the other pictures gets in.
    """
    sizes = (1, 7, 64)
    alone, few, all_at_once = (
        draw(taught, sampler, range(64), (1, 8, 8), 8, batch_size=size) for size in sizes
    )
    exact = Denoiser(InDouble(taught.network), taught.schedule, taught.predicts)
    exactly = [
        torch.cat(
            [
                in_double(exact, sampler, range(start, min(start + size, 64)))
                for start in range(0, 64, size)
            ]
        )
        for size in sizes
    ]
    assert all_at_once.std() > 0.1
    for other in (alone, few):
        assert (other - all_at_once).abs().max() < 1e-4
        shades = (to_uint8(other).int() - to_uint8(all_at_once).int()).abs()
        assert shades.max() <= 1
        assert (shades > 0).float().mean() < 0.005
    for drawn in exactly[:2]:
        assert (drawn - exactly[2]).abs().max() < 1e-12
    assert (exactly[2] - all_at_once).abs().max() < 1e-4


class InDouble(torch.nn.Module):
    """A network that computes in float64."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).double()

    def forward(
        self, z: torch.Tensor, time: torch.Tensor, condition: Condition = NOTHING, keys: Any = None
    ) -> Any:
        return self.network(z, time.double(), condition, keys)


def in_double(denoiser: Denoiser, sampler: Any, seeds: range) -> torch.Tensor:
    rng = Randomness.for_images(torch.tensor(seeds))
    found: torch.Tensor = sampler(denoiser, rng.normal(1, 8, 8).double(), 8, rng)
    return found


def test_cuda_graphs_without_a_gpu_are_refused_before_anything_is_drawn(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample("--set", "sample.cuda_graphs=on", code=6)
    assert "set `sample.cuda_graphs: auto`" in error(capsys)
    assert not Path("samples").exists()
    assert (
        main(["train", "--set", "sample.cuda_graphs=on", "--device", "cpu", "--run", "runs/other"])
        == 6
    )


def test_a_command_draws_what_the_sampler_draws(here: Path) -> None:
    model = checkpoint.load(Path("runs/tiny/base_0")).denoiser
    by_hand = draw(
        model,
        Ddim(clip=1.2),
        [7, 8],
        (3, 8, 8),
        4,
        condition=Condition(torch.tensor([1, 0])),
        model_steps=4,
    )
    found = images("--seeds", "7-8", "--clipped")
    assert np.array_equal(found, to_uint8(by_hand).permute(0, 2, 3, 1).numpy())


def test_the_limit_of_the_noise_brings_that_of_the_picture_with_it(here: Path) -> None:
    model = checkpoint.load(Path("runs/tiny/base_0")).denoiser
    asked = {
        ("--clip-noise", "0.8"): Ddim(clip=1.2, clip_noise=0.8),
        ("--clip-noise", "0.8", "--clipped"): Ddim(clip=1.2, clip_noise=0.8),
        ("--clip-noise", "0.3", "--clipping-value", "0.3"): Ddim(clip=0.3, clip_noise=0.3),
        ("--set", "sample.sampler={kind: ddim, clip: 0.3, clip_noise: 0.3}"): Ddim(
            clip=0.3, clip_noise=0.3
        ),
        ("--set", "sample.sampler={kind: ddim, clip_noise: 0.5}", "--clipped"): Ddim(
            clip=1.2, clip_noise=0.5
        ),
    }
    for options, sampler in asked.items():
        by_hand = draw(
            model,
            sampler,
            [7, 8],
            (3, 8, 8),
            4,
            condition=Condition(torch.tensor([1, 0])),
            model_steps=4,
        )
        assert np.array_equal(
            images("--seeds", "7-8", *options), to_uint8(by_hand).permute(0, 2, 3, 1).numpy()
        )
        assert json.loads(str(arrays("x.npz")["about"]))["vdiff.sampler"] == str(sampler)
    sample("--clip-noise", "1.2")
    assert Path("samples/base_0-4-clip-noise.png").is_file()


def test_seeds_are_numbers_and_ranges(here: Path) -> None:
    images("--seeds", "2, 5-7,1")
    assert arrays("x.npz")["seeds"].tolist() == [2, 5, 6, 7, 1]
    assert [ranges(seeds) for seeds in ([3], [0, 1, 2], [2, 5], range(4))] == [
        "3",
        "0-2",
        "2,5",
        "0-3",
    ]


@pytest.mark.parametrize(
    "seeds", ["", "x", "1,,2", "5-3", "-1", "1-", "9223372036854775808", "0-99999999", "1.5"]
)
def test_seeds_that_are_none_are_refused(
    here: Path, capsys: pytest.CaptureFixture[str], seeds: str
) -> None:
    sample(f"--seeds={seeds}", code=2)
    assert re.search("numbers", error(capsys))


def test_a_class_can_be_chosen(here: Path) -> None:
    wanted = (["--class", "0"], ["--class", "1"], ["--class", "0-1"])
    zero, one, both = (images("--seeds", "4,4", *option) for option in wanted)
    assert np.array_equal(zero[0], zero[1])
    assert not np.array_equal(zero[0], one[0])
    assert np.array_equal(both[0], zero[0])
    assert np.array_equal(both[1], one[0])


def test_unless_a_class_is_chosen_it_follows_from_the_seed(here: Path) -> None:
    even, odd, both = images("--seeds", "4"), images("--seeds", "5"), images("--seeds", "5,4")
    assert np.array_equal(both, np.concatenate([odd, even]))
    assert np.array_equal(odd, images("--seeds", "5", "--class", "1"))


def test_clipping_and_fresh_noise_change_the_pictures(here: Path) -> None:
    plain, clipped, glossy, tighter, noisy, ancestral = (
        images("-n", "2", *options, model="original")
        for options in (
            [],
            ["--clipped"],
            ["--clip-noise", "1"],
            ["--clipped", "--clipping-value", "0.3"],
            ["--eta", "1"],
            ["--sampler", "ancestral", "--variance", "small"],
        )
    )
    for one, other in (
        (plain, clipped),
        (clipped, glossy),
        (clipped, tighter),
        (plain, noisy),
        (plain, ancestral),
    ):
        assert not np.array_equal(one, other)
    assert tighter.min() >= round((1 - 0.3) * 127.5)


def test_fewer_steps_are_taken_at_the_times_that_a_student_knows(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not np.array_equal(images("--steps", "2"), images())
    assert "warning" not in error(capsys)
    found = images("-n", "2", "--steps", "3")
    assert "3 does not divide 4" in error(capsys)
    model = checkpoint.load(Path("runs/tiny/base_0")).denoiser
    by_hand = draw(
        model,
        Ddim(),
        [0, 1],
        (3, 8, 8),
        3,
        condition=Condition(torch.tensor([0, 1])),
        model_steps=4,
    )
    assert np.array_equal(found, to_uint8(by_hand).permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("options", [["--eta", "0.5"], ["--sampler", "ancestral"]])
def test_fresh_noise_in_a_distilled_model_is_warned_of(
    here: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    images(*options)
    assert "warning: `base_0` was distilled to be sampled without fresh noise" in error(capsys)
    images(*options, model="original")
    assert "warning" not in error(capsys)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--steps", "5"], "was distilled to 4 steps"),
        (["-n", "2", "--seeds", "1"], "both say how many"),
        (["--strip", "--gif"], "two forms of one thing"),
        (["--strip", "--out", "x.npz"], "cannot hold what --strip makes"),
        (["--out", "x.jpg"], "names no form"),
        (["--clipping-value", "1"], "does nothing by itself"),
        (["--sampler", "dim"], "did you mean `ddim`"),
        (["--sampler", "ancestral", "--eta", "0.1"], "has no `eta`"),
        (["--variance", "small"], "has no `variance`"),
        (["--sampler", "ancestral", "--clip-noise", "1"], "`ancestral` has no `clip-noise`"),
        (["--sampler", "ancestral", "--variance", "tiny"], "no variance `tiny`"),
        (["--class", "2"], "`2` is no class of `base_0`, which knows 2 classes, 0 to 1"),
        (["--grid", "logsnr"], "the sampler `ddim` has no `grid`"),
        (["--sampler", "unipc", "--grid", "log"], "there is no grid `log`"),
        (["--sampler", "unipc", "--order", "2"], "the sampler `unipc` has no `order`"),
        (
            ["--sampler", "unipc"],
            "cannot draw with `base_0`, which knows the 4 times i / 4",
        ),
        (["--sampler", "dpmpp", "--clipped"], "a student is only defined by its own steps"),
        (["--strip", "-n", "300"], "too large"),
        (["--device", "tpu"], "no device `tpu`"),
    ],
)
def test_what_makes_no_sense_is_refused_with_nothing_written(
    here: Path, capsys: pytest.CaptureFixture[str], options: list[str], problem: str
) -> None:
    before = sorted(here.rglob("*"))
    assert main(["sample", "--checkpoint", "base_0", *options]) == 2
    said = error(capsys)
    assert problem in said
    assert "\nfix: " in said
    assert sorted(here.rglob("*")) == before


def test_a_folder_that_has_lost_its_mark_or_is_none_of_ours_is_not_said_to_be_missing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "runs/tiny/base_0/vdiff.json").unlink()
    (here / "pipeline" / "unet").mkdir(parents=True)
    for model, place in (("base_0", "runs/tiny/base_0"), ("./pipeline", "pipeline")):
        sample(model=model, code=4)
        said = error(capsys)
        assert f"`{place}` has no vdiff.json" in said
        assert "fix: take one of: original, base_1" in said


def test_a_model_without_classes_takes_none(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("runs/tiny/base_1/vdiff.json")
    folder.write_text(manifest.sealed(json.loads(folder.read_text()) | {"num_classes": 0}))
    sample("--class", "1", model="base_1", code=2)
    assert "`base_1` knows no classes" in error(capsys)


def test_what_is_there_is_not_overwritten_without_force(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out in ("x.png", "x.npz", "x.zip", "folder/"):
        sample("-n", "1", "--out", out)
        before = Path(out).stat().st_mtime_ns
        sample("-n", "1", "--out", out, code=2)
        assert f"`{out.rstrip('/')}` is there already" in error(capsys)
        assert Path(out).stat().st_mtime_ns == before
        sample("-n", "1", "--out", out, "--force")
    sample("--out", "x.png/", "--force", code=2)
    Path("empty").mkdir()
    sample("-n", "1", "--out", "empty")


def test_a_name_with_a_dot_and_a_slash_is_a_folder(here: Path) -> None:
    sample("-n", "1", "--out", "v1.5/")
    assert Path("v1.5/000000.png").is_file()


def test_a_full_disk_leaves_nothing_half_written(here: Path) -> None:
    for out in ("y.zip", "y.npz", "y.png"):
        with full_disk(200):
            sample("--out", out, code=6)
    assert [path.name for path in here.iterdir() if "y." in path.name] == []


def test_an_unknown_model_names_the_known_ones(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.rglob("*"))
    sample(model="base_9", code=4)
    said = error(capsys)
    assert "there is no model folder `base_9`" in said
    assert "fix: take one of: original, base_0, base_1" in said
    assert sorted(here.rglob("*")) == before


def test_a_damaged_model_is_not_used(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = Path("runs/tiny/base_0/unet/diffusion_pytorch_model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    sample(code=4)
    assert "unet/diffusion_pytorch_model.safetensors: its content changed" in error(capsys)
    assert not Path("samples").exists()


def test_without_a_recipe_there_is_a_hint(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").unlink()
    sample(code=2)
    assert "vdiff init" in error(capsys)


def test_a_model_folder_brings_its_own_recipe(here: Path, tiny_run: TinyRun) -> None:
    folder = Path("runs/tiny/base_0")
    card = folder / "vdiff.json"
    card.write_text(manifest.sealed(json.loads(card.read_text()) | {"recipe": tiny_run.text}))
    Path("recipe.yaml").unlink()
    sample("-n", "1", "--out", "x.png", model=str(folder))
    assert Path("x.png").is_file()


def test_json_is_one_object_on_stdout(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample("-n", "2", "--out", "x.png", "--json")
    said = json.loads(capsys.readouterr().out)
    assert said["out"] == "x.png"
    assert said["num_images"] == 2
    assert said["vdiff.model"] == checkpoint.read_card(Path("runs/tiny/base_0")).hash


def test_a_dry_run_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(here.rglob("*"))
    sample("-n", "2", "--out", "x.png", "--dry-run", "--json")
    said = capsys.readouterr()
    assert json.loads(said.out) == {"out": "x.png", "num_images": 2, "dry_run": True}
    assert "would draw 2 pictures" in said.err
    assert sorted(here.rglob("*")) == before


def advise(folder: Path, sampler: dict[str, Any]) -> None:
    model = checkpoint.load(folder)
    checkpoint.save(folder, replace(model.card, sampler=sampler), model.denoiser)


@pytest.mark.parametrize(
    ("asked", "in_recipe", "used"),
    [
        ([], "", "ancestral mix=0.0"),
        (["--variance", "large"], "", "ancestral mix=1.0"),
        (["--sampler", "ddim"], "", "ddim eta=0.0"),
        ([], "sampler: ddim, ", "ddim eta=0.0"),
    ],
)
def test_a_model_is_drawn_with_by_the_sampler_that_it_is_meant_for_where_none_is_named(
    here: Path, capsys: pytest.CaptureFixture[str], asked: list[str], in_recipe: str, used: str
) -> None:
    advise(here / "runs/tiny/base_0", {"kind": "ancestral", "variance": "small"})
    recipe = here / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("sample: {", "sample: {" + in_recipe))
    sample("--out", "x.png", "-n", "2", *asked)
    with Image.open("x.png") as picture:
        assert picture.text["vdiff.sampler"] == used  # type: ignore[attr-defined]


def test_a_sampler_that_is_not_there_is_told_and_another_can_be_named(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    advise(here / "runs/tiny/base_0", {"kind": "strange"})
    sample("--out", "x.png", code=4)
    said = " ".join(capsys.readouterr().err.split())
    assert "unknown kind `strange` of sampler" in said
    assert "--sampler" in said
    sample("--out", "x.png", "-n", "2", "--sampler", "ddim")
    advise(here / "runs/tiny/base_1", {"kind": "ddim", "eta": "much"})
    sample("--out", "y.png", model="base_1", code=4)


def test_without_a_word_a_page_draws_with_the_sampler_that_a_model_is_meant_for(here: Path) -> None:
    folder = here / "runs/tiny/base_0"
    plain = draw_with(checkpoint.load(folder), [1, 2])
    assert torch.equal(plain, draw_with(checkpoint.load(folder), [1, 2], sampler=Ddim()))
    advise(folder, {"kind": "ancestral"})
    assert not torch.equal(plain, draw_with(checkpoint.load(folder), [1, 2]))
