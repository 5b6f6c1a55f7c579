"""What a recipe says of a noise schedule, and its scales without torch;
`schedule` has the formulas and sources.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import atan, cos, exp, floor, log, pi, sin, sqrt
from operator import mul
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vdiff.config import KindSection, shapes_weights

if TYPE_CHECKING:
    from torch import Tensor

    from vdiff.diffusion.schedule import Schedule

Scales = tuple[float, float]
"""(alpha, sigma) at one time."""

COSINE_OFFSET = 0.008
LARGEST_COSINE_BETA = 0.999
"""See `schedule.CosineSchedule`."""


class ScheduleSection(KindSection, ABC):
    """What a recipe says of a noise schedule. A kind of its own adds `kind: Literal["its name"]`
    and its options.
    """

    makes: ClassVar[tuple[str, str]] = ("build", "vdiff.diffusion.schedule:Schedule")

    @abstractmethod
    def build(self) -> "Schedule":
        """The schedule with these options."""

    def scales_at(self, times: Sequence[float]) -> list[Scales]:
        """(alpha, sigma) at each of the times in [0, 1]: what the checks of a recipe ask.

        A kind that computes them without torch lets a recipe be checked without a wait for torch.
        """
        return self.build().scales_at(times)


class CosineSection(ScheduleSection):
    """The cosine schedule of improved DDPM; the usual choice."""

    kind: Literal["cosine"] = shapes_weights("cosine")
    """Which schedule."""
    grid: int = shapes_weights(1024, ge=1, le=1 << 16)
    """Base steps T that the network's time input counts in;
    1024 leaves exact room for ten halvings.
    """

    def build(self) -> "Schedule":
        from vdiff.diffusion.schedule import CosineSchedule

        return CosineSchedule(self.grid)

    def scales_at(self, times: Sequence[float]) -> list[Scales]:
        return [_scales(t, *_cosine(t, self.grid)) for t in times]


class CosineLogsnrSection(ScheduleSection):
    """The cosine schedule of the progressive distillation paper,
    between two limits of the signal-to-noise ratio.
    """

    kind: Literal["cosine_logsnr"] = shapes_weights("cosine_logsnr")
    """Which schedule."""
    grid: int = shapes_weights(1024, ge=1, le=1 << 16)
    """Base steps T that the network's time input counts in."""
    smallest: float = shapes_weights(-20.0, ge=-40, lt=0)
    """log(alpha^2 / sigma^2) at t = 1."""
    largest: float = shapes_weights(20.0, gt=0, le=40)
    """log(alpha^2 / sigma^2) just after t = 0."""

    def build(self) -> "Schedule":
        from vdiff.diffusion.schedule import CosineLogsnrSchedule

        return CosineLogsnrSchedule(self.grid, self.smallest, self.largest)

    def scales_at(self, times: Sequence[float]) -> list[Scales]:
        start = atan(exp(-self.largest / 2))
        slope = atan(exp(-self.smallest / 2)) - start
        angles = [slope * t + start for t in times]
        return [
            _scales(t, cos(angle) ** 2, sin(angle) ** 2)
            for t, angle in zip(times, angles, strict=True)
        ]


_SMALLEST_BETA = 1e-8
"""Below it, 1 - beta is so rough in float64 that times near 0 would have no noise at all."""

_SMALLEST_SIGNAL = 1e-300
"""Of alpha^2 before the last beta; smaller numbers lose their digits, and at last become 0."""

Table = Annotated[
    tuple[Annotated[float, Field(ge=_SMALLEST_BETA, le=1)], ...],
    Field(min_length=1, max_length=1 << 16),
]


TableName = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"]
"""As diffusers calls them."""


class BetasSection(ScheduleSection):
    """A table of betas, for models that were trained elsewhere."""

    kind: Literal["betas"] = shapes_weights("betas")
    """Which schedule."""
    table: TableName | Table = shapes_weights("linear")
    """The table's name in DDPM code, or its values;
    the last one may be 1 (no signal is left then, so not with eps).
    """
    grid: int = shapes_weights(1000, ge=1, le=1 << 16)
    """Entries of a named table."""
    first: float = shapes_weights(1e-4, ge=_SMALLEST_BETA, lt=1)
    """First beta of `linear` and `scaled_linear`; the lower limit of `sigmoid`."""
    last: float = shapes_weights(0.02, ge=_SMALLEST_BETA, lt=1)
    """Last beta of `linear` and `scaled_linear`; the upper limit of `sigmoid`."""
    zero_terminal: bool = shapes_weights(False)
    """Shift and stretch the table so that no signal is left at its end (Lin et
    al. 2023, algorithm 1).
    """
    time_scale: float = shapes_weights(1.0, gt=0, le=1 << 16)
    """Factor on the network's time input: 0.25 where a network with 4000
    base steps is told of 1000.
    """

    @model_validator(mode="after")
    def _check_signal(self) -> Self:
        signal = self._signal()[1:-1]
        number = next(
            (number for number, left in enumerate(signal, start=1) if left < _SMALLEST_SIGNAL), None
        )
        if number is not None:
            raise ValueError(
                f"nothing of the picture is left after {number} of {len(signal) + 1} betas; "
                "they should be smaller, and none but the last may be 1"
            )
        return self

    def build(self) -> "Schedule":
        from vdiff.diffusion.schedule import BetaSchedule
        from vdiff.diffusion.tables import zero_terminal

        betas = self._table()
        if self.zero_terminal:
            betas = zero_terminal(betas)
        return BetaSchedule(betas, self.time_scale)

    def _table(self) -> "Tensor":
        import torch

        from vdiff.diffusion import tables
        from vdiff.diffusion.schedule import CosineSchedule, tabled_betas

        match self.table:
            case "linear":
                return torch.linspace(self.first, self.last, self.grid, dtype=torch.float64)
            case "scaled_linear":
                ends = self.first**0.5, self.last**0.5
                return torch.linspace(*ends, self.grid, dtype=torch.float64) ** 2
            case "squaredcos_cap_v2":
                return tabled_betas(CosineSchedule(self.grid))
            case "sigmoid":
                return tables.sigmoid(self.grid, self.first, self.last)
            case "laplace":
                return tables.laplace(self.grid)
            case _:
                return torch.tensor(self.table, dtype=torch.float64)

    def scales_at(self, times: Sequence[float]) -> list[Scales]:
        table = self._signal()
        last = len(table) - 2
        scales = []
        for t in times:
            place = t * (last + 1)
            left = min(max(floor(place), 0), last)
            signal = _between(table[left], table[left + 1], place - left)
            scales.append(_scales(t, signal, 1 - signal))
        return scales

    def _signal(self) -> list[float]:
        """alpha^2 after 0, 1, ..., T betas."""
        signal = [1.0, *accumulate((1 - beta for beta in self._betas()), mul)]
        if not self.zero_terminal:
            return signal
        first = sqrt(signal[1])
        last = sqrt(signal[-1])
        return [1.0, *(((sqrt(each) - last) * first / (first - last)) ** 2 for each in signal[1:])]

    def _betas(self) -> Sequence[float]:
        if self.table == "linear":
            return _evenly(self.first, self.last, self.grid)
        if self.table == "scaled_linear":
            return [root**2 for root in _evenly(self.first**0.5, self.last**0.5, self.grid)]
        if self.table == "squaredcos_cap_v2":
            signal = [1.0, *(_cosine(i / self.grid, self.grid)[0] for i in range(1, self.grid + 1))]
            return [1 - after / before for before, after in pairwise(signal)]
        if self.table == "sigmoid":
            places = _evenly(-6.0, 6.0, self.grid)
            return [self.first + (self.last - self.first) / (1 + exp(-place)) for place in places]
        if self.table == "laplace":
            signal = [_laplace(i / self.grid) for i in range(self.grid + 1)]
            largest = LARGEST_COSINE_BETA
            return [min(1 - after / before, largest) for before, after in pairwise(signal)]
        return self.table


def _laplace(t: float) -> float:
    """alpha^2 of diffusers' `laplace` table before its betas are limited."""
    sign = -1 if t > 0.5 else 1
    snr = exp(-0.5 * sign * log(1 - 2 * abs(0.5 - t) + 1e-6))
    return sqrt(snr / (1 + snr))


def _scales(t: float, signal: float, noise: float) -> Scales:
    """From alpha^2 and sigma^2; at t = 0 there is no noise at all."""
    return (1.0, 0.0) if t == 0 else (sqrt(signal), sqrt(noise))


def _cosine(t: float, grid: int) -> tuple[float, float]:
    """(alpha^2, sigma^2) of `CosineSchedule`."""
    signal, noise = _unclamped_cosine(t)
    terminal = (1 - LARGEST_COSINE_BETA) * _unclamped_cosine(1 - 1 / grid)[0]
    return max(signal, terminal), min(noise, 1 - terminal)


def _unclamped_cosine(t: float) -> tuple[float, float]:
    start = COSINE_OFFSET / (1 + COSINE_OFFSET) * pi / 2
    angle = (t + COSINE_OFFSET) / (1 + COSINE_OFFSET) * pi / 2
    # cos^2 p - cos^2 q = sin(q - p) sin(q + p): no cancellation near t = 0
    noise = sin(angle - start) * sin(angle + start)
    return cos(angle) ** 2 / cos(start) ** 2, noise / cos(start) ** 2


def _between(before: float, after: float, share: float) -> float:
    """As torch's `lerp`: exact at both ends."""
    if share < 0.5:
        return before + share * (after - before)
    return after - (1 - share) * (after - before)


def _evenly(first: float, last: float, number: int) -> list[float]:
    """`number` values from first to last, as torch's `linspace` takes them:
    from both ends towards the middle.
    """
    if number == 1:
        return [first]
    step = (last - first) / (number - 1)
    half = number // 2
    return [first + step * i if i < half else last - step * (number - 1 - i) for i in range(number)]
