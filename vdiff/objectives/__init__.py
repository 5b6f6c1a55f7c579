"""The ways a network can learn: from pictures, or from a teacher."""

from typing import TYPE_CHECKING

from vdiff.config import Registry

if TYPE_CHECKING:
    from vdiff.objectives.objective import ObjectiveSection

OBJECTIVES: "Registry[ObjectiveSection]" = Registry(
    "objective",
    {
        "denoising": "vdiff.objectives.denoising:DenoisingSection",
        "guided": "vdiff.objectives.guided:GuidedSection",
        "progressive": "vdiff.objectives.progressive:ProgressiveSection",
    },
    default="denoising",
    group="vdiff.objectives",
    contract="vdiff.objectives.objective:ObjectiveSection",
)
