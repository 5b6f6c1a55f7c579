"""What the network is told of the pictures of an update: their classes, some left out, and a
guidance.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vdiff.diffusion.condition import Condition
from vdiff.randomness import Randomness


@dataclass(frozen=True)
class Telling:
    """How what is told is made of what is known.

    label_drop: probability that a picture is told the null class in the place of its own.
    null_label: the null class; None for a network without one.
    guidance: the range that g is drawn from, evenly; None tells none.
    """

    label_drop: float = 0.0
    null_label: int | None = None
    guidance: tuple[float, float] | None = None

    def __call__(self, labels: Tensor | None, rng: Randomness) -> Condition:
        """What the pictures of a share are told.

        labels: int64 [B]; None for a network without classes.
        rng: of these pictures, for this purpose alone.
        """
        if labels is not None and self.label_drop > 0:
            assert self.null_label is not None
            is_dropped = (rng.uniform() < self.label_drop).to(labels.device)
            labels = torch.where(is_dropped, self.null_label, labels)
        guidance = None
        if self.guidance is not None:
            low, high = self.guidance
            guidance = (low + (high - low) * rng.uniform()).float()
        return Condition(labels, guidance)


AS_THEY_ARE = Telling()
"""Every picture is told its class, where it has one."""
