"""What a recipe and a model folder say of the noise process:
its schedule, and what the network predicts of it.
"""

from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import model_validator

from vdiff.choices import Predicts
from vdiff.config import Section, shapes_weights
from vdiff.diffusion import SCHEDULES
from vdiff.diffusion.limits import check_prediction

if TYPE_CHECKING:
    from vdiff.diffusion.section import ScheduleSection
else:  # the contract is imported with the first kind that is named
    ScheduleSection = Any


class DiffusionSection(Section):
    """The noise process and what the network predicts of it."""

    schedule: Annotated[ScheduleSection, SCHEDULES] = shapes_weights("cosine")
    """Noise schedule: cosine, cosine_logsnr or betas, with its options."""
    predicts: Predicts = shapes_weights("v")
    """What the network's output means; v is the only one that stays exact down to one step."""

    @model_validator(mode="after")
    def _check_prediction(self) -> Self:
        check_prediction(self.schedule, self.predicts)
        return self
