"""Gradients: how long they are together, and shorter where that is too long."""

from collections.abc import Sequence

from torch import Tensor, nn

from vdiff.networks.sharded import whole


def clipped(weights: Sequence[Tensor], limit: float | None) -> Tensor:
    """The norm of all gradients together, float [], on their device; where it is above `limit`, all are scaled."""
    norm = nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
    total = whole(norm)
    # a GPU is not asked, as it would be waited for; elsewhere a pass that multiplies by 1 is spared
    if limit is not None and (total.device.type == "cuda" or not total <= limit):
        nn.utils.clip_grads_with_norm_(weights, limit, norm)
    return total
