"""Guidance: away from what a weaker prediction says, and so closer to the class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.diffusion.denoiser import Denoiser, scales
from vdiff.diffusion.prediction import Prediction, predict

if TYPE_CHECKING:
    from torch import Tensor

    from vdiff.diffusion.schedule import Place
    from vdiff.randomness import Randomness


@dataclass(frozen=True)
class Guided(Denoiser):
    """x = x_weak + g (x_strong - x_weak), of two predictions of one noisy image.

    g = 1 is no guidance, and asks the weaker prediction for nothing. Everything is combined in x,
    before anything is clipped: at the noisy end alpha is almost 0, and eps would be divided by it.

    guidance: g; where the condition has a guidance of its own, that counts for its pictures.
    null_label: the weaker prediction is that of the same network for this class, in one batch with
    the other (Ho & Salimans 2022, classifier-free guidance; their w is g - 1).
    guide: in its place, another denoiser of the same schedule, such as a smaller or less trained
    one (Karras et al. 2024, autoguidance).
    interval: the noise levels sigma / alpha within which g acts, both ends included; elsewhere g is
    1 (Kynkaanniemi et al. 2024). None for all.
    """

    guidance: float = 1.0
    null_label: int | None = None
    guide: Denoiser | None = None
    interval: tuple[float, float] | None = None

    def __call__(
        self, z: Tensor, t: Tensor, condition: Condition = NOTHING, rng: Randomness | None = None
    ) -> Prediction:
        """As of a denoiser, with guidance.

        condition: its `guidance` [B] is the g of each picture; the network is not told of it.
        """
        import torch

        told = condition._replace(guidance=None)
        alpha, sigma = scales(self.schedule, t, z)
        strength = self._strength(t, z, condition)
        if self.guide is None:
            weak_told = self._without_class(told)
            both = Condition(
                *(
                    None if mine is None or other is None else torch.cat([mine, other])
                    for mine, other in zip(told, weak_told, strict=True)
                )
            )
            found = super().__call__(torch.cat([z, z]), torch.cat([t, t]), both, rng)
            strong, weak = found.x.chunk(2)
        else:
            strong = super().__call__(z, t, told, rng).x
            weak = self.guide(z, t, told).x
        # `lerp` gives exactly the stronger one for g = 1
        x = torch.lerp(weak, strong, strength)
        return predict("x", x, z, alpha, sigma)

    def at(self, place: Place, z: Tensor, condition: Condition = NOTHING) -> Prediction:
        return self(z, place.t, condition)

    def plain(self) -> Denoiser:
        """The denoiser without guidance."""
        return Denoiser(self.network, self.schedule, self.predicts)

    def _strength(self, t: Tensor, z: Tensor, condition: Condition) -> Tensor:
        """g of each picture, [B, 1, 1, 1] like z."""
        import torch

        if condition.guidance is None:
            strength = torch.full((len(z),), self.guidance, dtype=z.dtype, device=z.device)
        else:
            strength = condition.guidance.to(z)
        if self.interval is not None:
            alpha, sigma = self.schedule.alpha_sigma(t)
            low, high = self.interval
            # products: alpha may be 0
            acts = (sigma >= low * alpha) & (sigma <= high * alpha)
            strength = torch.where(acts.to(z.device), strength, torch.ones_like(strength))
        return strength[:, None, None, None]

    def _without_class(self, told: Condition) -> Condition:
        import torch

        assert self.null_label is not None, "guidance needs a null class or a guide"
        assert told.label is not None, "guidance by a null class needs labels"
        return told._replace(label=torch.full_like(told.label, self.null_label))
