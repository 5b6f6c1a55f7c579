"""How good samples are: the kinds of metric that a recipe or a command can name."""

from vdiff.config import Registry

METRICS = Registry(
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
)
"""The most telling first: so they stand in tables and on pages."""

DEFAULT = ("agreement", "fd_pixel", "swd")
"""The metrics that need nothing but pictures."""
