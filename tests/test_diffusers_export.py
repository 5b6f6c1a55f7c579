"""What `vdiff export --to diffusers` writes draws vdiff's pictures there,
and comes back with equal weights.
"""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tests.test_checkpoint import card, denoiser
from tests.test_diffusers_format import WEIGHTS
from tests.test_diffusers_format import offline as offline
from tests.test_evaluation_table import TABLE
from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.diffusion.denoiser import Denoiser
from vdiff.errors import ModelFileError
from vdiff.exchange import bring, into_run, take
from vdiff.metrics.table import EvaluationRow, Value
from vdiff.model_folder import checkpoint
from vdiff.networks.unet_section import UNetSection
from vdiff.randomness import Randomness
from vdiff.samplers.ddim import Ddim

pytest.importorskip("diffusers")


def of_vdiff(folder: Path, num_classes: int = 0, **facts: Any) -> checkpoint.Checkpoint:
    rows = num_classes + facts.get("null_class", False)
    section = UNetSection(width=8, multipliers=(1, 2), blocks=1, num_classes=rows or None)
    torch.manual_seed(1)
    model = Denoiser(section.build(8, 1).eval(), denoiser().schedule, "v")
    with torch.no_grad():
        for weight in model.network.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    given = {"num_steps": 4, "num_classes": num_classes, "shape": (1, 8, 8), **facts}
    checkpoint.save(folder, card(**given), model)
    return checkpoint.load(folder)


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("clip", [None, 0.8])
def test_sample_py_draws_vdiffs_pictures_and_the_folder_comes_back_equal(
    tmp_path: Path, num_classes: int, clip: float | None
) -> None:
    sampler = None if clip is None else {"kind": "ddim", "clip": clip}
    ours = of_vdiff(tmp_path / "base_2", num_classes, sampler=sampler)
    out = tmp_path / "out"
    checked = take.write(ours, "diffusers", out, {"fp16": "true"})
    assert checked.how == "outputs"
    assert checked.difference < 5e-6
    count = num_classes or 4
    pictures = drawn(ours, count, clip)
    runpy.run_path(str(out / "sample.py"))
    theirs = [np.asarray(Image.open(f"sample_{number}.png")) for number in range(count)]
    assert np.abs(np.stack(theirs).astype(int) - pictures).max() <= 1
    assert np.abs(drawn(ours, count, clip, num_steps=2) - pictures).max() > 1
    if clip is not None:
        assert np.abs(drawn(ours, count, None) - pictures).max() > 1, "clipping matters here"

    brought = bring.read(bring.Source(out))
    into_run.write(brought, out, tmp_path / "run", None, print)
    again = checkpoint.load(tmp_path / "run/original")
    weights = ours.denoiser.network.state_dict()
    found = again.denoiser.network.state_dict()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert (again.card.num_steps, again.card.times) == (4, 4)
    assert np.array_equal(drawn(again, count, clip), pictures)
    half = load_file(out / f"{WEIGHTS}.fp16.safetensors")
    assert all(torch.equal(half[name], weights[name].half()) for name in weights)


def drawn(
    model: checkpoint.Checkpoint, count: int, clip: float | None, num_steps: int = 4
) -> "np.ndarray[Any, Any]":
    """Pictures from the noise that `sample.py` begins with, as diffusers turns them into bytes."""
    z = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    rng = Randomness.for_images(torch.arange(count))
    condition = Condition(torch.arange(count)) if model.card.num_classes else NOTHING
    with torch.no_grad():
        x: Tensor = Ddim(0.0, clip)(model.denoiser, z, num_steps, rng, condition, 4)
    return ((x[:, 0] / 2 + 0.5).clamp(0, 1) * 255).round().numpy().astype(int)


def test_a_null_class_comes_back_and_can_be_told(tmp_path: Path) -> None:
    ours = of_vdiff(tmp_path / "base_2", 3, null_class=True)
    out = tmp_path / "out"
    take.write(ours, "diffusers", out, {})
    config = json.loads((out / "unet/config.json").read_text())
    assert config["num_class_embeds"] == 4
    assert "3, which stands for no class" in (out / "README.md").read_text()
    model = bring.read(bring.Source(out)).model
    assert (model.num_classes, model.null_class) == (3, True)
    # without its README.md nobody knows, unless it is told
    (out / "README.md").unlink()
    model = bring.read(bring.Source(out)).model
    assert (model.num_classes, model.null_class) == (4, False)
    told = bring.Source(out, told={"null_class": "last"})
    model = bring.read(told).model
    assert (model.num_classes, model.null_class) == (3, True)
    with pytest.raises(ModelFileError, match="`null_class` cannot be `first` for 4 classes"):
        bring.read(bring.Source(out, told={"null_class": "first"}))


def test_the_model_card_has_what_hubs_read_and_leaves_the_licence_to_its_maker(
    tmp_path: Path,
) -> None:
    take.write(of_vdiff(tmp_path / "base_2"), "diffusers", tmp_path / "out", {})
    text = (tmp_path / "out/README.md").read_text()
    assert text.startswith("---\nlibrary_name: diffusers\npipeline_tag: unconditional-image-gen")
    front = text.split("---")[1]
    assert "# license: mit" in front
    assert not re.search(r"^license|^base_model|^datasets", front, re.MULTILINE)
    assert "num_inference_steps=4" in text
    assert "## Numbers" not in text
    assert not (tmp_path / "out/vdiff.json").exists()


UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "steps": ({"num_steps": 3}, "3 steps lie between the 64 times"),
    "sampler": ({"sampler": {"kind": "ancestral"}}, "sampler `ancestral`"),
    "noise": ({"sampler": {"kind": "ddim", "clip_noise": 1.2}}, "`clip_noise`"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_what_diffusers_cannot_draw_is_refused_and_leaves_nothing(
    what: str, tmp_path: Path
) -> None:
    facts, words = UNFIT[what]
    with pytest.raises(ModelFileError, match=words):
        take.write(of_vdiff(tmp_path / "base_2", **facts), "diffusers", tmp_path / "out", {})
    assert [each.name for each in tmp_path.iterdir()] == ["base_2"]


def test_a_network_with_times_of_its_own_is_refused(tmp_path: Path) -> None:
    noise = {"schedule": {"kind": "betas", "grid": 64, "time_scale": 0.25}, "predicts": "v"}
    model = of_vdiff(tmp_path / "base_2", diffusion=noise)
    with pytest.raises(ModelFileError, match=r"told of times from 0 to 15\.75"):
        take.write(model, "diffusers", tmp_path / "out", {})


def test_numbers_say_of_which_guidance_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = of_vdiff(tmp_path / "base_2")

    def row(g: float | None, value: float) -> EvaluationRow:
        return EvaluationRow(
            model=ours.card.name,
            hash=ours.card.hash,
            num_steps=4,
            role="student",
            metrics={"fid": Value(value=value)},
            guidance=g,
        )

    def numbers(*rows: EvaluationRow) -> list[str]:
        found = TABLE.model_copy(update={"rows": rows})
        monkeypatch.setattr(take.table, "read", lambda path: found)
        return take._numbers(ours.folder, ours.card)

    strong = numbers(row(3.0, 9.0))
    assert strong[0] == "fid: 9"
    assert strong[1].endswith(", guidance 3")
    # without guidance, where that was measured, too
    plain = numbers(row(3.0, 9.0), row(None, 5.0))
    assert plain[0] == "fid: 5"
    assert "guidance" not in plain[1]
