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


def of_seeds(seeds: Sequence[int], num_classes: int, guidance: float | None = None) -> Condition:
    """Each picture of the class of its seed, seed modulo `num_classes`; no class for 0 classes.

    guidance: g of all pictures; None tells none.
    """
    import torch

    found = NOTHING
    if num_classes:
        label = torch.tensor([seed % num_classes for seed in seeds], dtype=torch.int64)
        found = Condition(label)
    return with_guidance(found, guidance, len(seeds))


def with_guidance(condition: Condition, guidance: float | None, count: int) -> Condition:
    """The same of so many pictures, and this g of each where the condition says none."""
    import torch

    if guidance is None or condition.guidance is not None:
        return condition
    return condition._replace(guidance=torch.full((count,), guidance, dtype=torch.float32))
