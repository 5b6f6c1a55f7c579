"""What every way of learning is: a function from a student and pictures to one loss per picture."""

from typing import Protocol

import torch
from torch import Tensor

from vdiff.diffusion.denoiser import Denoiser
from vdiff.randomness import Randomness


class Objective(Protocol):
    """objective(student, x, rng) -> loss per image.

    x: pictures, float32 [B, C, H, W] in [-1, 1].   label: int64 [B] where the network has classes.   Returns [B].
    """

    def __call__(self, student: Denoiser, x: Tensor, rng: Randomness, label: Tensor | None = None) -> Tensor: ...


def add_noise(x: Tensor, alpha: Tensor, sigma: Tensor, rng: Randomness) -> Tensor:
    """z = alpha x + sigma eps.   x: [B, C, H, W].   alpha, sigma: [B], of any precision."""
    alpha, sigma = (scale.to(x.dtype)[:, None, None, None] for scale in (alpha, sigma))
    return torch.addcmul(alpha * x, sigma, rng.normal(*x.shape[1:]).to(x))
