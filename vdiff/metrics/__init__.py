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
        "fid": "vdiff.metrics.fidelity:FrechetInceptionSection",
        "fd_dinov2": "vdiff.metrics.fidelity:FrechetDinoSection",
        "kid": "vdiff.metrics.fidelity:KernelSection",
        "fd_pixel": "vdiff.metrics.frechet:PixelFrechetSection",
        "swd": "vdiff.metrics.sliced:SlicedSection",
        "precision": "vdiff.metrics.fidelity:PrecisionSection",
        "recall": "vdiff.metrics.fidelity:RecallSection",
        "inception_score": "vdiff.metrics.fidelity:InceptionScoreSection",
    },
    default="fd_pixel",
    group="vdiff.metrics",
    contract=("vdiff.metrics.metric:MetricSection", "vdiff.metrics.pair_metric:PairMetricSection"),
)
"""The most telling first: so they stand in tables and on pages. Of two sorts: sets of pictures, and pairs of them."""

DEFAULT = ("agreement", "fd_pixel", "swd")
"""The metrics that need nothing but pictures."""
