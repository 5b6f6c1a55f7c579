"""What a sampler is: at which times it stands, and how it goes from one to the next. Read this to
write one.

The way from noise to picture is the same for all of them, and here. A new sampler is one file with
a section (what a recipe may say of it) and a class with a `step`; a line in the table of
`samplers/__init__.py`, or an entry point `vdiff.samplers` of another package, gives it its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeVar

from vdiff.config import KindSection
from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.diffusion.denoiser import Denoiser, scales

if TYPE_CHECKING:
    from torch import Tensor

    from vdiff.diffusion.prediction import Prediction
    from vdiff.diffusion.schedule import Place, Schedule
    from vdiff.randomness import Randomness

Key = TypeVar("Key")
Value = TypeVar("Value")

MOST_SIGNAL = 0.02
"""alpha at the first time of a sampler, at most, if that is not t = 1."""

Watch = Callable[["Tensor", "Tensor"], None]
"""Called after every step with the noisy images z and the predicted images x, each [B, C, H, W]."""


class SamplerSection(KindSection, ABC):
    """What a recipe says of a sampler. A kind of its own adds
    `kind: Literal["its name"]` and its options.
    """

    makes: ClassVar[tuple[str, str]] = ("build", "vdiff.samplers.sampler:Sampler")

    @abstractmethod
    def build(self) -> Sampler:
        """The sampler with these options."""


class Point(NamedTuple):
    """Where a batch stands on its way.

    t: the time.   z: noisy images at t, [B, C, H, W].
    prediction: what the network says of them, clipped as the sampler clips.
    """

    t: float
    z: Tensor
    prediction: Prediction


class Predict:
    """predict(z, t) -> Prediction: the network at any place, clipped as the sampler clips;
    one network call each.

    schedule: the noise schedule of the model.
    """

    def __init__(self, denoiser: Denoiser, condition: Condition, sampler: Sampler) -> None:
        self.schedule: Schedule = denoiser.schedule
        self._denoiser, self._condition, self._sampler = denoiser, condition, sampler

    def __call__(self, z: Tensor, t: float) -> Prediction:
        """z: [B, C, H, W], all at the time 0 < t <= 1."""
        place = place_at(self.schedule, t, z)
        pred = self._predicted(place, z)
        if self._sampler.clip is not None:
            pred = pred.clipped(self._sampler.clip, z, place.alpha, place.sigma)
        if self._sampler.clip_noise is not None:
            pred = pred.with_noise_clipped(self._sampler.clip_noise, place.alpha, place.sigma)
        return pred

    def _predicted(self, place: Place, z: Tensor) -> Prediction:
        # a class derived from it may have a call of its own
        if type(self._denoiser) is Denoiser:
            return self._denoiser.at(place, z, self._condition)
        return self._denoiser(z, place.t, self._condition)


class Sampler(ABC):
    """sampler(denoiser, noise, num_steps, rng) -> images in [-1, 1].

    A sampler holds its options and nothing of the batch: what it wants to know of earlier steps
    comes in `before`.

    clip: limit of the predicted x, None for no clipping.
    clip_noise: limit of the predicted eps after that.
    num_remembered: earlier points that `step` is given.
    calls_per_step: network calls of one step at most; the first is made for it, the others are its
    own calls of `predict`.
    needs_denoiser: whether it is for models alone that know all times and whose x is E[x | z]; a
    distilled student is only defined by its own steps.
    """

    clip: float | None = None
    clip_noise: float | None = None
    num_remembered: int = 0
    calls_per_step: int = 1
    needs_denoiser: bool = False

    @abstractmethod
    def step(
        self, here: Point, s: float, before: Sequence[Point], predict: Predict, rng: Randomness
    ) -> Tensor:
        """Move `here.z` from the time `here.t` to the earlier time s;
        at s = 0 that is a picture, usually the x.

        before: the earlier points of this batch, the latest one last; `num_remembered` at most,
        none at first.
        predict: for further network calls; knows the schedule.   rng: for fresh noise.
        Returns [B, C, H, W].
        """

    def corrected(self, here: Point, before: Sequence[Point], predict: Predict) -> Tensor:
        """The z that counts at the point that was reached, [B, C, H, W]: for samplers that mend a
        step by what the network says at its end.

        Called at every point before `step`, which sees a `here` with this z, as later steps see it
        in `before`; the prediction stays that of the z that was reached.

        before: as in `step`.   Unless said otherwise: `here.z`.
        """
        return here.z

    @abstractmethod
    def __str__(self) -> str:
        """The sampler and its options, as in `ddim eta=0.5 clip_x=1.2`:
        others for what draws other pictures.
        """

    @property
    def is_noisy(self) -> bool:
        """Whether fresh noise enters between the steps."""
        return False

    def calls(self, num_steps: int) -> int:
        """Network calls for a picture in so many steps."""
        return num_steps * self.calls_per_step

    def times(
        self, num_steps: int, schedule: Schedule, model_steps: int | None = None
    ) -> list[float]:
        """The times at which it stands, t_N > ... > t_0 = 0 for N = num_steps.

        t_N is 1, or a time so near to it that noise alone may be taken for z there: with at most
        `MOST_SIGNAL` of the picture.

        model_steps: a distilled model knows the times i / model_steps only; None for one that knows
        all.
        """
        from vdiff.diffusion.schedule import sampling_times

        return sampling_times(num_steps, model_steps)

    def __call__(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        num_steps: int,
        rng: Randomness,
        condition: Condition = NOTHING,
        model_steps: int | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """Images from noise, [B, C, H, W], not clamped to [-1, 1].

        num_steps: cost `calls` network calls.   model_steps: see `times`.   condition: of all B.
        """
        import torch

        z = noise
        predict = Predict(denoiser, condition, self)
        before: deque[Point] = deque(maxlen=self.num_remembered)
        with torch.no_grad():
            for t, s in pairwise(self.times(num_steps, denoiser.schedule, model_steps)):
                here = Point(t, z, predict(z, t))
                here = here._replace(z=self.corrected(here, tuple(before), predict))
                z = self.step(here, s, tuple(before), predict, rng)
                before.append(here)
                if watch is not None:
                    watch(z, here.prediction.x)
        return z


def scalars(schedule: Schedule, t: float) -> tuple[float, float]:
    """(alpha, sigma) at one time, as Python floats (float64)."""
    found = schedule.kept.scalars.get(t)
    if found is None:
        import torch

        alpha, sigma = schedule.alpha_sigma(torch.tensor(t, dtype=torch.float64))
        found = float(alpha), float(sigma)
        _keep(schedule.kept.scalars, t, found)
    return found


def place_at(schedule: Schedule, t: float, z: Tensor) -> Place:
    """The time t for a batch like z, [B, C, H, W].

    Its numbers are those that the times of a whole batch give, computed once.
    """
    key = t, len(z), z.dtype, z.device
    found = schedule.kept.places.get(key)
    if found is None:
        import torch

        from vdiff.diffusion.schedule import Place
        from vdiff.randomness import exact

        times = torch.full((len(z),), t, dtype=torch.float64, device=exact(z.device))
        time = schedule.time_input(times).float().to(z.device)
        found = Place(times, time, *scales(schedule, times, z))
        _keep(schedule.kept.places, key, found)
    return found


_MOST_KEPT = 4096
"""Of one schedule: the times of a few samplers."""


def _keep(kept: dict[Key, Value], key: Key, value: Value) -> None:
    if len(kept) >= _MOST_KEPT:
        kept.clear()
    kept[key] = value


def snr_ratio(schedule: Schedule, t: float, s: float) -> float:
    """r = SNR(t) / SNR(s) for s < t: the share of the signal-to-noise ratio at s that
    is left at t; 0 at s = 0.
    """
    alpha_t, sigma_t = scalars(schedule, t)
    alpha_s, sigma_s = scalars(schedule, s)
    return (alpha_t * sigma_s / (sigma_t * alpha_s)) ** 2
