"""The way from noise to picture that all samplers share; a sampler only says how one step goes."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from vdiff.diffusion.denoiser import Denoiser, scales
from vdiff.diffusion.prediction import Prediction
from vdiff.diffusion.schedule import Schedule, sampling_times
from vdiff.randomness import Randomness

Watch = Callable[[Tensor, Tensor], None]
"""Called after every step with the noisy images z and the predicted images x, each [B, C, H, W]."""


class Sampler(ABC):
    """sampler(denoiser, noise, num_steps, rng) -> images in [-1, 1].

    clip: limit of the predicted x, None for no clipping.   clip_noise: limit of the predicted eps after that.
    """

    clip: float | None = None
    clip_noise: float | None = None

    @abstractmethod
    def step(self, pred: Prediction, z: Tensor, t: float, s: float, schedule: Schedule, rng: Randomness) -> Tensor:
        """Move `z` [B, C, H, W] from time t to the earlier time s; at s = 0 that is the predicted x."""

    @abstractmethod
    def __str__(self) -> str:
        """The sampler and its options, as in `ddim eta=0.5 clip_x=1.2`."""

    @property
    def is_noisy(self) -> bool:
        """Whether fresh noise enters between the steps."""
        return False

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        num_steps: int,
        rng: Randomness,
        label: Tensor | None = None,
        model_steps: int | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """Images from noise, [B, C, H, W], not clamped to [-1, 1].

        num_steps: network calls per image.   model_steps: see `sampling_times`.   label: int64 [B].
        """
        z = noise
        for t, s in pairwise(sampling_times(num_steps, model_steps)):
            times = torch.full((len(z),), t, dtype=torch.float64, device=z.device)
            pred = denoiser(z, times, label)
            if self.clip is not None:
                pred = pred.clipped(self.clip, z, *scales(denoiser.schedule, times, z))
            if self.clip_noise is not None:
                pred = pred.with_noise_clipped(self.clip_noise, *scales(denoiser.schedule, times, z))
            z = self.step(pred, z, t, s, denoiser.schedule, rng)
            if watch is not None:
                watch(z, pred.x)
        return z


def scalars(schedule: Schedule, t: float) -> tuple[float, float]:
    """(alpha, sigma) at one time, as Python floats (float64)."""
    alpha, sigma = schedule.alpha_sigma(torch.tensor(t, dtype=torch.float64))
    return float(alpha), float(sigma)


def snr_ratio(schedule: Schedule, t: float, s: float) -> float:
    """r = SNR(t) / SNR(s) for s < t: the share of the signal-to-noise ratio at s that is left at t; 0 at s = 0."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = scalars(schedule, t), scalars(schedule, s)
    return (alpha_t * sigma_s / (sigma_t * alpha_s)) ** 2
