"""Tables of betas that other programs train with, in float64;
those that vdiff names itself are in `schedule`.
"""

import torch
from torch import Tensor

from vdiff.diffusion.section import LARGEST_COSINE_BETA


def sigmoid(grid: int, first: float, last: float) -> Tensor:
    """Betas [grid] that rise from about `first` to about `last` along a sigmoid
    (diffusers' DDPMScheduler).
    """
    places = torch.linspace(-6, 6, grid, dtype=torch.float64)
    return first + (last - first) * torch.sigmoid(places)


def laplace(grid: int) -> Tensor:
    """Betas [grid] whose logsnr follows a Laplace distribution
    (Hang & Gu 2024, as diffusers' DDPMScheduler has it).

    alpha^2(t) = sqrt(snr / (1 + snr)),  snr = exp(-0.5 sign(0.5 - t) log(1 - 2 |0.5 - t| + 1e-6))
    """
    t = torch.arange(grid + 1, dtype=torch.float64) / grid
    middle = 0.5 - t
    sign = torch.where(middle < 0, -1.0, 1.0)
    snr = torch.exp(-0.5 * sign * torch.log(1 - 2 * middle.abs() + 1e-6))
    signal = (snr / (1 + snr)).sqrt()
    return (1 - signal[1:] / signal[:-1]).clamp(max=LARGEST_COSINE_BETA)


def zero_terminal(betas: Tensor) -> Tensor:
    """The table with no signal left at its end, and the same first beta
    (Lin et al. 2023, algorithm 1).

    alpha' = (alpha - alpha_T) alpha_1 / (alpha_1 - alpha_T).   betas: float64 [T].
    """
    alpha = (1 - betas).cumprod(0).sqrt()
    shifted = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    signal = torch.cat([torch.ones(1, dtype=torch.float64), shifted**2])
    return 1 - signal[1:] / signal[:-1]
