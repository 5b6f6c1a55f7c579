"""Gradients: how long they are together, and what the optimizer divides them by
where that is too long.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from vdiff.networks.sharded import full_tensor, is_sharded


def total_norm(weights: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients together, float [], on their device."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    if not gradients or any(
        gradient.device.type != "cpu" or is_sharded(gradient) for gradient in gradients
    ):
        return full_tensor(nn.utils.get_total_norm(gradients))
    # a CPU takes one thread for the norm of a tensor, but several for those of its rows, which also
    # round less
    norm: Tensor = vector_norm(torch.cat([_norms_of_rows(each) for each in gradients]))
    return norm


def _norms_of_rows(gradient: Tensor) -> Tensor:
    """Numbers with the norm of the gradient, [n]: of a vector its own."""
    if gradient.dim() > 1:
        norms: Tensor = vector_norm(gradient.flatten(1), dim=1)
        return norms
    return gradient.flatten()


def divisor(norm: Tensor, limit: float | None) -> Tensor | None:
    """What gradients of this norm are to be divided by so that they are no longer than `limit`;
    None for nothing.

    A GPU is not asked, as it would be waited for: there it may be 1.
    """
    if limit is None or (norm.device.type != "cuda" and norm <= limit):
        return None
    return (norm / limit).clamp(min=1.0)
