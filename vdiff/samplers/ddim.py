"""DDIM: along the predicted direction, with as much fresh noise as eta says (Song et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from vdiff.config import free_to_change
from vdiff.samplers.sampler import Point, Predict, Sampler, SamplerSection, scalars, snr_ratio

if TYPE_CHECKING:
    from torch import Tensor

    from vdiff.randomness import Randomness


class DdimSection(SamplerSection):
    """Deterministic for eta = 0: the sampler that distillation shortens."""

    kind: Literal["ddim"] = free_to_change("ddim")
    """Which sampler."""
    eta: float = free_to_change(0.0, ge=0, le=1)
    """Share of fresh noise per step: 0 none, 1 as much as ancestral
    sampling with small variance.
    """
    clip: float | None = free_to_change(None, gt=0)
    """Limit of the predicted image, from which eps is made anew;
    1.2 is usual, none leaves it free.
    """
    clip_noise: float | None = free_to_change(None, gt=0)
    """Limit of the predicted noise too; with `clip: 1.2`,
    1.2 draws what `clip: 1.2` alone drew up to vdiff 0.1.
    """

    def build(self) -> Sampler:
        return Ddim(self.eta, self.clip, self.clip_noise)


class Ddim(Sampler):
    """z_s = alpha_s x + sqrt(sigma_s^2 - var) eps + sqrt(var) noise.

    var = eta^2 (1 - r) sigma_s^2,  r = SNR(t) / SNR(s).
    """

    def __init__(
        self, eta: float = 0.0, clip: float | None = None, clip_noise: float | None = None
    ) -> None:
        self.eta = eta
        self.clip = clip
        self.clip_noise = clip_noise

    def __str__(self) -> str:
        # records of vdiff 0.1 say `clip=1.2` where it clipped both
        told = f"ddim eta={self.eta}"
        if self.clip is not None:
            told += f" clip_x={self.clip}"
        if self.clip_noise is not None:
            told += f" clip_noise={self.clip_noise}"
        return told

    @property
    def is_noisy(self) -> bool:
        return self.eta > 0

    def step(
        self, here: Point, s: float, before: Sequence[Point], predict: Predict, rng: Randomness
    ) -> Tensor:
        x, eps = here.prediction.x, here.prediction.eps
        alpha_s, sigma_s = scalars(predict.schedule, s)
        variance = self.eta**2 * (1 - snr_ratio(predict.schedule, here.t, s)) * sigma_s**2
        z: Tensor = alpha_s * x + max(sigma_s**2 - variance, 0.0) ** 0.5 * eps
        if variance > 0:
            z = z + variance**0.5 * rng.normal(*z.shape[1:]).to(z)
        return z
