"""Guidance: two predictions of one noisy picture, combined in x before anything is clipped."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.diffusion.denoiser import Denoiser, scales
from vdiff.diffusion.guided import Guided
from vdiff.diffusion.section import CosineSection
from vdiff.randomness import Randomness
from vdiff.samplers.ddim import Ddim

NULL = 2


class Gaussian(nn.Module):
    """E[x | z] of data N(mean, deviation^2), of one class for all: 0 is N(0.4, 0.3^2), and no class
    is N(0, 0.5^2).
    """

    def __init__(self) -> None:
        super().__init__()
        self.schedule = CosineSection().build()
        self.batches: list[int] = []

    def forward(
        self, z: Tensor, time: Tensor, condition: Condition = NOTHING, keys: Tensor | None = None
    ) -> Tensor:
        self.batches.append(len(z))
        assert condition.label is not None
        assert condition.guidance is None
        t = (time.double() + 1) / 1024
        alpha, sigma = scales(self.schedule, t, z)
        is_null = (condition.label == NULL)[:, None, None, None]
        mean = torch.where(is_null, 0.0, 0.4).to(z)
        variance = torch.where(is_null, 0.25, 0.09).to(z)
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        return mean + gain * (z - alpha * mean)


def guided(guidance: float = 1.0, **options: object) -> Guided:
    network = Gaussian()
    return replace(
        Guided(network, network.schedule, "x", guidance, NULL),
        **options,  # type: ignore[arg-type]
    )


def noise(count: int = 3) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(count, 1, 4, 4, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize(
    ("guidance", "mean", "deviation"),
    [
        (1.0, 0.39999, 0.29927),
        (1.5, 0.51687, 0.23168),
        (2.0, 0.59759, 0.17933),
        (3.0, 0.68761, 0.10741),
    ],
)
def test_the_guided_gaussian(guidance: float, mean: float, deviation: float) -> None:
    z = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)[:, None, None, None]
    model = guided(guidance)
    rng = Randomness.for_images(torch.arange(3))
    labels = Condition(torch.zeros(3, dtype=torch.int64))
    x = Ddim()(model, z, 1024, rng, labels)[:, 0, 0, 0]
    # an affine map of the noise: its middle and its slope
    assert float(x[1]) == pytest.approx(mean, abs=1e-4)
    assert float(x[2] - x[0]) / 2 == pytest.approx(deviation, abs=1e-4)
    assert float(x[0] + x[2]) / 2 == pytest.approx(float(x[1]), abs=1e-9)


def test_both_predictions_come_of_one_doubled_batch() -> None:
    model = guided(2.0)
    t = torch.full((3,), 0.5, dtype=torch.float64)
    model(noise(), t, Condition(torch.tensor([0, 1, 0])))
    assert isinstance(model.network, Gaussian)
    assert model.network.batches == [6]


def test_one_is_no_guidance_and_zero_is_the_weaker_prediction() -> None:
    z, t = noise(), torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    label = torch.zeros(3, dtype=torch.int64)
    plain = guided().plain()
    assert torch.allclose(guided(1.0)(z, t, Condition(label)).x, plain(z, t, Condition(label)).x)
    none = Condition(torch.full_like(label, NULL))
    assert torch.allclose(guided(0.0)(z, t, Condition(label)).x, plain(z, t, none).x)


def test_each_picture_may_have_a_guidance_of_its_own() -> None:
    z, t = noise(), torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    label = torch.zeros(3, dtype=torch.int64)
    strengths = torch.tensor([0.0, 1.5, 4.0])
    found = guided(9.0)(z, t, Condition(label, strengths)).x
    for i, g in enumerate(strengths.tolist()):
        alone = guided(g)(z[i : i + 1], t[i : i + 1], Condition(label[:1])).x
        assert torch.allclose(found[i], alone[0])


def test_it_acts_within_its_interval_only() -> None:
    # sigma / alpha is 1 in the middle of the cosine schedule
    model = guided(3.0, interval=(0.9, 1.1))
    t = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    label = Condition(torch.zeros(3, dtype=torch.int64))
    found = model(noise(), t, label).x
    without = model.plain()(noise(), t, label).x
    everywhere = guided(3.0)(noise(), t, label).x
    assert torch.allclose(found[0], without[0])
    assert torch.allclose(found[1], everywhere[1])
    assert not torch.allclose(found[1], without[1])
    assert torch.allclose(found[2], without[2])


def test_a_guide_is_asked_in_the_place_of_the_null_class() -> None:
    class Zero(nn.Module):
        def forward(self, z: Tensor, *others: object) -> Tensor:
            return torch.zeros_like(z)

    model = guided(2.0)
    guide = Denoiser(Zero(), model.schedule, "x")
    z, t = noise(), torch.full((3,), 0.5, dtype=torch.float64)
    label = Condition(torch.zeros(3, dtype=torch.int64))
    found = replace(model, null_label=None, guide=guide)(z, t, label).x
    assert torch.allclose(found, 2 * model.plain()(z, t, label).x)


def test_the_three_predictions_add_up_at_the_noisy_end() -> None:
    z, t = noise(), torch.ones(3, dtype=torch.float64)
    model = guided(4.0)
    found = model(z, t, Condition(torch.zeros(3, dtype=torch.int64)))
    alpha, sigma = scales(model.schedule, t, z)
    assert torch.allclose(alpha * found.x + sigma * found.eps, z)
    assert found.eps.abs().max() < 10
