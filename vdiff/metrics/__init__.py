"""How good samples are: the kinds of metric that a recipe or a command can name."""

from vdiff.config import Registry

METRICS = Registry(
    "metric",
    {
        "agreement": "vdiff.metrics.agreement:AgreementSection",
        "fd_pixel": "vdiff.metrics.frechet:PixelFrechetSection",
        "swd": "vdiff.metrics.sliced:SlicedSection",
        "fid": "vdiff.metrics.fidelity:FrechetInceptionSection",
        "kid": "vdiff.metrics.fidelity:KernelSection",
        "precision": "vdiff.metrics.fidelity:PrecisionSection",
        "recall": "vdiff.metrics.fidelity:RecallSection",
        "inception_score": "vdiff.metrics.fidelity:InceptionScoreSection",
        "fd_dinov2": "vdiff.metrics.fidelity:FrechetDinoSection",
    },
    default="fd_pixel",
    group="vdiff.metrics",
)

DEFAULT = ("agreement", "fd_pixel", "swd")
"""The metrics that need nothing but pictures."""
