"""The noise process: schedules, predictions and the denoiser that joins them to a network."""

from vdiff.config import Registry

SCHEDULES = Registry(
    "schedule",
    {
        "cosine": "vdiff.diffusion.schedule:CosineSection",
        "cosine_logsnr": "vdiff.diffusion.schedule:CosineLogsnrSection",
        "betas": "vdiff.diffusion.schedule:BetasSection",
    },
    default="cosine",
    group="vdiff.schedules",
)
