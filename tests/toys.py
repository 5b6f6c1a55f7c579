"""Denoisers whose behaviour is known in closed form, for tests that are theorems."""

import torch
from torch import Tensor, nn

from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.diffusion.denoiser import Denoiser
from vdiff.diffusion.prediction import Prediction
from vdiff.diffusion.schedule import BetasSection, CosineLogsnrSchedule, CosineSchedule, Schedule
from vdiff.randomness import Randomness
from vdiff.samplers.sampler import Point, Predict, Sampler

GRID = 1024

SCHEDULES = {
    "cosine": CosineSchedule(GRID),
    "cosine_logsnr": CosineLogsnrSchedule(GRID, -20, 20),
    "linear": BetasSection(table="linear", grid=1000).build(),
    "squaredcos_cap_v2": BetasSection(table="squaredcos_cap_v2", grid=GRID).build(),
}


class Curved(nn.Module):
    """A smooth function of z and time without any structure: no identity can hold by luck."""

    def forward(
        self, z: Tensor, time: Tensor, condition: Condition = NOTHING, keys: Tensor | None = None
    ) -> Tensor:
        phase = time.to(z.dtype)[:, None, None, None] / 300
        return torch.tanh(1.3 * z + torch.sin(phase)) + 0.2 * z.flip(-1) * torch.cos(3 * phase)


class Table(nn.Module):
    """x = table[i] z at the times i / N, the exact form of every denoiser of Gaussian data."""

    def __init__(self, table: Tensor, grid: int = GRID) -> None:
        super().__init__()
        self.table, self.grid = table, grid

    def forward(
        self, z: Tensor, time: Tensor, condition: Condition = NOTHING, keys: Tensor | None = None
    ) -> Tensor:
        step = ((time.double() + 1) / self.grid * len(self.table)).round().long()
        return self.table[step - 1][:, None, None, None] * z


def curved(schedule: Schedule, predicts: str = "v") -> Denoiser:
    return Denoiser(Curved(), schedule, predicts)


def gaussian(schedule: Schedule, num_steps: int, std: float) -> Denoiser:
    """The perfect denoiser of pictures whose pixels are N(0, std^2)."""
    t = torch.arange(1, num_steps + 1, dtype=torch.float64) / num_steps
    alpha, sigma = schedule.alpha_sigma(t)
    return Denoiser(Table(alpha * std**2 / (alpha**2 * std**2 + sigma**2)), schedule, "x")


def noise(count: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(
        count,
        *(shape or (1, 2, 3)),
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(seed),
    )


def moved(
    sampler: Sampler,
    pred: Prediction,
    z: Tensor,
    t: float,
    s: float,
    schedule: Schedule,
    rng: Randomness,
) -> Tensor:
    """Where one step from t to s leads that knows nothing of earlier ones."""
    return sampler.step(Point(t, z, pred), s, (), Predict(curved(schedule), NOTHING, sampler), rng)
