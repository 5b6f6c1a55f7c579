"""The one call that makes a network fast on a CPU."""

from vdiff.networks.cpu.blocks import Attention, Downsample, ResidualBlock, UNet, Upsample
from vdiff.networks.cpu.norm import GroupNorm
from vdiff.networks.cpu.prepacked import Conv2d, Linear, Prepacked
from vdiff.networks.fast import Module, put_in

LAYERS = (UNet, ResidualBlock, Attention, Downsample, Upsample, Conv2d, Linear, GroupNorm)


def fast_on_cpu(network: Module, prepacks: bool = True) -> Module:
    """Put the fast layers of this folder into a network; the same network. See `fast_on`.

    prepacks: layers that learn nothing may keep their weight in the order that oneDNN wants. Not
    where FSDP2 shards the weights: they come and go then.
    """
    put_in(network, LAYERS)
    for module in network.modules():
        if isinstance(module, Prepacked):
            module.prepacks = prepacks
            module.drop_packed()
    return network
