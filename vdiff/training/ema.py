"""The running average of the weights, which samples better than the weights themselves."""

import torch
from torch import Tensor, nn

from vdiff.networks.sharded import local_shard


class Average:
    """average <- d average + (1 - d) weights after every update,
    d = min(decay, (1 + u) / (10 + u)) after u updates.

    The warm-up of d keeps the random start out of the average of a short training.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self._weights: list[Tensor] = list(network.parameters())
        self._names = [name for name, _ in network.named_parameters()]
        self._average = [weight.detach().clone() for weight in self._weights]

    @torch.no_grad()
    def follow(self, update: int, is_done: Tensor) -> None:
        """Move towards the weights, or stay where the update was skipped,
        without waiting for the device to say which.

        update: how many were done, this one included.   is_done: bool [], on the weights' device.
        """
        decay = min(self.decay, (1 + update) / (10 + update))
        average = [local_shard(each) for each in self._average]
        weights = [local_shard(each) for each in self._weights]
        share = is_done * (1 - decay)
        if is_done.device.type == "cuda":
            move_all(average, weights, share)
        else:
            move_each(average, weights, share)

    def tensors(self) -> dict[str, Tensor]:
        """The average by parameter name, not copied."""
        return dict(zip(self._names, self._average, strict=True))


def move_each(average: list[Tensor], weights: list[Tensor], share: Tensor) -> None:
    """average += share (weights - average), in one pass over each;
    share: float [], which is read.
    """
    torch._foreach_lerp_(average, weights, float(share))


def move_all(average: list[Tensor], weights: list[Tensor], share: Tensor) -> None:
    """The same in three kernels for all of them together,
    without waiting for the share to be known.
    """
    towards = torch._foreach_sub(weights, average)
    torch._foreach_mul_(towards, share)
    torch._foreach_add_(average, towards)
