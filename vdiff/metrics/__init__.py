"""How good samples are: the kinds of metric that a recipe or a command can name."""

from typing import TYPE_CHECKING

from vdiff.config import Registry

if TYPE_CHECKING:
    from vdiff.metrics.metric import MetricSection
    from vdiff.metrics.pair_metric import PairMetricSection

METRICS: "Registry[MetricSection | PairMetricSection]" = Registry(
    "metric",
    {
        "agreement": "vdiff.metrics.agreement:AgreementSection",
        "fid": "vdiff.metrics.features:FrechetInceptionSection",
        "fd_dinov2": "vdiff.metrics.features:FrechetDinoSection",
        "kid": "vdiff.metrics.features:KernelSection",
        "fd_pixel": "vdiff.metrics.pixels:PixelFrechetSection",
        "swd": "vdiff.metrics.pixels:SlicedSection",
        "precision": "vdiff.metrics.features:PrecisionSection",
        "recall": "vdiff.metrics.features:RecallSection",
        "inception_score": "vdiff.metrics.features:InceptionScoreSection",
    },
    default="fd_pixel",
    group="vdiff.metrics",
    contract=("vdiff.metrics.metric:MetricSection", "vdiff.metrics.pair_metric:PairMetricSection"),
)
"""The most telling first: so they stand in tables and on pages. Of two sorts:
sets of pictures, and pairs of them.
"""

DEFAULT = ("agreement", "fd_pixel", "swd")
"""The metrics that need nothing but pictures."""
