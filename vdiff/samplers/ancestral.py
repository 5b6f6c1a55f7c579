"""Ancestral sampling: each step draws from the posterior of the forward
process (Ho et al. 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from vdiff.config import free_to_change
from vdiff.samplers.sampler import Point, Predict, Sampler, SamplerSection, scalars, snr_ratio

if TYPE_CHECKING:
    from torch import Tensor

    from vdiff.randomness import Randomness


class AncestralSection(SamplerSection):
    """The stochastic sampler of DDPM; for undistilled models."""

    kind: Literal["ancestral"] = free_to_change("ancestral")
    """Which sampler."""
    variance: Literal["small", "medium", "large"] = free_to_change("large")
    """Variance of the fresh noise: the posterior's for clean data (small),
    for white noise (large), or a mix.
    """
    mix: float = free_to_change(0.5, ge=0, le=1)
    """Place of `medium` between small (0) and large (1), geometrically."""
    clip: float | None = free_to_change(None, gt=0)
    """Limit of the predicted image; null leaves it free."""

    def build(self) -> Sampler:
        return Ancestral({"small": 0.0, "medium": self.mix, "large": 1.0}[self.variance], self.clip)


class Ancestral(Sampler):
    """z_s ~ N(r (alpha_s / alpha_t) z_t + (1 - r) alpha_s x,  (1 - r) sigma_s^(2 - 2 mix)
    sigma_t^(2 mix)).

    r = SNR(t) / SNR(s), so that r (alpha_s / alpha_t) = alpha_t sigma_s^2 / (sigma_t^2 alpha_s):
    alpha_t may be 0.
    mix: 0 for small variance, 1 for large.
    """

    def __init__(self, mix: float, clip: float | None = None) -> None:
        self.mix = mix
        self.clip = clip

    def __str__(self) -> str:
        told = f"ancestral mix={self.mix}"
        if self.clip is not None:
            told += f" clip={self.clip}"
        return told

    @property
    def is_noisy(self) -> bool:
        return True

    def step(
        self, here: Point, s: float, before: Sequence[Point], predict: Predict, rng: Randomness
    ) -> Tensor:
        x, z = here.prediction.x, here.z
        if s == 0:
            return x
        alpha_t, sigma_t = scalars(predict.schedule, here.t)
        alpha_s, sigma_s = scalars(predict.schedule, s)
        r = snr_ratio(predict.schedule, here.t, s)
        mean = alpha_t * sigma_s**2 / (sigma_t**2 * alpha_s) * z + (1 - r) * alpha_s * x
        scale: float = (1 - r) ** 0.5 * sigma_s ** (1 - self.mix) * sigma_t**self.mix
        return mean + scale * rng.normal(*z.shape[1:]).to(z)
