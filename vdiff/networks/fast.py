"""Layers that compute the same faster on one kind of device: put into a network from outside, its code stays plain."""

from collections.abc import Iterable
from typing import ClassVar, TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


class Fast(nn.Module):
    """A layer that computes what a layer of the class `plain` computes, to rounding, from the same weights.

    It is not built but put in the place of such a layer by a change of class. So it has no `__init__` and no weights
    of its own, and names in the state dict, hooks and optimizers do not notice. Where a call does not suit it (another
    device, an unusual shape), it computes as `plain` does.
    """

    plain: ClassVar[type[nn.Module]]


def fast_on(network: Module, device: torch.device | str, is_sharded: bool = False) -> Module:
    """Put in the fast layers for `device`, in the place of torch's and of vdiff's plain ones; the same network.

    For any network. A layer of another class, be it a subclass, stays as it is. Copies of the network have the fast
    layers too. Called again, for another device too, it changes what has to change.

    is_sharded: the weights are about to be distributed over several processes (see `sharded.py`).
    """
    kind = torch.device(device).type
    if kind == "cpu":
        from vdiff.networks.cpu.fast import fast_on_cpu

        return fast_on_cpu(network, prepacks=not is_sharded)
    if kind == "cuda":
        from vdiff.networks.gpu import fast_on_gpu

        return fast_on_gpu(network)
    return put_in(network, [])


def put_in(network: Module, layers: Iterable[type[Fast]]) -> Module:
    """Have the layers of a network compute as these fast classes where there is one for them, else plainly."""
    fast = {layer.plain: layer for layer in layers}
    for module in network.modules():
        now = type(module)
        plain: type[nn.Module] = now
        if issubclass(now, Fast) and "plain" in vars(
            now
        ):  # not a class that somebody else has put over a fast one
            plain = now.plain
        wanted = fast.get(plain, plain)
        if wanted is not now:
            module.__class__ = wanted
    return network
