"""Models of other programs come in whole and proved, or not at all."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vdiff import cli
from vdiff.diffusion.condition import Condition
from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.prediction import Prediction, Predicts
from vdiff.diffusion.schedule import BetasSection, CosineSchedule
from vdiff.disk import lock
from vdiff.errors import InUseError, ModelFileError
from vdiff.exchange import bring, proof, taking_in
from vdiff.formats.adapter import ForeignModel
from vdiff.model_folder import checkpoint
from vdiff.networks.unet import UNet
from vdiff.objectives.progressive import progressive_target
from vdiff.runs.folder import RunFolder

CONFIG = {
    "_class_name": "UNet2DModel",
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
}
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "prediction_type": "epsilon",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as diffusers writes one, with a network that predicts noise."""
    monkeypatch.chdir(tmp_path)
    made = tmp_path / "theirs"
    for name, content in {
        "model_index.json": {"_class_name": "DDPMPipeline"},
        "unet/config.json": CONFIG,
        "scheduler/scheduler_config.json": SCHEDULER,
    }.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(json.dumps(content))
    torch.manual_seed(0)
    network = UNet.from_config(CONFIG)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    save_file(network.state_dict(), made / "unet/diffusion_pytorch_model.safetensors")
    return made


def recorded(folder: Path, spoil: Callable[[Tensor], Tensor] = lambda output: output) -> Path:
    network = UNet.from_config(CONFIG).eval()
    network.load_state_dict(load_file(folder / "unet/diffusion_pytorch_model.safetensors"))
    z = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    time = torch.tensor([0.0, 400.0, 999.0])
    with torch.no_grad():
        output = spoil(network(z, time))
    path = folder.parent / "expected.npz"
    np.savez(path, z=z.numpy(), time=time.numpy(), output=output.numpy())
    return path


def test_an_import_is_compared_with_recorded_outputs_and_leaves_a_run(folder: Path) -> None:
    assert cli.main(["import", str(folder), "--expected", str(recorded(folder))]) == 0
    loaded = checkpoint.load(Path("runs/theirs/original"))
    card = loaded.card
    assert card.origin is not None
    assert card.origin["proof"]["how"] == "outputs"
    assert card.origin["proof"]["difference"] < 1e-6
    assert len(card.origin["sha256"]) == 64
    assert (card.parent, card.times, card.network) == (None, None, "unet")
    assert cli.main(["recipes", "check", "runs/theirs/recipe.yaml"]) == 0


def test_one_that_nothing_proves_says_so_in_its_card(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bring, "_of_library", lambda *given: None)
    assert cli.main(["import", str(folder)]) == 0
    origin = checkpoint.load(Path("runs/theirs/original")).card.origin
    assert origin is not None
    assert origin["proof"] == {"how": "none", "by": "nothing", "difference": None, "limit": None}


def test_one_that_is_off_leaves_nothing_and_says_by_how_much(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = recorded(folder, lambda output: output + 1e-3 * torch.ones(8))
    assert cli.main(["import", str(folder), "--expected", str(expected)]) == 4
    assert "differ by up to 0.001" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_missing_and_a_foreign_tensor_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_in.other"] = tensors.pop("conv_in.bias")
    save_file(tensors, weights)
    assert cli.main(["import", str(folder)]) == 4
    told = capsys.readouterr().err
    assert "lacks `conv_in.bias`" in told
    assert "`conv_in.other`" in told
    assert not Path("runs").exists()


def test_a_base_that_was_trained_here_is_never_replaced(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = ["--expected", str(recorded(folder))]
    assert cli.main(["import", str(folder), *expected]) == 0
    assert cli.main(["import", str(folder), *expected]) == 2
    assert cli.main(["import", str(folder), *expected, "--force"]) == 0
    place = Path("runs/theirs/original")
    loaded = checkpoint.load(place)
    checkpoint.save(place, replace(loaded.card, origin=None), loaded.denoiser)
    before = (place / "vdiff.json").read_bytes()
    capsys.readouterr()
    assert cli.main(["import", str(folder), *expected, "--force"]) == 2
    assert "was trained here" in capsys.readouterr().err
    assert (place / "vdiff.json").read_bytes() == before


def test_a_command_that_takes_a_model_takes_a_foreign_folder_too(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawing = ["sample", "--checkpoint", str(folder), "--steps", "2", "-n", "2", "--device", "cpu"]
    assert cli.main([*drawing, "--out", "a.png"]) == 0
    assert "imported `" in capsys.readouterr().err
    assert cli.main([*drawing, "--out", "b.png"]) == 0
    assert "imported `" not in capsys.readouterr().err
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    assert cli.main([*drawing, "--out", "c.png"]) == 2
    assert "another model" in capsys.readouterr().err
    shutil.rmtree("runs")
    assert cli.main([*drawing, "--out", "c.png"]) == 4
    assert f"import it first, with `vdiff import {folder}`; there " in capsys.readouterr().err


TINY = ("--set", "distill.start_steps=4", "--set", "distill.end_steps=2")


@pytest.mark.parametrize("command", ["distill --from", "sample --checkpoint"])
def test_a_dry_run_imports_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert cli.main([*command.split(), str(folder), "--device", "cpu", "--dry-run"]) == 2
    told = capsys.readouterr().err
    assert "is not imported yet" in told
    assert f"vdiff import {folder}" in told
    assert not Path("runs").exists()


def test_a_dry_run_prices_the_students_of_an_imported_model(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its recipe has no network: that of the base is measured."""
    assert cli.main(["import", str(folder)]) == 0
    capsys.readouterr()
    command = ["distill", "-r", "runs/theirs/recipe.yaml", *TINY, "--device", "cpu", "--dry-run"]
    assert cli.main(command) == 0
    told = capsys.readouterr()
    assert "4 -> 2" in told.out
    assert "nothing was written" in told.err
    assert not list(Path("runs/theirs").glob("base_*"))


def test_the_recipe_of_an_import_goes_before_one_that_lies_here(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["import", str(folder)]) == 0
    assert cli.main(["init", "celeba_u"]) == 0
    capsys.readouterr()
    command = ["distill", "--from", str(folder), *TINY, "--device", "cpu", "--dry-run"]
    assert cli.main(command) == 0
    assert "runs/theirs" in capsys.readouterr().err


def test_a_model_of_vdiff_that_lost_its_manifest_is_not_taken_for_a_foreign_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a folder of diffusers it would be drawn with in any number of steps."""
    assert cli.main(["import", str(folder), "--expected", str(recorded(folder))]) == 0
    lost = Path("runs/theirs/original")
    (lost / "vdiff.json").unlink()
    capsys.readouterr()
    recipe = ["-r", "runs/theirs/recipe.yaml"]
    assert cli.main(["sample", "--checkpoint", str(lost), *recipe, "--device", "cpu"]) == 4
    assert "no vdiff.json" in capsys.readouterr().err
    assert not Path("runs/original").exists()


def test_the_recipe_of_an_import_explains_what_is_in_it_and_nothing_else(folder: Path) -> None:
    expected = ["--expected", str(recorded(folder))]
    assert cli.main(["import", str(folder), *expected, "--out", "runs/eps"]) == 0
    said = Path("runs/eps/recipe.yaml").read_text("utf-8")
    assert "predicts: v" in said
    assert "# `distill.predicts: v`" in said
    scheduler = SCHEDULER | {"prediction_type": "v_prediction"}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    assert cli.main(["import", str(folder), *expected, "--out", "runs/v"]) == 0
    assert "distill.predicts" not in Path("runs/v/recipe.yaml").read_text("utf-8")


def test_a_name_on_a_hub_is_not_a_file_here(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["import", "google/ddpm-cifar10-32"]) == 2
    assert "`vdiff import hf://google/ddpm-cifar10-32`" in capsys.readouterr().err


def test_pictures_choose_among_readings_or_refuse_them() -> None:
    with pytest.raises(ModelFileError, match="cannot tell `a` from `b`"):
        proof.of_pictures({"a": 0.1, "b": 0.1001}, "store")
    assert proof.of_pictures({"a": 0.2, "b": 0.1}, "store") == "b"


@pytest.mark.parametrize("predicts", ["eps", "v", "x"])
def test_a_network_that_has_learned_nothing_proves_nothing(predicts: Predicts) -> None:
    """At late times z is nearly all noise, so even a v of 0 is right about most of it."""

    class Nothing(torch.nn.Module):
        def forward(self, z: Tensor, *rest: object) -> Tensor:
            return torch.zeros_like(z)

    x = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    denoiser = Denoiser(Nothing(), CosineSchedule(1000), predicts)
    error = proof.denoising_error(denoiser, x)
    with pytest.raises(ModelFileError, match="cannot tell noise"):
        proof.of_denoising(error, denoiser.schedule, x, "store")
    half = proof.known_to_anybody(denoiser.schedule, x) / 2
    checked = proof.of_denoising(half, denoiser.schedule, x, "store")
    assert checked.difference == pytest.approx(0.5)


@pytest.mark.parametrize("table", ["linear", "squaredcos_cap_v2", "sigmoid", "laplace"])
@pytest.mark.parametrize("zero_terminal", [False, True])
def test_tables_without_torch_agree_with_those_with(table: str, zero_terminal: bool) -> None:
    section = BetasSection.model_validate({"table": table, "zero_terminal": zero_terminal})
    times = [i / 1000 for i in range(1001)]
    exact = section.build().scales_at(times)
    assert np.allclose(section.scales_at(times), exact, rtol=0, atol=1e-9)
    assert (section.build().alpha_sigma(torch.ones(1))[0] == 0) == zero_terminal


def test_a_network_may_be_told_of_other_times_than_the_table_has() -> None:
    schedule = BetasSection(table="squaredcos_cap_v2", grid=4000, time_scale=0.25).build()
    t = torch.tensor([1 / 4000, 1.0], dtype=torch.float64)
    assert schedule.time_input(t).tolist() == [0.0, 999.75]


class Constant(torch.nn.Module):
    """Predicts the same noise everywhere."""

    def forward(self, z: Tensor, time: Tensor, condition: object, keys: object) -> Tensor:
        return torch.full_like(z, 0.5)


def test_a_teacher_that_predicts_noise_is_clipped_inside_the_target() -> None:
    """At the end of the schedule its x is eps over almost nothing:
    z = 3 gives 390 where pictures end at 1.
    """
    teacher = Denoiser(Constant(), BetasSection().build(), "eps")
    z = torch.full((1, 1, 2, 2), 3.0)
    step = torch.tensor([4.0], dtype=torch.float64)
    free = progressive_target(teacher, z, step, 4, 2)
    clipped = progressive_target(teacher, z, step, 4, 2, clip=1.0)
    assert free.abs().max() > 10
    assert clipped.abs().max() <= 1
    inside: Prediction = teacher(z * 0.1, torch.tensor([0.1]))
    assert inside.x.abs().max() < 1  # where nothing is to clip, the target is what it was
    low = torch.tensor([1.0], dtype=torch.float64)
    same = progressive_target(teacher, z * 0.1, low, 8, 2, clip=1.0)
    assert torch.allclose(same, progressive_target(teacher, z * 0.1, low, 8, 2), atol=1e-5)


@pytest.mark.parametrize("format", ["guided_diffusion", "lucidrains", "diffusion_distiller"])
def test_a_file_that_is_not_of_the_format_that_is_named_is_refused(
    tmp_path: Path, format: str
) -> None:
    """It was read as if it were, and that ended as a bug of vdiff."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    torch.save({"weight": torch.zeros(3)}, folder / "ema_0.99_000300.pt")
    with pytest.raises(ModelFileError, match=f"is no file of the format `{format}`") as found:
        bring.read(bring.Source(folder, format=format))
    assert found.value.fix == f"name the file: vdiff import {folder / 'ema_0.99_000300.pt'}"
    with pytest.raises(ModelFileError, match="is no file of the format") as found:
        bring.read(bring.Source(folder / "ema_0.99_000300.pt", format=format))
    assert "vdiff inspect" in found.value.fix
    with pytest.raises(ModelFileError, match="nothing that vdiff reads") as found:
        bring.read(bring.Source(folder))
    assert "ema_0.99_000300.pt" in found.value.fix


@pytest.mark.parametrize("how", ["outputs", "denoising", "none"])
def test_a_proof_tells_in_words_what_was_compared_and_how_it_came_out(how: str) -> None:
    told = proof.Proof(how, "its pictures", 0.5, 0.75).told()
    if how == "none":
        assert told == "nothing proved it"
        return
    assert "its pictures: 0.5" in told
    assert "(limit 0.75)" in told


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"label": None}, "does not say of which class"),
        ({"label": np.array([0, 1])}, "does not say of which class"),
        ({"label": np.array([0, 1, 3])}, "classes that the model does not know"),
        ({"label": np.array([0, -1, 2])}, "classes that the model does not know"),
        ({"time": np.array([1.0])}, "`time` of shape"),
        ({"output": np.zeros((3, 1, 8, 8), np.float32)}, "outputs have 1 channels"),
    ],
    ids=["none", "few", "large", "negative", "times", "channels"],
)
def test_a_recording_that_does_not_fit_is_refused(
    tmp_path: Path, wrong: dict[str, "np.ndarray | None"], told: str
) -> None:
    network = UNet.from_config(CONFIG | {"num_class_embeds": 3}).eval()
    denoiser = Denoiser(network, CosineSchedule(1000), "eps")
    model = ForeignModel(denoiser, "unet", {}, (3, 8, 8), num_classes=3, num_steps=4)
    z = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    label = torch.arange(3)
    time = torch.tensor([0.0, 400.0, 999.0])
    with torch.no_grad():
        output = network(z, time, Condition(label))
    right = {"z": z.numpy(), "time": time.numpy(), "output": output.numpy(), "label": label.numpy()}
    path = tmp_path / "expected.npz"
    np.savez(path, **right)
    assert proof.of_file(model, path).difference < 1e-6
    given = {name: array for name, array in (right | wrong).items() if array is not None}
    np.savez(path, **given)
    with pytest.raises(ModelFileError, match=told):
        proof.of_file(model, path)


def test_an_import_waits_for_the_one_that_is_under_way(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(Path("runs/theirs"))
    other = run.lock(lambda text: None)
    other.__enter__()
    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == 2:
            other.__exit__(None, None, None)

    monkeypatch.setattr(taking_in.time, "sleep", sleep)
    monkeypatch.setattr(lock, "PATIENCE", 0.0)
    draw = ["sample", "--checkpoint", str(folder), "--steps", "2", "-n", "1", "--out", "a.png"]
    assert cli.main(draw) == 0
    assert capsys.readouterr().err.count("waiting: ") == 1
    assert len(sleeps) == 2
    assert Path("a.png").is_file()


def test_an_import_does_not_wait_for_ever(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taking_in, "PATIENCE", 0.0)
    monkeypatch.setattr(lock, "PATIENCE", 0.0)
    draw = ["sample", "--checkpoint", str(folder), "--steps", "2", "-n", "1", "--out", "a.png"]
    with RunFolder(Path("runs/theirs")).lock(lambda text: None):
        assert cli.main(draw) == InUseError.exit_code
    assert "works in `runs/theirs`" in capsys.readouterr().err
    assert not Path("a.png").exists()


def test_an_import_takes_what_it_has_waited_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(Path("runs/theirs"))
    other = run.lock(lambda text: None)
    other.__enter__()
    written: list[int] = []

    def sleep(seconds: float) -> None:
        other.__exit__(None, None, None)
        # the other command is done: it has imported the same
        assert cli.main(["import", str(folder)]) == 0
        written.append((run.model("original") / "vdiff.json").stat().st_mtime_ns)

    monkeypatch.setattr(taking_in.time, "sleep", sleep)
    monkeypatch.setattr(lock, "PATIENCE", 0.0)
    draw = ["sample", "--checkpoint", str(folder), "--steps", "2", "-n", "1", "--out", "a.png"]
    assert cli.main(draw) == 0
    assert [(run.model("original") / "vdiff.json").stat().st_mtime_ns] == written
