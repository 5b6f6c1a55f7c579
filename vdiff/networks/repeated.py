"""The parts of which a network has many, and activation checkpointing:
what they compute can be recomputed.
"""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vdiff.errors import UsageError


class Repeated(nn.Module):
    """One such part. Its results must be a function of its arguments and weights alone,
    or not be recomputed.

    recomputes: whether only its arguments are kept for the backward pass, which computes the rest
    again.
    """

    recomputes = False

    def __call__(self, *given: Any) -> Any:
        """`forward`, as ever."""
        if self.recomputes and torch.is_grad_enabled():
            # No generator is to be restored: dropout is a function of its keys.
            return checkpoint(
                super().__call__, *given, use_reentrant=False, preserve_rng_state=False
            )
        return super().__call__(*given)


def repeated(network: nn.Module) -> list[Repeated]:
    """All such parts of a network, in the order of its modules."""
    return [module for module in network.modules() if isinstance(module, Repeated)]


def recompute_activations(network: nn.Module) -> None:
    """Turn on activation checkpointing.

    Errors: UsageError for a network without repeated parts.
    """
    parts = repeated(network)
    if not parts:
        problem = (
            f"a network of the kind `{type(network).__name__}` does not say "
            "which of its parts repeat"
        )
        raise UsageError(problem, "leave out `checkpoint_activations`, or lower `micro_batch`")
    for part in parts:
        part.recomputes = True
