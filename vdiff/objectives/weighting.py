"""Loss weights: how much an error counts at each noise level,
stated as a weight on the squared error of x.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, get_args

from vdiff.choices import Weighting as Weighting
from vdiff.diffusion.denoiser import beside

if TYPE_CHECKING:
    from torch import Tensor

MIN_SNR_GAMMA = 5.0
"""Hang et al. 2023, Min-SNR weighting."""

_WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "constant": lambda snr: snr.new_ones(()).expand_as(snr),
    "snr": lambda snr: snr,  # the squared error of eps
    "truncated_snr": lambda snr: snr.clamp(min=1),  # the larger of the errors of x and eps
    "snr_plus_one": lambda snr: snr + 1,  # the squared error of v
    "min_snr": lambda snr: snr.clamp(max=MIN_SNR_GAMMA),
}
assert set(_WEIGHTS) == set(get_args(Weighting))


def weighted_loss(
    weighting: Weighting, x: Tensor, target: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """Weight times the mean squared error of x over C, H, W: float32 [B].

    x, target: [B, C, H, W].   alpha, sigma: [B], float64.
    Formed from x and a weight: near t = 0 the eps and v of a wrong x are huge (|dv| = |dx| /
    sigma).
    """
    error = (x - target).square().mean((1, 2, 3))
    return error * beside(_WEIGHTS[weighting]((alpha / sigma) ** 2), error)
