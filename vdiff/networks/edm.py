"""EDM's frame: a network that was trained on x + sigma n as one that predicts v."""

from typing import Any

import torch
from torch import Tensor, nn

from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.networks.edm_section import EdmConfig
from vdiff.networks.edm_section import EdmSection as EdmSection
from vdiff.networks.network import Network


class EdmNetwork(Network):
    """v of a network that stands in the frame of Karras et al. 2022 (EDM, table 1).

    There, x_noisy = x + s n with noise of the deviation s, d is the deviation of the pictures, and

        x = d^2 / (s^2 + d^2) x_noisy + s d / sqrt(s^2 + d^2) F(x_noisy / sqrt(s^2 + d^2), c log s)

    Here, z = alpha x + sigma n with alpha^2 + sigma^2 = 1 is alpha x_noisy for s = sigma / alpha.
    Put into v = (alpha z - x) / sigma, everything that grows without bound near no noise and near
    pure noise cancels:

        v = s (1 - d^2) / (s^2 + d^2) z - d g F(g z, c log s),    g^2 = (1 + s^2) / (s^2 + d^2)

    So pictures stay in [-1, 1], and for d = 1 it is v = -F(z).
    """

    def __init__(self, inner: nn.Module, config: EdmConfig) -> None:
        super().__init__()
        self._config = config
        self.inner = inner

    @property
    def config(self) -> dict[str, Any]:
        """What goes into `config.json`."""
        return self._config.model_dump(mode="json")

    def forward(
        self,
        z: Tensor,
        time: Tensor,
        condition: Condition = NOTHING,
        dropout_keys: Tensor | None = None,
    ) -> Tensor:
        """z: [B, C, H, W].   time: log(sigma / alpha), [B], as the schedule `edm` tells it.

        Returns v, [B, C, H, W], in the dtype of `z`.
        """
        deviation = self._config.sigma_data
        square = deviation**2
        # float32 whatever the network computes in: bfloat16 has three digits
        log_level = time.float()
        level = torch.exp(log_level)[:, None, None, None]
        gain = ((1 + level**2) / (square + level**2)).sqrt()
        share = level * (1 - square) / (square + level**2)
        inside = (gain * z).to(z.dtype)
        output = self.inner(inside, log_level * self._config.time_scale, condition, dropout_keys)
        v: Tensor = share * z - deviation * gain * output
        return v.to(z.dtype)
