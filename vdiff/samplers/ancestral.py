"""Ancestral sampling: each step draws from the posterior of the forward process (Ho et al. 2020)."""

from typing import Literal

from torch import Tensor

from vdiff.config import Section, harmless
from vdiff.diffusion.prediction import Prediction
from vdiff.diffusion.schedule import Schedule
from vdiff.randomness import Randomness
from vdiff.samplers.walk import Sampler, scalars, snr_ratio


class AncestralSection(Section):
    """The stochastic sampler of DDPM; for undistilled models."""

    kind: Literal["ancestral"] = harmless("ancestral")
    """Which sampler."""
    variance: Literal["small", "medium", "large"] = harmless("large")
    """Variance of the fresh noise: the posterior's for clean data (small), for white noise (large), or a mix."""
    mix: float = harmless(0.5, ge=0, le=1)
    """Place of `medium` between small (0) and large (1), geometrically."""
    clip: float | None = harmless(None, gt=0)
    """Limit of the predicted image; null leaves it free."""

    def build(self) -> Sampler:
        return Ancestral({"small": 0.0, "medium": self.mix, "large": 1.0}[self.variance], self.clip)


class Ancestral(Sampler):
    """z_s ~ N(r (alpha_s / alpha_t) z_t + (1 - r) alpha_s x,  (1 - r) sigma_s^(2 - 2 mix) sigma_t^(2 mix)).

    r = SNR(t) / SNR(s), so that r (alpha_s / alpha_t) = alpha_t sigma_s^2 / (sigma_t^2 alpha_s): alpha_t may be 0.
    mix: 0 for small variance, 1 for large.
    """

    def __init__(self, mix: float, clip: float | None = None) -> None:
        self.mix = mix
        self.clip = clip

    def __str__(self) -> str:
        return f"ancestral mix={self.mix}" + (f" clip={self.clip}" if self.clip is not None else "")

    @property
    def is_noisy(self) -> bool:
        return True

    def step(self, pred: Prediction, z: Tensor, t: float, s: float, schedule: Schedule, rng: Randomness) -> Tensor:
        if s == 0:
            return pred.x
        (alpha_t, sigma_t), (alpha_s, sigma_s) = scalars(schedule, t), scalars(schedule, s)
        r = snr_ratio(schedule, t, s)
        mean = alpha_t * sigma_s**2 / (sigma_t**2 * alpha_s) * z + (1 - r) * alpha_s * pred.x
        scale: float = (1 - r) ** 0.5 * sigma_s ** (1 - self.mix) * sigma_t**self.mix
        return mean + scale * rng.normal(*z.shape[1:]).to(z)
