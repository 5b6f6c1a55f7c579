"""An import of a file of denoising-diffusion-pytorch is held against that program itself."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.test_lucidrains import (
    CONFIG,
    FOREIGN,
    GENERATIONS,
    needs_files,
    network_of,
    trainer_file,
)
from vdiff import cli
from vdiff.errors import ModelFileError
from vdiff.exchange import bring
from vdiff.formats import lucidrains_library
from vdiff.formats.contents import contents_of
from vdiff.formats.foreign import describe
from vdiff.formats.lucidrains_layout import layout_of

PACKAGE = "denoising_diffusion_pytorch"
needs_library = pytest.mark.skipif(
    find_spec(PACKAGE) is None, reason="denoising-diffusion-pytorch is not installed"
)


def test_a_file_tells_the_arguments_of_its_network(tmp_path: Path) -> None:
    path = trainer_file(tmp_path / "model-1.pt", network_of(CONFIG), "2.1.0")
    dim = CONFIG["dim"]
    first, *others = CONFIG["widths"]
    assert lucidrains_library._arguments(layout_of(contents_of(path)), 500.0) == {
        "dim": dim,
        "init_dim": first,
        "dim_mults": tuple(width // dim for width in others),
        "channels": 3,
        "self_condition": False,
        "learned_variance": False,
        "sinusoidal_pos_emb_theta": 500.0,
        "attn_dim_head": tuple(each["head_dim"] for each in CONFIG["attentions"]),
        "attn_heads": tuple(each["heads"] for each in CONFIG["attentions"]),
        "full_attn": tuple(each["full"] for each in CONFIG["attentions"]),
    }


@pytest.mark.parametrize("generation", ["B", "C", "D"])
def test_an_older_file_is_not_held_against_version_2(tmp_path: Path, generation: str) -> None:
    from tests.test_lucidrains import wrapped

    rename = wrapped if generation == "D" else str
    path = trainer_file(
        tmp_path / "a.pt", network_of(GENERATIONS[generation]), "1.6.4", rename=rename
    )
    z, time = torch.zeros(1, 3, 8, 8), torch.zeros(1)
    assert lucidrains_library.outputs(contents_of(path), 10_000.0, z, time) is None


@needs_library
@pytest.mark.filterwarnings("ignore")
def test_an_import_is_compared_with_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    network = network_of({**CONFIG, "theta": 500.0})
    path = trainer_file(tmp_path / "model-1.pt", network, "2.1.0")
    told = {"size": "8", "theta": "500"}
    checked = bring.read(bring.Source(path, None, told)).proof
    assert (checked.how, checked.by.split()[0]) == ("outputs", "denoising-diffusion-pytorch")
    assert checked.difference < 5e-6
    assert cli.main(["import", str(path), "--size", "8", "--assume", "theta=500"]) == 0
    # the program is told the same theta, so a wrong network is what differs
    monkeypatch.setattr(lucidrains_library, "_arguments", _with_another_theta)
    with pytest.raises(ModelFileError, match="is not the one that made denoising-diffusion"):
        bring.read(bring.Source(path, None, told))


_arguments = lucidrains_library._arguments


def _with_another_theta(layout, theta):  # type: ignore[no-untyped-def]
    return _arguments(layout, 2 * theta)


@needs_library
@needs_files
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", [1, 3, 4])
def test_real_files_are_compared_with_the_program(number: int) -> None:
    path = FOREIGN / f"lucid_{number}" / "model-1.pt"
    checked = bring.read(bring.Source(path, None, {"size": "16"})).proof
    assert checked.how == "outputs"
    assert checked.difference < 5e-6


PREDICTIONS = {
    "eps": lambda snr: torch.ones_like(snr),
    "x": lambda snr: snr,
    "v": lambda snr: snr / (snr + 1),
    "ask": None,
}


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_the_description_says_what_is_predicted(tmp_path: Path, predicts: str) -> None:
    network = network_of(CONFIG)
    path = trainer_file(tmp_path / "a.pt", network, "2.1.0", PREDICTIONS[predicts])
    assert describe(path).facts["predicts"] == predicts


def test_the_description_of_bare_weights_says_that_it_must_be_asked(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(network_of(CONFIG).state_dict(), path)
    assert describe(path).facts["predicts"] == "ask"
