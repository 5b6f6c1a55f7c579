"""What a network is told beside the noisy images and the time: the class of each picture, and the
guidance for networks that were taught to take it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Condition(NamedTuple):
    """One entry per picture; a part is None where there is nothing to tell.

    label: the classes, int64 [B], for a network with classes; the null class, which stands for no
    class, is the one after the last.
    guidance: g, float32 [B], for a network that has guidance inside and takes its strength as an
    input; 1 is none.
    """

    label: Tensor | None = None
    guidance: Tensor | None = None

    def of(self, places: slice) -> Condition:
        """Of some of the pictures."""
        return Condition(*(None if part is None else part[places] for part in self))

    def to(self, device: torch.device | str) -> Condition:
        """The same on a device."""
        return Condition(*(None if part is None else part.to(device) for part in self))


NOTHING = Condition()
"""For a network that is told nothing."""


def of_seeds(seeds: Sequence[int], num_classes: int) -> Condition:
    """Each picture of the class of its seed, seed modulo `num_classes`; nothing for 0 classes."""
    import torch

    if num_classes == 0:
        return NOTHING
    return Condition(torch.tensor([seed % num_classes for seed in seeds], dtype=torch.int64))
