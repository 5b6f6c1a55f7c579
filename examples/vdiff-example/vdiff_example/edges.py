"""How far the edges in a model's pictures are from those that another model
draws from the same noise.
"""

from typing import ClassVar, Literal

from torch import Tensor

from vdiff.config import free_to_change
from vdiff.metrics.metric import Means, Pictures
from vdiff.metrics.pair_metric import Measure, PairMetric, PairMetricSection, mean_over_pairs


class EdgesSection(PairMetricSection):
    """The squared difference of the steps between neighbouring pixels, with pixels in [-1, 1]."""

    is_cheap: ClassVar[bool] = True
    title: ClassVar[str] = "Edges"
    better: ClassVar[str] = "less is better"
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("edges", "Difference of edges", "Edges", "less is better"),
    )
    kind: Literal["edges"] = free_to_change("edges")
    """Which metric."""

    def build(self, means: Means) -> PairMetric:
        return Edges()


class Edges:
    """See `vdiff.metrics.pair_metric.PairMetric`."""

    features = "steps between neighbouring pixels"

    def compare(self, own: Pictures, other: Pictures) -> dict[str, float]:
        return mean_over_pairs(own, other, differences)


def differences(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Of each pair, float64 [B]: mean over channels and all neighbours,
    beside one another and above one another.
    """
    error = (a - b).double()
    across = error.diff(dim=-1).square().flatten(1).mean(1)
    down = error.diff(dim=-2).square().flatten(1).mean(1)
    return {"edges": (across + down) / 2}
