"""A mixture of Gaussians, pixel by pixel: its denoiser and the exact map of its probability flow
are known in closed form, and neither is linear.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.diffusion.denoiser import Denoiser, scales
from vdiff.diffusion.prediction import Prediction, predict
from vdiff.diffusion.schedule import Schedule

SHARES = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
MEANS = torch.tensor([-0.7, 0.1, 0.8], dtype=torch.float64)
STDS = torch.tensor([0.05, 0.12, 0.08], dtype=torch.float64)


@dataclass(frozen=True)
class Mixture(Denoiser):
    """E[x | z] of pictures whose pixels are 0.3 N(-0.7, 0.05^2) + 0.5 N(0.1, 0.12^2) +
    0.2 N(0.8, 0.08^2).
    """

    def __call__(
        self, z: Tensor, t: Tensor, condition: Condition = NOTHING, rng: object = None
    ) -> Prediction:
        alpha, sigma = scales(self.schedule, t, z)
        z_, a, s = z[..., None], alpha[..., None], sigma[..., None]
        spread = (a * STDS) ** 2 + s**2
        apart = z_ - a * MEANS
        share = torch.softmax(SHARES.log() - spread.log() / 2 - apart**2 / (2 * spread), -1)
        mean = MEANS + a * STDS**2 / spread * apart
        return predict("x", (share * mean).sum(-1), z, alpha, sigma)


def mixture(schedule: Schedule) -> Mixture:
    return Mixture(nn.Identity(), schedule, "x")


def quantile(z: Tensor) -> Tensor:
    """F^-1(Phi(z)): where the exact flow leads from t = 1, float64 of the shape of z."""
    wanted = torch.special.ndtr(z)
    low, high = torch.full_like(z, -3.0), torch.full_like(z, 3.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = (SHARES * torch.special.ndtr((middle[..., None] - MEANS) / STDS)).sum(-1) < wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def evenly_spread(count: int) -> Tensor:
    """z at the quantiles (i + 1/2) / count of N(0, 1), [count, 1, 1, 1]."""
    shares = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.special.ndtri(shares)[:, None, None, None]
