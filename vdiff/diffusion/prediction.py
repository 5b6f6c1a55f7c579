"""What a network predicts: the image x, the noise eps or the velocity v;
each gives the other two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vdiff.choices import Predicts as Predicts

if TYPE_CHECKING:
    from torch import Tensor


class Prediction(NamedTuple):
    """The three views of one prediction, each [B, C, H, W]:
    z = alpha x + sigma eps, v = alpha eps - sigma x.
    """

    x: Tensor
    eps: Tensor
    v: Tensor

    def clipped(self, limit: float, z: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
        """The prediction with x in [-limit, limit], and eps and v made anew from it."""
        return predict("x", _within(limit, self.x), z, alpha, sigma)

    def with_noise_clipped(self, limit: float, alpha: Tensor, sigma: Tensor) -> Prediction:
        """The prediction with eps in [-limit, limit], x as it is, and v from both:
        they no longer add up to z.
        """
        eps = _within(limit, self.eps)
        return Prediction(self.x, eps, alpha * eps - sigma * self.x)


def _within(limit: float, values: Tensor) -> Tensor:
    """Clamped; Inf becomes NaN, as a clamp would make a picture of a network
    that predicts no numbers.
    """
    import torch

    return torch.where(values.isfinite(), values.clamp(-limit, limit), torch.nan)


def predict(
    predicts: Predicts, output: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor
) -> Prediction:
    """All three predictions from one of them.

    output, z: [B, C, H, W].   alpha, sigma: broadcastable to them, sigma > 0; alpha > 0 where
    `predicts` is eps.
    """
    if predicts == "v":
        return Prediction(alpha * z - sigma * output, sigma * z + alpha * output, output)
    if predicts == "x":
        return Prediction(output, (z - alpha * output) / sigma, (alpha * z - output) / sigma)
    x = (z - sigma * output) / alpha
    return Prediction(x, output, alpha * output - sigma * x)
