"""What a model folder tells diffusers and people is true:
its README's lines run, and it claims no class it is not.
"""

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.test_checkpoint import SIZE, card, denoiser
from tests.tiny import TinyRun
from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.process import DiffusionSection
from vdiff.errors import ModelFileError
from vdiff.model_folder import checkpoint
from vdiff.model_folder import diffusers_files as diffusers_folder
from vdiff.networks import NETWORKS
from vdiff.networks.network import Network
from vdiff.networks.unet import UNetSection
from vdiff.randomness import Randomness
from vdiff.samplers.ddim import Ddim

diffusers = pytest.importorskip("diffusers")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    diffusers.utils.logging.disable_progress_bar()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What diffusers logs."""
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def run_readme(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The pictures that the Python lines of the README draw, from a generator with seed 5."""
    monkeypatch.chdir(folder.parent)
    [code] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    seeded = code.replace("pipeline(", "pipeline(generator=torch.Generator().manual_seed(5), ")
    names: dict[str, Any] = {"torch": torch}
    exec(seeded, names)
    return [np.asarray(picture) for picture in names["pictures"]]


def drawn(model: Denoiser, num_steps: int) -> list[np.ndarray]:
    """The same with our own sampler, as diffusers turns floats into bytes."""
    z = torch.randn(4, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    x = Ddim()(model, z, num_steps, Randomness.for_images(torch.arange(4)), model_steps=num_steps)
    return [((each[0] / 2 + 0.5).clamp(0, 1) * 255).round().byte().numpy() for each in x]


def same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    return (
        max(
            int(np.abs(a.astype(int) - b.astype(int)).max())
            for a, b in zip(ours, theirs, strict=True)
        )
        <= 1
    )


def test_the_lines_of_a_students_readme_draw_its_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path / "base_2", card(num_steps=8), denoiser())
    model = checkpoint.load(tmp_path / "base_2").denoiser
    ours, theirs = drawn(model, 8), run_readme(tmp_path / "base_2", monkeypatch)
    assert same(ours, theirs)
    assert not same(drawn(model, 4), theirs), "the number of steps matters here"
    text = (tmp_path / "base_2/README.md").read_text()
    assert "num_inference_steps=8" in text
    assert "in **8 steps**" in text


def test_diffusers_tells_the_number_of_steps_of_a_student_when_it_is_opened(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    checkpoint.save(tmp_path / "base_2", card(num_steps=8), denoiser())
    diffusers.DDIMPipeline.from_pretrained(tmp_path / "base_2")
    assert "'num_inference_steps': 8" in said.text
    said.clear()
    checkpoint.save(tmp_path / "original", card(name="original", parent=None), denoiser())
    diffusers.DDIMPipeline.from_pretrained(tmp_path / "original")
    assert said.text == "", "a base network can be drawn with in any number of steps"


def test_a_readme_promises_no_steps_that_diffusers_cannot_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers knows whole times of the grid only, and refuses more steps than there are."""
    base = {"parent": None}
    checkpoint.save(
        tmp_path / "original", card(grid=4, num_steps=8, name="original", **base), denoiser(grid=4)
    )
    assert len(run_readme(tmp_path / "original", monkeypatch)) == 4
    assert "at most 4 steps" in (tmp_path / "original/README.md").read_text()
    for grid, num_steps in ((4, 8), (20, 8)):
        folder = tmp_path / f"of_{grid}"
        checkpoint.save(folder, card(grid=grid, num_steps=num_steps), denoiser(grid=grid))
        text = (folder / "README.md").read_text()
        assert "```python" not in text
        assert "8 steps lie between them" in text
        assert "vdiff sample --checkpoint" in text


def test_a_model_with_classes_names_a_pipeline_that_passes_them_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = (
        UNetSection(width=8, multipliers=(1, 2), blocks=1, num_classes=3).build(SIZE, 1).eval()
    )
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    model = Denoiser(network, denoiser().schedule, "v")
    # four pictures, of classes 0, 1, 2: the README's example asks for as many as there are classes
    checkpoint.save(tmp_path / "base_2", card(num_steps=4, num_classes=3), model)
    theirs = run_readme(tmp_path / "base_2", monkeypatch)
    assert len(theirs) == 3
    z = torch.randn(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    labels = torch.arange(3)
    for wanted, is_same in ((labels, True), (labels.flip(0), False)):
        x = Ddim()(model, z, 4, Randomness.for_images(torch.arange(3)), Condition(wanted), 4)
        ours = [((each[0] / 2 + 0.5).clamp(0, 1) * 255).round().byte().numpy() for each in x]
        assert same(ours, theirs) == is_same
    assert "`DDIMPipeline` cannot pass them on" in (tmp_path / "base_2/README.md").read_text()


class Strange(Network):
    """A network of somebody's own, with a configuration of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    @property
    def config(self) -> dict[str, Any]:
        return {"_class_name": "Strange", "sample_size": SIZE}

    def forward(
        self,
        z: Tensor,
        time: Tensor,
        condition: Condition = NOTHING,
        dropout_keys: Tensor | None = None,
    ) -> Tensor:
        return self.layer(z)  # type: ignore[no-any-return]


class StrangeSection(UNetSection):
    """Its section."""

    @staticmethod
    def restore(config: object) -> Strange:  # type: ignore[override]
        return Strange()


def test_a_network_that_diffusers_does_not_know_is_not_claimed_to_be_one_it_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS._builtin, "strange", f"{__name__}:StrangeSection")
    model = Denoiser(Strange(), denoiser().schedule, "v")
    checkpoint.save(tmp_path / "base_2", card(network="strange"), model)
    assert not (tmp_path / "base_2/model_index.json").exists()
    with pytest.raises(OSError, match="model_index"):
        diffusers.DDIMPipeline.from_pretrained(tmp_path / "base_2")
    text = (tmp_path / "base_2/README.md").read_text()
    assert "diffusers does not know this network (`strange`)" in text
    assert "library_name" not in text
    assert "```python" not in text
    loaded = checkpoint.load(tmp_path / "base_2")
    assert torch.equal(loaded.denoiser.network.layer.weight, model.network.layer.weight)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "schedule",
    [
        {"kind": "edm", "grid": 64},
        {"kind": "vp", "grid": 64},
        {"kind": "betas", "grid": 64, "time_scale": 0.25},
    ],
    ids=lambda schedule: str(schedule["kind"]),
)
def test_a_network_that_is_told_of_other_times_than_diffusers_tells_is_not_claimed(
    tmp_path: Path, schedule: dict[str, object]
) -> None:
    """It would be drawn with, wrongly, without a complaint."""
    section = DiffusionSection.model_validate({"schedule": schedule, "predicts": "v"})
    model = replace(denoiser(), schedule=section.schedule.build())
    told = replace(card(), diffusion=section.model_dump(mode="json"))
    checkpoint.save(tmp_path / "base_2", told, model)
    assert not (tmp_path / "base_2/model_index.json").exists()
    text = (tmp_path / "base_2/README.md").read_text()
    assert "is told of other times than diffusers tells it" in text
    assert "library_name" not in text
    assert "```python" not in text


def test_a_readme_names_the_paper_only_where_its_method_was_used(tmp_path: Path) -> None:
    for kind, is_named in (("progressive", True), ("of_somebody", False)):
        checkpoint.save(
            tmp_path / kind, card(trajectory={"distill.objective.kind": kind}), denoiser()
        )
        assert ("Salimans" in (tmp_path / kind / "README.md").read_text()) == is_named


def test_a_readme_may_be_completed_and_nothing_else_may(tmp_path: Path) -> None:
    folder = tmp_path / "base_2"
    checkpoint.save(folder, card(), denoiser())
    (folder / "README.md").write_text("---\nlicense: mit\n---\nmine now\n")
    assert checkpoint.load(folder).card.name == "base_2"
    (folder / "README.md").unlink()
    assert checkpoint.damage(folder) == []
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps({}))
    with pytest.raises(ModelFileError, match="is damaged"):
        checkpoint.load(folder)


def test_every_model_of_a_chain_has_a_readme_with_its_own_steps_and_picture(
    tiny_run: TinyRun,
) -> None:
    tiny_run.base()
    tiny_run.chain().distill()
    for name, steps in {"original": 8, "base_0": 4, "base_1": 2, "base_2": 1}.items():
        folder = tiny_run.folder().model(name)
        text = (folder / diffusers_folder.README).read_text()
        assert text.startswith(
            "---\nlibrary_name: diffusers\npipeline_tag: unconditional-image-generation\n"
        )
        assert f"\n# {name}\n" in text
        assert f"num_inference_steps={steps})" in text
        assert "](samples.png)" in text
        assert ("a student of" in text.lower()) == (name != "original")
    assert "in **1 step**." in text
