"""Dropout that depends on the image alone: the same in any batch, on any device,
and in a resumed run.
"""

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """Dropout whose mask is a function of (key of the image, layer, element):
    the same in any batch, on any device.

    probability: in [0, 1), taken to the nearest 1/65536.
    layer: its number in its network, set by the network.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.threshold: int = round(probability * 2**16)
        self.layer = 0

    def forward(self, h: Tensor, keys: Tensor | None) -> Tensor:
        """h: [B, ...].   keys: int64 [B].   ValueError when training without keys."""
        if not self.training or self.threshold == 0:
            return h
        if keys is None:
            raise ValueError("a network with dropout needs `dropout_keys` [B] while it trains")
        # The numbers run from -2**15: so many of the 2**16 values lie below this limit as are to be
        # dropped.
        limit = self.threshold - 2**15
        dropped = random_int16(keys, self.layer, h[0].numel()).view(h.shape) < limit
        # The keys are on the CPU where the device cannot mix them.
        dropped = dropped.to(h.device)
        return h.masked_fill(dropped, 0.0) * (2**16 / (2**16 - self.threshold))


def drops(network: nn.Module) -> bool:
    """Whether any of its layers is dropout that does something."""
    return any(isinstance(module, Dropout) and module.threshold > 0 for module in network.modules())


def random_int16(keys: Tensor, layer: int, count: int) -> Tensor:
    """int16 [B, count], uniform over all values: a hash of key, layer and element number.

    keys: int64 [B].   count: below 2**31.
    """
    # Few processors multiply vectors of 64-bit integers: only the keys have 64 bits.
    key = _mix64(_mix64(keys) + layer)
    high = (key >> 32).int()[:, None]
    # Shifted there and back: so the lower half is a number that fits int32, sign and all, before it
    # is cast.
    low = ((key << 32) >> 32).int()[:, None]
    # A word of 32 bits serves two elements.
    pair = _mix32(torch.arange((count + 1) // 2, dtype=torch.int32, device=keys.device))
    words = _mix32((pair ^ high).mul_(0x7FEB352D) ^ low)
    return words.view(torch.int16)[:, :count]


def _mix64(x: Tensor) -> Tensor:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014), constants as signed numbers."""
    x = (x ^ _shifted(x, 30, 64)) * -0x40A7B892E31B1A47
    x = (x ^ _shifted(x, 27, 64)) * -0x6B2FB644ECCEEE15
    return x ^ _shifted(x, 31, 64)


def _mix32(x: Tensor) -> Tensor:
    """Two rounds of multiply and xorshift, in place."""
    x.bitwise_xor_(_shifted(x, 16, 32)).mul_(0x165667B1)
    x.bitwise_xor_(_shifted(x, 15, 32)).mul_(0x5BD1E995)
    return x.bitwise_xor_(_shifted(x, 16, 32))


def _shifted(x: Tensor, places: int, bits: int) -> Tensor:
    """The logical right shift; torch's own repeats the sign."""
    return (x >> places).bitwise_and_((1 << (bits - places)) - 1)
