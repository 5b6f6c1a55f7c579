"""One g of a model that takes guidance goes into its weights: an ordinary model elsewhere."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.test_checkpoint import card, denoiser
from tests.test_exports import needs_onnx
from tests.test_guided_chain import guidable as guidable
from tests.tiny import TinyRun
from vdiff import cli
from vdiff.diffusion.condition import Condition
from vdiff.diffusion.denoiser import Denoiser
from vdiff.errors import ModelFileError, UsageError
from vdiff.exchange import bake, bring, take
from vdiff.model_folder import checkpoint
from vdiff.networks.unet_section import UNetSection

RANGE = {"kind": "input", "low": 1.0, "high": 4.0}
needs_diffusers = pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed"
)


def student(folder: Path, guidance: dict[str, Any] | None = None) -> checkpoint.Checkpoint:
    """A student of 4 steps with guidance as an input, every weight ordinary."""
    section = UNetSection(width=8, multipliers=(1, 2), blocks=1, num_classes=3)
    torch.manual_seed(1)
    network = section.build(8, 1)
    if guidance is None:
        guidance = RANGE
        network = network.with_guidance_input()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    model = Denoiser(network.eval(), denoiser().schedule, "v")
    given = {"num_steps": 4, "num_classes": 2, "null_class": True, "shape": (1, 8, 8)}
    checkpoint.save(folder, card(**given, times=4, guidance=guidance), model)
    return checkpoint.load(folder)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(5)
    return torch.randn(4, 1, 8, 8, generator=rng), torch.arange(4) * 15.0, torch.arange(4) % 2


def told(model: checkpoint.Checkpoint, guidance: float) -> Tensor:
    z, time, label = batch()
    out: Tensor = model.denoiser.network(z, time, Condition(label, torch.full((4,), guidance)))
    return out


@needs_diffusers
@pytest.mark.parametrize("guidance", [1.0, 1.5, 4.0])
def test_diffusers_computes_what_the_input_gives_for_this_guidance(
    tmp_path: Path, guidance: float
) -> None:
    from diffusers import UNet2DModel

    model = student(tmp_path / "base_2")
    out = tmp_path / "out"
    proof = take.write(model, "diffusers", out, {}, guidance)
    assert proof.how == "outputs"
    (also,) = proof.also
    assert f"guidance {guidance:g} in the weights" in also
    theirs = UNet2DModel.from_pretrained(out / "unet").eval()
    z, time, label = batch()
    with torch.no_grad():
        found = theirs(z, time, class_labels=label).sample
    wanted = told(model, guidance)
    size = max(1.0, float(wanted.square().mean().sqrt()))
    # two programs, each with its own order of sums in float32
    assert float((found - wanted).abs().max()) < 5e-6 * size
    assert float((found - told(model, 2.5)).abs().max()) > 1e-3
    assert "Guidance is a part of the weights" in (out / "README.md").read_text()
    again = bring.read(bring.Source(out))
    assert again.model.denoiser.network.config.get("takes_guidance") is None


def test_the_proof_is_that_of_rounding_one_bias(tmp_path: Path) -> None:
    model = student(tmp_path / "base_2")
    for guidance in (1.0, 1.5, 4.0):
        before = take.model_of(model)
        after = take.model_of(bake.baked(model, guidance))
        sentence = bake.prove(before, after, guidance)
        assert float(sentence.rpartition(" ")[2]) < 1e-6
        with pytest.raises(ModelFileError, match="gives other outputs"):
            bake.prove(before, after, guidance + 1e-3)


def test_safetensors_come_back_with_their_guidance(tmp_path: Path) -> None:
    model = student(tmp_path / "base_2")
    out = tmp_path / "out.safetensors"
    take.write(model, "safetensors", out, {}, 1.5)
    assert not [name for name in load_file(out) if name.startswith("guidance_embedding")]
    brought = bring.read(bring.Source(out))
    assert brought.model.guidance == {"kind": "baked", "value": 1.5}


@needs_onnx
def test_a_graph_of_one_guidance(tmp_path: Path) -> None:
    proof = take.write(student(tmp_path / "base_2"), "onnx", tmp_path / "out", {}, 1.5)
    assert proof.difference < 1e-5


def test_a_program_of_torch_of_one_guidance(tmp_path: Path) -> None:
    proof = take.write(student(tmp_path / "base_2"), "torch_export", tmp_path / "out.pt2", {}, 1.5)
    assert proof.difference < 1e-5


@pytest.mark.parametrize("name", ["diffusers", "safetensors", "onnx", "torch_export"])
def test_without_a_guidance_the_export_says_what_to_type(tmp_path: Path, name: str) -> None:
    model = student(tmp_path / "base_2")
    with pytest.raises(UsageError) as caught:
        take.write(model, name, tmp_path / "out", {})
    assert "takes guidance from 1 to 4 as an input" in caught.value.problem
    assert "--guidance 1" in caught.value.fix
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("inside", "guidance", "problem"),
    [
        (None, 5.0, "learned guidance from 1 to 4, not 5"),
        (None, 0.5, "learned guidance from 1 to 4, not 0.5"),
        ({"kind": "baked", "value": 1.5}, 2.0, "has its guidance already"),
    ],
)
def test_a_guidance_that_cannot_be_is_refused(
    tmp_path: Path, inside: dict[str, Any] | None, guidance: float, problem: str
) -> None:
    model = student(tmp_path / "base_2", inside)
    with pytest.raises(UsageError, match=problem):
        take.write(model, "safetensors", tmp_path / "out.safetensors", {}, guidance)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_baked_student_goes_out_as_it_is(tmp_path: Path) -> None:
    model = student(tmp_path / "base_2", {"kind": "baked", "value": 1.5})
    for number, guidance in enumerate((None, 1.5)):
        out = tmp_path / f"{number}.safetensors"
        take.write(model, "safetensors", out, {}, guidance)
        weights = load_file(out)
        assert all(
            torch.equal(weights[name], tensor)
            for name, tensor in model.denoiser.network.state_dict().items()
        )


def test_the_command(
    guidable: TinyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guidable.chain("distill.guidance=[1, 4]", "distill.end_steps=8").distill()
    monkeypatch.chdir(guidable.path)
    capsys.readouterr()
    command = ["export", "run/base_0", "--to", "safetensors"]
    assert cli.main([*command, "--dry-run"]) == 2
    assert "--guidance 1" in capsys.readouterr().err
    assert cli.main([*command, "--guidance", "1.5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == "exports/run-base_0-g1.5-safetensors.safetensors"
    assert "guidance 1.5 in the weights" in found["proof"]["also"][0]
    assert (guidable.path / found["path"]).is_file()
