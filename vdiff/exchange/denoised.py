"""What EDM's programs record of a network: noisy pictures x + sigma n, sigma, and the pictures that
it makes of them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vdiff.diffusion.condition import Condition
from vdiff.diffusion.denoiser import scales
from vdiff.diffusion.schedule import Schedule
from vdiff.errors import ModelFileError
from vdiff.formats.adapter import ForeignModel

NAMES = ("x_noisy", "sigma", "denoised")
"""float [B, C, H, W], [B] and [B, C, H, W]."""

_HALVINGS = 100
"""Of the times between 0 and 1, which float64 tells apart."""

Arrays = Mapping[str, "np.ndarray[Any, Any]"]


def denoised(model: ForeignModel, arrays: Arrays, condition: Condition, by: str) -> Tensor:
    """The pictures that a model makes of the recorded noisy ones, [B, C, H, W].

    by: whose they are.   Errors: ModelFileError for noise that its schedule has at no time.
    """
    noisy = torch.from_numpy(np.asarray(arrays["x_noisy"], np.float64))
    levels = torch.from_numpy(np.asarray(arrays["sigma"], np.float64))
    denoiser = model.denoiser
    if levels.shape != noisy.shape[:1]:
        problem = f"`{by}` has {list(levels.shape)} noise levels for {len(noisy)} pictures"
        raise ModelFileError(problem, "give one `sigma` for each picture", "--expected")
    t = times_of(denoiser.schedule, levels)
    alpha, sigma = denoiser.schedule.alpha_sigma(t)
    met = sigma / alpha
    far = (met / levels - 1).abs()
    if not bool((far < 1e-5).all()):
        wrong = float(levels[far.nan_to_num(2).argmax()])
        ends = denoiser.schedule.rho(torch.tensor([1e-12, 1.0], dtype=torch.float64))
        problem = (
            f"`{by}` has noise of sigma {wrong:g}, and the model's schedule goes from "
            f"{float(1 / ends[0]):.3g} to {float(1 / ends[1]):.3g}"
        )
        raise ModelFileError(problem, "tell the range that it was trained with", "--expected")
    z = (alpha[:, None, None, None] * noisy).float()
    with torch.no_grad():
        return denoiser(z, t, condition).x


def times_of(schedule: Schedule, levels: Tensor) -> Tensor:
    """The times in (0, 1] at which sigma / alpha is nearest to `levels`, float64 [B]."""
    low = torch.full_like(levels, 2.0**-60)
    high = torch.ones_like(levels)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        alpha, sigma = scales(schedule, middle, middle)
        is_below = (sigma / alpha).flatten() < levels
        low = torch.where(is_below, middle, low)
        high = torch.where(is_below, high, middle)
    return high
