"""Checkpoints of rosinality's denoising-diffusion-pytorch come in and go out exactly."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.test_distiller import their_output, their_weights
from vdiff import cli
from vdiff.errors import ModelFileError, UsageError
from vdiff.exchange import proof
from vdiff.formats.adapter import ForeignModel
from vdiff.formats.contents import contents_of
from vdiff.formats.foreign import describe, format_of
from vdiff.formats.rosinality import RosinalityFormat
from vdiff.model_folder import checkpoint

WIDTH = 32


class DiffusionConfig:
    """What its trainer saves beside the weights: an object of a class of its own."""

    def __init__(self) -> None:
        self.n_iter = 10


def trainer_file(path: Path, tensors: dict[str, Tensor], **more: object) -> Path:
    raw = {name: tensor + 1 for name, tensor in tensors.items()}
    content = {"model": raw, "ema": tensors, "scheduler": {}, "optimizer": {"state": {}}}
    torch.save({**content, **more}, path)
    return path


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    monkeypatch.chdir(tmp_path)
    return their_weights(affine=False, width=WIDTH)


def read(path: Path, **told: str) -> ForeignModel:
    return RosinalityFormat().read(contents_of(path), {"size": "8", "heads": "2", **told})


@pytest.mark.parametrize("everywhere", [False, True])
def test_the_imported_network_computes_what_theirs_does(
    tmp_path: Path, weights: dict[str, Tensor], everywhere: bool
) -> None:
    """32 groups at every norm, colours as they are, noise predicted, times 0 to 999."""
    weights = their_weights(affine=everywhere, width=WIDTH, everywhere=everywhere)
    path = trainer_file(tmp_path / "diffusion_000010.pt", weights)
    model = read(path)
    z, time, condition = proof.inputs(model)
    wanted = output(weights, z, time)
    found = proof.output_of(model, z, time, condition)
    assert float(wanted.std()) > 0.3
    assert float((found - wanted).abs().max()) < 1e-5
    assert float((found - output(weights, z.flip(1), time).flip(1)).abs().max()) > 0.1
    assert model.denoiser.predicts == "eps"
    times = (torch.arange(1000, dtype=torch.float64) + 1) / 1000
    assert torch.allclose(model.denoiser.schedule.time_input(times), torch.arange(1000.0).double())
    signal = (1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)).cumprod(0)
    ours = model.denoiser.schedule.alpha_sigma(times)[0] ** 2
    assert torch.allclose(ours, signal, rtol=1e-9, atol=0)


def output(weights: dict[str, Tensor], z: Tensor, time: Tensor) -> Tensor:
    return their_output(weights, z, time, heads=2, groups=32)


def test_it_is_recognised_described_and_its_readings_are_tried(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    path = trainer_file(tmp_path / "a.pt", weights)
    found = contents_of(path)
    facts = describe(path).facts
    assert (facts["width"], facts["multipliers"], facts["blocks"]) == (WIDTH, [1, 2], 1)
    assert (facts["predicts"], facts["weights"]) == ("eps", "averaged")
    assert format_of(found, []) == "rosinality"
    readings = RosinalityFormat().candidates(found, {"size": "8"})
    assert readings[:2] == [
        {"size": "8", "heads": "1", "schedule": "linear"},
        {"size": "8", "heads": "1", "schedule": "cosine"},
    ]
    assert len(readings) == 8


def test_a_configuration_of_its_own_class_is_not_made_and_the_way_around_is_told(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    path = trainer_file(tmp_path / "a.pt", weights, conf=DiffusionConfig())
    assert format_of(contents_of(path), []) == "rosinality"
    names = describe(path).facts["names_that_would_be_executed"]
    assert any("DiffusionConfig" in name for name in names)
    with pytest.raises(ModelFileError, match="DiffusionConfig") as caught:
        read(path)
    # as the message says, in a clone of that program
    content = torch.load(path, weights_only=False)
    torch.save({"ema": content["ema"]}, tmp_path / "weights.pt")
    assert "['ema']" in caught.value.fix
    assert read(tmp_path / "weights.pt").shape == (3, 8, 8)


def test_it_goes_out_and_comes_back_with_the_same_bits(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    trainer_file(tmp_path / "a.pt", weights)
    told = ["--size", "8", "--heads", "4", "--assume", "schedule=cosine", "--assume", "steps=500"]
    assert cli.main(["import", "a.pt", "--out", "run", *told]) == 0
    first = checkpoint.load(Path("run/original"))
    assert cli.main(["export", "run/original", "--to", "rosinality", "--out", "b.pt"]) == 0
    content = torch.load("b.pt", weights_only=True)
    for part in ("model", "ema"):
        assert content[part].keys() == weights.keys()
        for name in weights:
            torch.testing.assert_close(content[part][name], weights[name], rtol=1e-6, atol=0)
    assert cli.main(["import", "b.pt", "--out", "back", *told]) == 0
    back = checkpoint.load(Path("back/original"))
    assert back.card.diffusion == first.card.diffusion
    ours, theirs = (each.denoiser.network.state_dict() for each in (first, back))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_it_cannot_hold_and_be_told_is_refused(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    model = read(trainer_file(tmp_path / "a.pt", weights))
    for told, words in [
        ({"schedule": "quad"}, "no schedule of that program"),
        ({"steps": "0"}, "`steps` is `0`"),
    ]:
        with pytest.raises((UsageError, ModelFileError), match=words):
            read(tmp_path / "a.pt", **told)
    unfit = [
        (replace(model, is_distilled=True), "it is a student"),
        (replace(model, denoiser=replace(model.denoiser, predicts="v")), "should predict eps"),
    ]
    for other, words in unfit:
        with pytest.raises(ModelFileError, match=words):
            RosinalityFormat().write(other, tmp_path / "b.pt", {})
        assert not (tmp_path / "b.pt").exists()
    bad = dict(weights)
    bad["mid.0.attention.other"] = bad.pop("mid.0.attention.out.bias")
    with pytest.raises(ModelFileError, match=r"lacks `mid\.0\.attention\.out\.bias`"):
        read(trainer_file(tmp_path / "c.pt", bad))
