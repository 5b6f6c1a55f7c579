"""The strength of guidance as a vector, beside that of the time."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdiff.networks.blocks import zeroed

_WAVES = 16
"""Sines, and as many cosines."""
_SLOWEST = -4.0
_FASTEST = 2.0
"""Their logarithms to the base 2, from 1/16 to 4 radians per unit of g. A guided picture is affine
in g, so slow waves serve: the slowest turns once in 100 units, more than anybody guides with, and
the fastest tells 1.0 from 1.1. The scales of times, a thousand times as fast, would be noise here.
"""


class GuidanceEmbedding(nn.Module):
    """g as a vector: sines and cosines of it, then two linear layers.

    It is added to the time embedding after that one's layers, so a fixed g is a part of their last
    bias. The last layer is zero at first: then a network does as it did without it, whatever g is.
    """

    def __init__(self, embedding: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(2 * _WAVES, embedding)
        self.linear_2 = zeroed(nn.Linear(embedding, embedding))

    def forward(self, guidance: Tensor) -> Tensor:
        """guidance: g, [B].   Returns [B, embedding] in the dtype of the weights."""
        weight = self.linear_1.weight
        # float32 whatever the weights are: bfloat16 has three digits
        exponent = torch.linspace(_SLOWEST, _FASTEST, _WAVES, device=guidance.device)
        angle = guidance.float()[:, None] * exponent.exp2()
        waves = torch.cat([angle.sin(), angle.cos()], dim=1).to(weight.dtype)
        embedded: Tensor = self.linear_2(F.silu(self.linear_1(waves)))
        return embedded
