"""The usable predictor: a network, its schedule and what it predicts;
and the DDIM step that follows a prediction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdiff.choices import Predicts
from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.diffusion.prediction import Prediction, predict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vdiff.diffusion.schedule import Place, Schedule
    from vdiff.randomness import Randomness


@dataclass(frozen=True)
class Denoiser:
    """(z, t) -> Prediction(x, eps, v).

    Samplers and objectives see this and never the network behind it.
    """

    network: nn.Module
    schedule: Schedule
    predicts: Predicts

    def __call__(
        self, z: Tensor, t: Tensor, condition: Condition = NOTHING, rng: Randomness | None = None
    ) -> Prediction:
        """Predict what is in the noisy images.

        z: [B, C, H, W].   t: [B], 0 < t <= 1, on `exact(z.device)`.
        condition: what the network is told beside, of B pictures.
        rng: needed where the network has dropout and is in training mode.
        The predictions have the dtype of z, whatever precision the network computes in.
        """
        keys = rng.keys() if rng is not None and self.network.training else None
        time = self.schedule.time_input(t).float().to(z.device)
        output = self.network(z, time, condition, keys)
        alpha, sigma = scales(self.schedule, t, z)
        return predict(self.predicts, output.to(z.dtype), z, alpha, sigma)

    def at(self, place: Place, z: Tensor, condition: Condition = NOTHING) -> Prediction:
        """As a call at the time of `place`, whose numbers are known already; without dropout."""
        # a copy: a network may change in place what it is fed
        output = self.network(z, place.time.clone(), condition, None)
        return predict(self.predicts, output.to(z.dtype), z, place.alpha, place.sigma)


def scales(schedule: Schedule, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma at t [B] as [B, 1, 1, 1] in the dtype of z and beside it,
    from float64 where t is.
    """
    alpha, sigma = schedule.alpha_sigma(t)
    return beside(alpha, z)[:, None, None, None], beside(sigma, z)[:, None, None, None]


def beside(numbers: Tensor, z: Tensor) -> Tensor:
    """Numbers in the dtype and on the device of z: cast first, as the device may lack float64."""
    return numbers.to(z.dtype).to(z.device)


def ddim_step(pred: Prediction, s: Tensor, schedule: Schedule) -> Tensor:
    """Move images, each at a time of its own, to the earlier times `s` along
    the predicted direction.

    z_s = alpha_s x + sigma_s eps          (Song et al. 2021, DDIM with eta = 0)

    pred: at the times the images stand at, [B, C, H, W].   s: [B], 0 <= s.
    """
    import torch

    alpha_s, sigma_s = scales(schedule, s, pred.x)
    return torch.addcmul(alpha_s * pred.x, sigma_s, pred.eps)
