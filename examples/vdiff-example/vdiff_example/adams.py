"""Adams-Bashforth of second order along the predicted noise:
each step uses the prediction of the step before.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from vdiff.config import free_to_change
from vdiff.randomness import Randomness
from vdiff.samplers.sampler import Point, Predict, Sampler, SamplerSection, scalars


class AdamsSection(SamplerSection):
    """Two steps' predictions in one; for undistilled models."""

    kind: Literal["adams"] = free_to_change("adams")
    """Which sampler."""

    def build(self) -> Sampler:
        return Adams()


class Adams(Sampler):
    """z_s / alpha_s = z_t / alpha_t + (e_s - e_t) (3 eps - eps_before) / 2,  e = sigma / alpha.

    Source: Liu et al. 2022, "Pseudo numerical methods for diffusion models on manifolds", without
    its warm-up. Its first step and its last one, which lands on the predicted image, are DDIM's.
    """

    num_remembered = 1

    def __str__(self) -> str:
        return "adams"

    def step(
        self, here: Point, s: float, before: Sequence[Point], predict: Predict, rng: Randomness
    ) -> Tensor:
        x, eps = here.prediction.x, here.prediction.eps
        alpha_s, sigma_s = scalars(predict.schedule, s)
        if not before or s == 0:
            return alpha_s * x + sigma_s * eps
        alpha_t, sigma_t = scalars(predict.schedule, here.t)
        mixed = (3 * eps - before[-1].prediction.eps) / 2
        return alpha_s / alpha_t * here.z + (sigma_s - alpha_s * sigma_t / alpha_t) * mixed
