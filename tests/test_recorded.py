"""An import is held against a recorded noise process: its table, its times and drawn pictures."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.test_guided import RECORDED
from tests.test_import import CONFIG, SCHEDULER, folder
from vdiff import cli
from vdiff.errors import ModelFileError
from vdiff.exchange import bring, proof, recorded
from vdiff.model_folder import checkpoint
from vdiff.networks.unet import UNet

FOREIGN = Path(__file__).parents[2] / "shared" / "data" / "foreign"
needs_files = pytest.mark.skipif(
    not FOREIGN.is_dir(), reason="shared/data/foreign is not beside the repository"
)
__all__ = ["folder"]  # the fixture

INDEX = (999, 749, 499, 249)
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SCHEDULE = "scheduler/scheduler_config.json"


def table() -> Tensor:
    """Of SCHEDULER, as it is published: float64 [1000]."""
    return (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)


def theirs(folder: Path, limit: float | None, keeps_eps: bool = False) -> Tensor:
    """What DDIM draws with the network in the folder, written down from its formula."""
    network = UNet.from_config(CONFIG).eval()
    network.load_state_dict(load_file(folder / WEIGHTS))
    z = noise()
    x = z
    for place, index in enumerate(INDEX):
        signal = float(table()[index])
        with torch.no_grad():
            eps = network(z, torch.full((3,), float(index)))
        x = (z - (1 - signal) ** 0.5 * eps) / signal**0.5
        if limit is not None:
            x = x.clamp(-limit, limit)
            if not keeps_eps:
                eps = (z - signal**0.5 * x) / (1 - signal) ** 0.5
        if place + 1 < len(INDEX):
            after = float(table()[INDEX[place + 1]])
            z = after**0.5 * x + (1 - after) ** 0.5 * eps
    return x


def noise() -> Tensor:
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(4))


def npz(folder: Path, without: tuple[str, ...] = (), **changes: object) -> Path:
    """Recorded outputs with the whole process, but for some arrays."""
    network = UNet.from_config(CONFIG).eval()
    network.load_state_dict(load_file(folder / WEIGHTS))
    z = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    index = torch.tensor([0.0, 400.0, 999.0])
    with torch.no_grad():
        output = network(z, index)
    arrays: dict[str, object] = {
        "z": z.numpy(),
        "time": index.numpy(),
        "index": index.numpy(),
        "output": output.numpy(),
        "alphas_cumprod": table().numpy().astype(np.float32),
        "noise": noise().numpy(),
        "ddim_4_index": np.array(INDEX),
        "ddim_4_free": theirs(folder, None).numpy(),
        "ddim_4_clipped": theirs(folder, 1.0).numpy(),
        **changes,
    }
    path = folder.parent / "expected.npz"
    np.savez(path, **{name: each for name, each in arrays.items() if name not in without})  # type: ignore[arg-type]
    return path


def told_otherwise(folder: Path, **changes: object) -> None:
    """The folder's schedule file says something else than its network was trained with."""
    (folder / SCHEDULE).write_text(json.dumps({**SCHEDULER, **changes}))


def test_the_right_process_passes_and_the_card_says_what_was_compared(folder: Path) -> None:
    assert cli.main(["import", str(folder), "--expected", str(npz(folder))]) == 0
    origin = checkpoint.load(Path("runs/theirs/original")).card.origin
    assert origin is not None
    told = origin["proof"]["also"]
    assert told[0].startswith("noise table of 1,000 entries: largest difference ")
    assert "ddim_4_clipped, ddim_4_free" in told[1]
    assert float(told[0].rpartition(" ")[2]) < 1e-6
    assert float(told[1].rpartition(" ")[2]) < 1e-4


def test_programs_that_clip_x_and_keep_their_eps_are_known(folder: Path) -> None:
    kept = theirs(folder, 1.0, keeps_eps=True)
    assert float((kept - theirs(folder, 1.0)).abs().max()) > 0.02
    path = npz(folder, ddim_4_clipped=kept.numpy())
    assert cli.main(["import", str(folder), "--expected", str(path)]) == 0


TABLE_PARTS = ("alphas_cumprod", "index")
PICTURES = ("ddim_4_free", "ddim_4_clipped")


@pytest.mark.parametrize(
    ("wrong", "without", "words"),
    [
        ({"num_train_timesteps": 500}, PICTURES, "has 1000 entries, and that of the model has 500"),
        ({"beta_end": 0.021}, PICTURES, "alpha^2 is"),
        ({"beta_start": 0.00011}, PICTURES, "alpha^2 is"),
        ({"beta_schedule": "squaredcos_cap_v2"}, PICTURES, "alpha^2 is"),
        ({"beta_end": 0.021}, TABLE_PARTS, "does not draw the pictures"),
        ({"prediction_type": "sample"}, (), "does not draw the pictures"),
        ({"prediction_type": "v_prediction"}, ("ddim_4_free",), "does not draw the pictures"),
        ({"prediction_type": "v_prediction"}, ("ddim_4_clipped",), "does not draw the pictures"),
    ],
)
def test_a_wrong_table_or_prediction_leaves_nothing(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    wrong: Mapping[str, object],
    without: tuple[str, ...],
    words: str,
) -> None:
    path = npz(folder, without)
    told_otherwise(folder, **wrong)
    assert cli.main(["import", str(folder), "--expected", str(path)]) == 4
    assert words in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"time": np.array([0.0, 100.0, 249.75])}, "the network is fed"),
        ({"ddim_4_index": np.array([999, 749, 749, 249])}, "no falling indices"),
        ({"ddim_4_index": np.array([1000, 749, 499, 249])}, "no falling indices"),
        ({"noise": np.zeros((3, 3, 9, 9), np.float32)}, "have the shape"),
        ({"noise": np.zeros((2, 3, 8, 8), np.float32)}, "have the shape"),
        ({"index": np.array([1.0])}, "numbers `index`"),
        ({"alphas_cumprod": np.full(1000, np.nan)}, "alpha^2 is nan"),
        ({"ddim_4_free": np.full((3, 3, 8, 8), np.nan)}, "does not draw the pictures"),
    ],
)
def test_a_record_that_cannot_be_is_refused(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    changes: Mapping[str, object],
    words: str,
) -> None:
    path = npz(folder, **changes)
    model = bring.read(bring.Source(folder)).model
    with pytest.raises(ModelFileError) as caught:
        recorded.check_process(model, path)
    assert words in str(caught.value)


def test_classes_of_recorded_noise_are_asked_for(folder: Path) -> None:
    config = {**CONFIG, "num_class_embeds": 3}
    (folder / "unet/config.json").write_text(json.dumps(config))
    network = UNet.from_config(config)
    torch.manual_seed(0)
    save_file(network.state_dict(), folder / WEIGHTS)
    model = bring.read(bring.Source(folder)).model
    arrays = {
        "noise": noise().numpy(),
        "ddim_4_index": np.array(INDEX),
        "ddim_4_free": noise().numpy(),
    }
    path = folder.parent / "classes.npz"
    for label, words in [
        (None, "does not say of which class"),
        (np.array([0, 1]), "does not say of which class"),
        (np.array([0, 1, 3]), "that the model does not know"),
    ]:
        np.savez(path, **arrays, **({} if label is None else {"noise_label": label}))
        with pytest.raises(ModelFileError, match=words):
            recorded.check_process(model, path)


# --- files that other programs wrote

TOLD = {
    **RECORDED,
    "lucid_1": {"size": "16"},
    "lucid_3": {"size": "16"},
    "lucid_4": {"size": "16"},
    "lucid_7": {"size": "16", "groups": "4"},
    "lucid_9": {"size": "8"},
    "diffusers_1": {},
    "diffusers_3": {},
    "diffusers_4": {},
    "diffusers_7": {},
}


def source_of(name: str) -> Path:
    found = sorted((FOREIGN / name).glob("*.pt"))
    return found[0] if found else FOREIGN / name


@needs_files
@pytest.mark.parametrize("name", TOLD)
def test_every_recorded_process_is_that_of_the_import(name: str) -> None:
    expected = FOREIGN / name / "expected.npz"
    brought = bring.read(bring.Source(source_of(name), None, TOLD[name], expected))
    also = brought.proof.also
    assert len(also) == 2
    assert also[0].startswith("noise table of ")
    if name == "lucid_3":
        assert "not compared" in also[1]
    else:
        assert float(also[1].rpartition(" ")[2]) < recorded.SAMPLES_TOLERANCE


@needs_files
@pytest.mark.parametrize("name", ["guided_2", "improved_1"])
def test_the_record_finds_the_process_that_the_file_does_not_tell(name: str) -> None:
    """A learned variance, a cosine table, and times that are counted in another way."""
    expected = FOREIGN / name / "expected.npz"
    told = {key: RECORDED[name][key] for key in ("size", "steps") if key in RECORDED[name]}
    found = bring.read(bring.Source(source_of(name), None, told, expected)).model
    right = bring.read(bring.Source(source_of(name), None, RECORDED[name], expected)).model
    assert found.diffusion == right.diffusion


@needs_files
def test_a_wrong_schedule_for_a_real_file_is_refused() -> None:
    expected = FOREIGN / "guided_1" / "expected.npz"
    for wrong in ({"schedule": "cosine"}, {"steps": "4000"}, {"predicts": "x"}):
        told = {**RECORDED["guided_1"], **wrong}
        with pytest.raises(ModelFileError, match=r"noise table|draw the pictures"):
            bring.read(bring.Source(source_of("guided_1"), None, told, expected))
        model = bring.read(bring.Source(source_of("guided_1"), None, told)).model
        assert proof.of_file(model, expected).difference < 5e-6
