"""What vdiff says to diffusers in its own files:
the pipeline's index and the scheduler's configuration.
"""

from typing import Any

from vdiff.choices import Predicts
from vdiff.diffusion.schedule import Schedule

VERSION = "0.35.0"
"""Of diffusers, whose words these files use."""

_KINDS = {"v": "v_prediction", "x": "sample", "eps": "epsilon"}


def pipeline_of(num_classes: int) -> str:
    """The pipeline's class.

    DDIMPipeline passes no classes on. Of the pipelines around a UNet2DModel, that for consistency
    models does, and it takes any scheduler.
    """
    return "ConsistencyModelPipeline" if num_classes else "DDIMPipeline"


def index(network: str, num_classes: int) -> dict[str, Any]:
    """The content of model_index.json.   network: its class in diffusers."""
    return {
        "_class_name": pipeline_of(num_classes),
        "_diffusers_version": VERSION,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", network],
    }


def scheduler(
    schedule: Schedule, predicts: Predicts, own_steps: int | None, clip: float | None = None
) -> dict[str, Any]:
    """The content of scheduler_config.json.

    own_steps: of a student, which draws in this number only. diffusers does not know the entry, and
    says so with its value when the folder is opened: the only way to be told there, as its
    pipelines have a default of their own.
    clip: limit of the predicted picture.
    """
    steps = {} if own_steps is None else {"num_inference_steps": own_steps}
    limit = {} if clip is None else {"clip_sample_range": clip}
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": VERSION,
        "num_train_timesteps": schedule.grid,
        "prediction_type": _KINDS[predicts],
        "timestep_spacing": "trailing",
        "set_alpha_to_one": True,
        "clip_sample": clip is not None,
        **limit,
        "thresholding": False,
        "rescale_betas_zero_snr": False,
        "steps_offset": 0,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        **schedule.diffusers_config(),
        **steps,
    }
