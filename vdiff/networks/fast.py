"""Layers that compute the same faster on one kind of device:
put into a network from outside, its code stays plain.
"""

from collections.abc import Iterable
from typing import ClassVar, TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


class Fast(nn.Module):
    """A layer that computes what a layer of the class `plain` computes, to rounding,
    from the same weights.

    It is never built. A plain layer becomes a fast one by a change of its class, so a fast class
    has no `__init__` and no weights of its own. Names in the state dict, hooks and optimizers stay
    as they are. Where a call does not suit the fast layer (another device, an unusual shape), it
    computes as `plain` does.
    """

    plain: ClassVar[type[nn.Module]]


def fast_on(network: Module, device: torch.device | str, is_sharded: bool = False) -> Module:
    """Put in the fast layers for `device`, in the place of torch's and of vdiff's plain ones;
    returns `network`.

    It works for any network. A layer of another class stays as it is, also if the class is derived
    from a plain one. Copies of the network have the fast layers too. A second call, for this device
    or another one, changes what has to change.

    is_sharded: the weights are about to be distributed over several processes (see `sharded.py`).
    """
    kind = torch.device(device).type
    # Imported here: the fast layers are derived from the plain ones, and those know nothing of
    # them.
    if kind == "cpu":
        from vdiff.networks.cpu.fast import fast_on_cpu

        return fast_on_cpu(network, prepacks=not is_sharded)
    if kind == "cuda":
        from vdiff.networks.gpu import fast_on_gpu

        return fast_on_gpu(network)
    return put_in(network, [])


def put_in(network: Module, layers: Iterable[type[Fast]]) -> Module:
    """Make each layer of a network one of these fast classes where there is one for it,
    else plain; the same network.
    """
    fast_classes = {layer.plain: layer for layer in layers}
    for module in network.modules():
        old_class = type(module)
        plain: type[nn.Module] = old_class
        # `vars`: a class that somebody else has derived from a fast one is not ours to change.
        if issubclass(old_class, Fast) and "plain" in vars(old_class):
            plain = old_class.plain
        new_class = fast_classes.get(plain, plain)
        if new_class is not old_class:
            module.__class__ = new_class
    return network
