"""The noise process: schedules, predictions and the denoiser that joins them to a network."""

from typing import TYPE_CHECKING

from vdiff.config import Registry

if TYPE_CHECKING:
    from vdiff.diffusion.section import ScheduleSection

SCHEDULES: "Registry[ScheduleSection]" = Registry(
    "schedule",
    {
        "cosine": "vdiff.diffusion.section:CosineSection",
        "cosine_logsnr": "vdiff.diffusion.section:CosineLogsnrSection",
        "betas": "vdiff.diffusion.section:BetasSection",
        "edm": "vdiff.diffusion.continuous:EdmScheduleSection",
        "vp": "vdiff.diffusion.continuous:VpScheduleSection",
    },
    default="cosine",
    group="vdiff.schedules",
    contract="vdiff.diffusion.section:ScheduleSection",
)
