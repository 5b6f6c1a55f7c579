"""How far the mean brightness of samples is from that of the reference."""

from typing import ClassVar, Literal

from vdiff.config import free_to_change
from vdiff.metrics.metric import Metric, MetricSection, Pictures, Reference, chunks
from vdiff.metrics.table import Value


class BrightnessSection(MetricSection):
    """The difference of the mean brightness, in [-1, 1]."""

    is_cheap: ClassVar[bool] = True
    title: ClassVar[str] = "Brightness"
    better: ClassVar[str] = "nearer to 0 is better"
    kind: Literal["brightness"] = free_to_change("brightness")
    """Which metric."""

    def build(self, against: Reference) -> Metric:
        return Brightness(mean(against.pictures))


class Brightness:
    """See `vdiff.metrics.metric.Metric`."""

    features = "mean over all pixels"
    least = 1

    def __init__(self, reference: float) -> None:
        self._reference = reference

    def value(self, samples: Pictures) -> Value:
        return Value(value=mean(samples) - self._reference)


def mean(pictures: Pictures) -> float:
    """Over all pixels, in [0, 1]."""
    total = sum(float(part.double().sum()) for part in chunks(pictures))
    count = len(pictures)
    for length in pictures.shape[1:]:
        count *= length
    return total / (255 * count)
