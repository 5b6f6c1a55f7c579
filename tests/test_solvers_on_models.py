"""Solvers draw with bases, by commands, recipes and from Python; students keep their own steps."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import vdiff
from tests.toys import Curved, curved
from vdiff.cli import main
from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.schedule import CosineSchedule
from vdiff.drawing import asked
from vdiff.drawing.pictures import draw_with
from vdiff.errors import UsageError
from vdiff.images.images import to_uint8
from vdiff.model_folder import checkpoint
from vdiff.samplers import SAMPLERS, recorded
from vdiff.samplers.advised import sampler_for
from vdiff.samplers.draw import draw
from vdiff.samplers.sampler import Sampler


def unipc(grid: str = "logsnr") -> Sampler:
    sampler: Sampler = SAMPLERS.section("unipc").model_validate({"grid": grid}).build()
    return sampler


def drawn(name: str, *options: str) -> np.ndarray:
    place = Path("drawn.npz")
    place.unlink(missing_ok=True)
    given = ["-n", "4", "--checkpoint", name, *options, "--out", str(place)]
    assert main(["sample", *given]) == 0
    found: np.ndarray = np.load(place)["images"]
    return found


def test_a_command_a_recipe_and_python_draw_the_same_with_a_base(distilled: Path) -> None:
    model = checkpoint.load(distilled / "original")
    wanted = to_uint8(draw_with(model, range(4), 6, sampler=unipc())).permute(0, 2, 3, 1).numpy()
    given = ["--steps", "6"]
    assert np.array_equal(
        drawn("original", *given, "--sampler", "unipc", "--grid", "logsnr"), wanted
    )
    named = ["--set", "sample.sampler.kind=unipc", "--set", "sample.sampler.grid=logsnr"]
    assert np.array_equal(drawn("original", *given, *named), wanted)
    images = vdiff.load(distilled / "original").sample(
        range(4), steps=6, sampler={"kind": "unipc", "grid": "logsnr"}
    )
    assert np.array_equal(images.uint8.permute(0, 2, 3, 1).numpy(), wanted)
    assert not np.array_equal(drawn("original", *given), wanted)


def test_a_recipes_solver_is_for_the_base_and_its_students_draw_as_ever(distilled: Path) -> None:
    named = ["--set", "sample.sampler.kind=unipc"]
    assert np.array_equal(drawn("base_1", *named), drawn("base_1"))
    assert not np.array_equal(drawn("original", *named), drawn("original"))
    section = SAMPLERS.section("unipc").model_validate({})
    assert sampler_for(section, None, "base_1", is_solvable=False).kind == "ddim"
    assert sampler_for(section, None, "original", is_solvable=True) is section


def test_a_student_refuses_a_solver_wherever_it_is_named(distilled: Path) -> None:
    told = "the sampler `unipc` cannot draw with `base_1`"
    with pytest.raises(UsageError, match=told) as caught:
        draw_with(checkpoint.load(distilled / "base_1"), range(1), sampler=unipc())
    assert "--sampler ddim" in str(caught.value)
    with pytest.raises(UsageError, match=told):
        vdiff.load(distilled / "base_1").sample(range(1), sampler="unipc")


def test_only_what_predicts_a_mean_at_all_times_takes_a_solver(distilled: Path) -> None:
    card = checkpoint.read_card(distilled / "original")
    assert card.is_solvable
    asked.check_sampler(card, unipc())
    for other in (replace(card, is_denoiser=False), replace(card, times=8)):
        assert not other.is_solvable
        with pytest.raises(UsageError, match="cannot draw with `original`"):
            asked.check_sampler(other, unipc())


@pytest.mark.parametrize("kind", ["dpmpp", "unipc", "ipndm", "heun"])
def test_a_solver_draws_float32_pictures_with_the_bits_of_its_recording(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "BATCHES_BEFORE", 0)
    monkeypatch.setattr(recorded, "_KNOWN_LAYERS", (*recorded._KNOWN_LAYERS, "tests."))
    section = SAMPLERS.section(kind).model_validate({})
    denoiser = Denoiser(Curved(), CosineSchedule(1024), "v")
    first, second = (draw(denoiser, section.build(), [0, 1], (1, 4, 4), 6) for _ in range(2))
    assert first.isfinite().all()
    assert torch.equal(first, second)
    exact = section.build()(
        curved(CosineSchedule(1024)),
        vdiff.randomness.Randomness.for_images(torch.arange(2)).normal(1, 4, 4).double(),
        6,
        vdiff.randomness.Randomness.for_images(torch.arange(2)),
    )
    torch.testing.assert_close(first.double(), exact, rtol=0, atol=1e-3)
