"""Models that vdiff did not train are distilled directly, and their students are closer to what
they draw in many steps than they are themselves in as few.
"""

from pathlib import Path

import pytest
import torch
import yaml

from benchmarks import strangers
from tests.test_diffusers_format import offline as offline
from vdiff import cli, digits
from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.schedule import BetasSection
from vdiff.exchange.recipe import recipe_text
from vdiff.formats.adapter import ForeignModel
from vdiff.model_folder import checkpoint
from vdiff.objectives.progressive import (
    ProgressiveObjective,
    ProgressiveSection,
    progressive_target,
)
from vdiff.randomness import Randomness

SETTINGS = {
    "data.path": "store",
    "distill.predicts": "eps",
    "distill.weighting": "snr",
    "distill.start_steps": "16",
    "distill.factor": "4",
    "distill.updates": "200",
    "distill.batch_size": "32",
    "distill.learning_rate": "1e-3",
    "distill.warmup_updates": "10",
}


def test_a_student_of_a_pipeline_is_closer_to_it_than_it_is_in_four_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made and trained by diffusers, linear betas, noise predicted; all of vdiff's samplers and
    others of a higher order draw with the teacher.
    """
    pytest.importorskip("diffusers")
    monkeypatch.chdir(tmp_path)
    strangers.make_pipeline(Path("theirs"), 400, widths=(8, 16))
    digits.write_folder(Path("digits"))
    prepared = ["prepare", "digits", "--out", "store", "--size", "8", "--channels", "1"]
    assert cli.main(prepared) == 0
    settings = [part for each in SETTINGS.items() for part in ("--set", "=".join(each))]
    assert cli.main(["distill", "--from", "theirs", "--to", "4", *settings]) == 0
    teacher = checkpoint.load(Path("runs/theirs/original"))
    student = checkpoint.load(Path("runs/theirs/base_0"))
    assert (student.card.num_steps, student.card.diffusion["predicts"]) == (4, "eps")
    assert student.card.sampler == {"kind": "ddim", "clip": 1.0}
    own, best = strangers.compare(teacher, student, Path("a.png"), count=24, many_steps=64)
    assert own < best, "the student learned nothing"
    # and a student that learned nothing, which is its teacher in four steps, is not closer
    same, best = strangers.compare(teacher, teacher, Path("b.png"), count=24, many_steps=64)
    assert same >= best


class Far(torch.nn.Module):
    """Predicts a v that leads far out of the pictures."""

    def __init__(self, value: float = -5.0) -> None:
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(value))

    def forward(self, z: torch.Tensor, time: object, condition: object, keys: object):  # type: ignore[no-untyped-def]
        return self.value * torch.ones_like(z)


def test_the_limits_hold_for_a_teacher_that_predicts_v_too() -> None:
    """Its own sampler may keep them, as that of denoising-diffusion-pytorch always does."""
    teacher = Denoiser(Far(), BetasSection().build(), "v")
    z = torch.zeros(2, 1, 2, 2)
    step = torch.tensor([4.0, 1.0], dtype=torch.float64)
    free = progressive_target(teacher, z, step, 4, 2)
    clipped = progressive_target(teacher, z, step, 4, 2, clip=1.0)
    assert free.min() > 1.5
    assert torch.allclose(clipped, torch.ones_like(z))
    section = ProgressiveSection(clip=1.0)
    assert section.advised_sampler() == {"kind": "ddim", "clip": 1.0}
    assert ProgressiveSection().advised_sampler() is None


@pytest.mark.parametrize(
    ("value", "loss", "is_moved"),
    [
        (-5.0, 0.0, False),  # outside, where the target is at the limit: drawn as it should be
        (-1e12, 0.0, False),  # however far: an eps student near pure noise is
        (5.0, 4.0, True),  # at the other limit: off by 2, and free to come back
    ],
)
def test_a_student_is_judged_by_what_its_sampler_keeps(
    value: float, loss: float, is_moved: bool
) -> None:
    teacher = Denoiser(Far().requires_grad_(False), BetasSection().build(), "v")
    network = Far(value)
    student = Denoiser(network, teacher.schedule, "v")
    x = torch.zeros(8, 1, 2, 2)

    def losses(clip: float | None) -> torch.Tensor:
        objective = ProgressiveObjective("constant", teacher, 2, 2, clip=clip)
        return objective(student, x, Randomness.for_images(torch.arange(8)))

    found = losses(1.0)
    assert torch.allclose(found, torch.full_like(found, loss), atol=1e-5)
    found.mean().backward()
    assert network.value.grad is not None
    assert bool(network.value.grad != 0) == is_moved
    assert not torch.allclose(losses(None), found, atol=0.1) or not is_moved


@pytest.mark.parametrize(
    ("predicts", "sampler", "clip"),
    [
        ("eps", None, 1.0),
        ("eps", {"kind": "ddim", "clip": 1.5}, 1.5),
        ("v", {"kind": "ddim", "clip": 1.0}, 1.0),
        ("v", None, None),
    ],
)
def test_the_recipe_of_an_import_keeps_the_limits_of_its_sampler(
    predicts: str, sampler: dict[str, object] | None, clip: float | None
) -> None:
    diffusion = {"schedule": {"kind": "betas"}, "predicts": predicts}
    denoiser = Denoiser(Far(), BetasSection().build(), "v")
    model = ForeignModel(denoiser, "unet", diffusion, (3, 8, 8), 0, 1000, sampler=sampler)
    recipe = yaml.safe_load(recipe_text(model, "a", None))
    assert recipe["distill"]["objective"].get("clip") == clip
    assert recipe["distill"].get("predicts") == ("v" if predicts == "eps" else None)
