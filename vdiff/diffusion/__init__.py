"""The noise process: schedules, predictions and the denoiser that joins them to a network."""

from typing import TYPE_CHECKING

from vdiff.config import Registry

if TYPE_CHECKING:
    from vdiff.diffusion.schedule import ScheduleSection

SCHEDULES: "Registry[ScheduleSection]" = Registry(
    "schedule",
    {
        "cosine": "vdiff.diffusion.schedule:CosineSection",
        "cosine_logsnr": "vdiff.diffusion.schedule:CosineLogsnrSection",
        "betas": "vdiff.diffusion.schedule:BetasSection",
    },
    default="cosine",
    group="vdiff.schedules",
    contract="vdiff.diffusion.schedule:ScheduleSection",
)
