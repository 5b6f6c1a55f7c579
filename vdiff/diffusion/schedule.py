"""Noise schedules: how much signal and noise there is at time t (0 clean, 1 noise),
and the times a sampler visits.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from math import atan, atan2, cos, exp, hypot, log1p, pi, sin, sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vdiff.diffusion.section import COSINE_OFFSET, LARGEST_COSINE_BETA, Scales
from vdiff.diffusion.section import BetasSection as BetasSection
from vdiff.diffusion.section import CosineLogsnrSection as CosineLogsnrSection
from vdiff.diffusion.section import CosineSection as CosineSection
from vdiff.diffusion.section import ScheduleSection as ScheduleSection


class Place(NamedTuple):
    """A time at which a whole batch stands, as a denoiser wants it.

    t: float64 [B].   time: what the network is fed, float32 [B].
    alpha, sigma: [B, 1, 1, 1].
    """

    t: Tensor
    time: Tensor
    alpha: Tensor
    sigma: Tensor


class Kept:
    """What samplers have asked of a schedule: they come to the same few times again and again.

    scalars: t -> (alpha, sigma).   places: t, number of images, dtype and device -> the place.
    """

    def __init__(self) -> None:
        self.scalars: dict[float, Scales] = {}
        self.places: dict[tuple[float, int, torch.dtype, torch.device], Place] = {}


class Schedule(ABC):
    """z = alpha x + sigma eps with alpha^2 + sigma^2 = 1. All results are float64, on the device of
    `t`.

    grid: the number T of base steps; the network's time input is the base-grid index T t - 1, at
    every stage. At t = 0 there is no noise at all, whatever the limit of the schedule: alpha = 1,
    sigma = 0, rho = infinity.
    """

    def __init__(self, grid: int) -> None:
        self.grid = grid

    @cached_property
    def kept(self) -> Kept:
        """For `samplers`, and only added to."""
        return Kept()

    @abstractmethod
    def powers(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha^2, sigma^2) at float64 times 0 < t <= 1, each without cancellation."""

    @abstractmethod
    def diffusers_config(self) -> dict[str, Any]:
        """The keys of diffusers' DDIMScheduler that describe this schedule on its grid."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Scale of the signal and of the noise at times t in [0, 1], any shape."""
        signal, noise = self.powers(t.double())
        return torch.where(t == 0, 1, signal).sqrt(), torch.where(t == 0, 0, noise).sqrt()

    def scales_at(self, times: Sequence[float]) -> list[Scales]:
        """(alpha, sigma) at each of the times in [0, 1], as `alpha_sigma` gives them."""
        alpha, sigma = self.alpha_sigma(torch.tensor(times, dtype=torch.float64))
        return list(zip(alpha.tolist(), sigma.tolist(), strict=True))

    def rho(self, t: Tensor) -> Tensor:
        """alpha / sigma, infinite at t = 0."""
        alpha, sigma = self.alpha_sigma(t)
        return alpha / sigma

    def logsnr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2), infinite at t = 0."""
        return 2 * self.rho(t).log()

    def inverse(self, rho: float) -> float:
        """The time 0 < t <= 1 with this alpha / sigma, to rounding; the nearest end of the schedule
        where there is none.

        By bisection; a schedule with a formula for it has that in its `_inverse`.
        """
        if rho <= float(self.rho(torch.ones((), dtype=torch.float64))):
            return 1.0
        return min(max(self._inverse(rho), _LEAST_TIME), 1.0)

    def _inverse(self, rho: float) -> float:
        """As `inverse`, of a rho above that at t = 1; may overstep the ends."""
        low, high = 0.0, 1.0
        while low < (middle := (low + high) / 2) < high:
            if float(self.rho(torch.tensor(middle, dtype=torch.float64))) > rho:
                low = middle
            else:
                high = middle
        return high

    def time_input(self, t: Tensor) -> Tensor:
        """What the network is told about t: its index on the base grid, float64,
        fractional between grid points.
        """
        return t.double() * self.grid - 1

    @property
    def is_told_as_in_diffusers(self) -> bool:
        """Whether the network is told 0 to grid - 1, as diffusers tells it."""
        ends = torch.tensor([1 / self.grid, 1.0], dtype=torch.float64)
        wanted = torch.tensor([0.0, self.grid - 1.0], dtype=torch.float64)
        return torch.allclose(self.time_input(ends), wanted, rtol=0, atol=1e-6)


class CosineSchedule(Schedule):
    """alpha^2(t) = cos^2(a(t)) / cos^2(a(0)), a(t) = (t + 0.008) / 1.008 * pi/2
    (Nichol & Dhariwal 2021)

    The last of the T tabled betas is clamped to 0.999, so alpha^2 ends at 0.001 alpha^2(1 - 1/T).
    Every stage shares the table of the base grid.
    """

    offset = COSINE_OFFSET
    largest_beta = LARGEST_COSINE_BETA

    def __init__(self, grid: int) -> None:
        super().__init__(grid)
        before_last = torch.tensor(1 - 1 / grid, dtype=torch.float64)
        self._terminal = (1 - self.largest_beta) * float(self._free(before_last)[0])

    def powers(self, t: Tensor) -> tuple[Tensor, Tensor]:
        signal, noise = self._free(t)
        return signal.clamp(min=self._terminal), noise.clamp(max=1 - self._terminal)

    def diffusers_config(self) -> dict[str, Any]:
        return {"beta_schedule": "squaredcos_cap_v2"}

    def _inverse(self, rho: float) -> float:
        start = self.offset / (1 + self.offset) * pi / 2
        alpha, sigma = _scales_of(rho)
        # sin^2(angle) - sin^2(start) = sigma^2 cos^2(start): no cancellation near t = 0
        angle = atan2(hypot(sin(start), sigma * cos(start)), alpha * cos(start))
        return angle / (pi / 2) * (1 + self.offset) - self.offset

    def _free(self, t: Tensor) -> tuple[Tensor, Tensor]:
        start = self.offset / (1 + self.offset) * pi / 2
        angle = (t + self.offset) / (1 + self.offset) * pi / 2
        # cos^2 p - cos^2 q = sin(q - p) sin(q + p): no cancellation near t = 0
        noise = torch.sin(angle - start) * torch.sin(angle + start)
        return torch.cos(angle) ** 2 / cos(start) ** 2, noise / cos(start) ** 2


class CosineLogsnrSchedule(Schedule):
    """alpha = cos(a t + b), sigma = sin(a t + b):
    logsnr falls from `largest` to `smallest`  (Salimans & Ho 2022).
    """

    def __init__(self, grid: int, smallest: float, largest: float) -> None:
        super().__init__(grid)
        self._start = atan(exp(-largest / 2))
        self._slope = atan(exp(-smallest / 2)) - self._start

    def powers(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = self._slope * t + self._start
        return torch.cos(angle) ** 2, torch.sin(angle) ** 2

    def _inverse(self, rho: float) -> float:
        return (atan(1 / rho) - self._start) / self._slope

    def diffusers_config(self) -> dict[str, Any]:
        return _tabled(self)


class BetaSchedule(Schedule):
    """A DDPM table of betas: alpha^2(i / T) = product of the first i (1 - beta), linear in between.

    time_scale: factor on the network's time input, which then is time_scale (T t - 1).
    """

    def __init__(self, betas: Tensor, time_scale: float = 1.0) -> None:
        super().__init__(len(betas))
        self.time_scale = time_scale
        signal = torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas.double()).cumprod(0)])
        self._tables = {signal.device: signal}

    def powers(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # kept there: copying it every time would wait for the device
        if t.device not in self._tables:
            self._tables[t.device] = next(iter(self._tables.values())).to(t.device)
        table = self._tables[t.device]
        place = t * self.grid
        left = place.floor().long().clamp(0, self.grid - 1)
        signal = torch.lerp(table[left], table[left + 1], place - left)
        return signal, 1 - signal

    def _inverse(self, rho: float) -> float:
        table = next(iter(self._tables.values())).cpu()
        wanted = _scales_of(rho)[0] ** 2
        # the last entry that is not below it, and before the end of the table: its last value
        # itself may have been rounded to just above it
        left = min(int((table >= wanted).sum()) - 1, self.grid - 1)
        before, after = table[left : left + 2].tolist()
        return float(left + (before - wanted) / (before - after)) / self.grid

    def time_input(self, t: Tensor) -> Tensor:
        return super().time_input(t) * self.time_scale

    def diffusers_config(self) -> dict[str, Any]:
        return _tabled(self)


class EdmSchedule(Schedule):
    """sigma / alpha = sigma_data tan(a(t)), a(t) linear between the two ends
    (the noise levels of Karras et al. 2022).

    The network is told log(sigma / alpha), which is EDM's log(sigma).
    """

    def __init__(self, grid: int, smallest: float, largest: float, deviation: float) -> None:
        super().__init__(grid)
        self._start = atan(smallest / deviation)
        self._slope = atan(largest / deviation) - self._start
        self._deviation = deviation

    def powers(self, t: Tensor) -> tuple[Tensor, Tensor]:
        ratio = self._level(t) ** 2
        return 1 / (1 + ratio), ratio / (1 + ratio)

    def time_input(self, t: Tensor) -> Tensor:
        """log(sigma / alpha), float64; at t = 0, where no network is asked, of the least noise."""
        return self._level(t.double()).log()

    def diffusers_config(self) -> dict[str, Any]:
        return _tabled(self)

    def _inverse(self, rho: float) -> float:
        return (atan(1 / (rho * self._deviation)) - self._start) / self._slope

    def _level(self, t: Tensor) -> Tensor:
        return self._deviation * torch.tan(self._slope * t + self._start)


class VpSchedule(Schedule):
    """alpha^2(t) = exp(-beta_d t^2 / 2 - beta_min t)   (Song et al. 2021, equation 33)

    The network is told (T - 1) t.
    """

    def __init__(self, grid: int, beta_min: float, beta_d: float) -> None:
        super().__init__(grid)
        self._beta_min = beta_min
        self._beta_d = beta_d

    def powers(self, t: Tensor) -> tuple[Tensor, Tensor]:
        spent = self._beta_d * t**2 / 2 + self._beta_min * t
        return torch.exp(-spent), -torch.expm1(-spent)

    def _inverse(self, rho: float) -> float:
        spent = log1p(rho**-2)
        # the root that does not cancel
        root = sqrt(self._beta_min**2 + 2 * self._beta_d * spent)
        return 2 * spent / (self._beta_min + root)

    def time_input(self, t: Tensor) -> Tensor:
        return t.double() * (self.grid - 1)

    def diffusers_config(self) -> dict[str, Any]:
        return _tabled(self)


def tabled_betas(schedule: Schedule) -> Tensor:
    """The DDPM betas of a schedule on its own grid, float64 [T]."""
    signal = (
        schedule.alpha_sigma(torch.arange(schedule.grid + 1, dtype=torch.float64) / schedule.grid)[
            0
        ]
        ** 2
    )
    return 1 - signal[1:] / signal[:-1]


def sampling_times(num_steps: int, model_steps: int | None = None) -> list[float]:
    """The times 1 = t_N > ... > t_0 = 0 of a sampler of N steps.

    model_steps: a distilled model knows the times i / model_steps only, so fewer steps visit the
    nearest of those and the last one is always 0; None for a model of continuous time. ValueError
    for more steps than the model knows.
    """
    if model_steps is None:
        return [i / num_steps for i in range(num_steps, -1, -1)]
    if not 1 <= num_steps <= model_steps:
        raise ValueError(f"num_steps {num_steps} is not between 1 and {model_steps}")
    return [
        (2 * i * model_steps + num_steps) // (2 * num_steps) / model_steps
        for i in range(num_steps, -1, -1)
    ]


_LEAST_TIME = 1e-9
"""Of `inverse`: a limit of noise at t -> 0 is no time of its own."""


def _scales_of(rho: float) -> tuple[float, float]:
    """(alpha, sigma) with this ratio."""
    return rho / hypot(rho, 1), 1 / hypot(rho, 1)


def _tabled(schedule: Schedule) -> dict[str, Any]:
    return {"beta_schedule": "linear", "trained_betas": tabled_betas(schedule).tolist()}
