"""The ways a network can learn: from pictures, or from a teacher."""

from vdiff.config import Registry

OBJECTIVES = Registry(
    "objective",
    {
        "denoising": "vdiff.objectives.denoising:DenoisingSection",
        "progressive": "vdiff.objectives.progressive:ProgressiveSection",
    },
    default="denoising",
    group="vdiff.objectives",
)
