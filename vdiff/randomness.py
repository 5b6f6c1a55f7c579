"""Random numbers as a function of (seed, stage, update, place in the batch),
or of an image's own seed.
"""

import hashlib
from math import pi

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_NO_PLACE = _WORD
"""The place that stands for the batch as a whole."""


LACK_64_BITS = ("mps",)
"""Kinds of devices without float64 (Metal has none), on which 64-bit whole numbers are
not relied upon either.
"""


def exact(device: torch.device | str) -> torch.device:
    """Where random numbers, times and schedules are computed for a device:
    there, or on the CPU where it cannot.

    They are a few numbers per image, and the noise. What goes to the device is cast to float32
    first.
    """
    found = torch.device(device)
    return torch.device("cpu") if found.type in LACK_64_BITS else found


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four 32-bit random words per counter; a counter-based generator needs no state and no order.

    counter: four int64 tensors that broadcast, each in [0, 2^32).   key: 64 bits.
    Returns the same, scrambled.
    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (10 rounds).
    """
    a, b, c, d = counter
    key_a, key_b = key & _WORD, key >> 32
    for _ in range(10):
        low, high = (
            a * _MULTIPLIERS[0],
            c * _MULTIPLIERS[1],
        )  # wraps at 64 bits: both halves stay right
        a, b = (high >> 32 & _WORD) ^ b ^ key_a, high & _WORD
        c, d = (low >> 32 & _WORD) ^ d ^ key_b, low & _WORD
        key_a, key_b = (key_a + _KEY_STEPS[0]) & _WORD, (key_b + _KEY_STEPS[1]) & _WORD
    return a, b, c, d


_Words = npt.NDArray[np.uint64]

_MOST_SMALL = 1 << 13
"""Blocks of a batch up to which numpy is quicker than torch, on one thread."""


def _small_philox(
    block: _Words, draw: int, low: _Words, high: _Words, key: int
) -> tuple[_Words, _Words]:
    """`philox` of the counter (block, draw, low, high) for small arrays on the CPU.

    block: [1, n].   low, high: [B, 1].
    Returns its words (0, 2) and (1, 3), each [2, B, n].
    """
    shape = 2, len(low), block.shape[1]
    # the halves (a, c) and (b, d) of the counter; a round does the same to both
    upper = np.empty(shape, np.uint64)
    upper[0] = block
    upper[1] = low
    lower = np.empty(shape, np.uint64)
    lower[0] = draw
    lower[1] = high
    keys = np.empty((2, 1, 1), np.uint64)
    key_a, key_b = key & _WORD, key >> 32
    for _ in range(10):
        product = upper * _NUMPY_MULTIPLIERS
        keys[0] = key_a
        keys[1] = key_b
        upper = (product >> _HALF)[::-1] ^ lower ^ keys
        lower = (product & _LOW_HALF)[::-1]
        key_a, key_b = (key_a + _KEY_STEPS[0]) & _WORD, (key_b + _KEY_STEPS[1]) & _WORD
    return upper, lower


_NUMPY_MULTIPLIERS = np.array(_MULTIPLIERS, np.uint64)[:, None, None]
_HALF = np.uint64(32)
_LOW_HALF = np.uint64(_WORD)


class Randomness:
    """The random numbers of a batch; image i's numbers depend on its own place or seed and on
    nothing beside it.

    Every call draws anew: the n-th call gives the same numbers whatever the batch is split into,
    and on any device.
    """

    def __init__(self, key: int, low: Tensor, high: Tensor, num_places: int) -> None:
        self._key = key
        self._low, self._high = low[:, None], high[:, None]
        self._num_places = num_places
        self._draw = 0

    @classmethod
    def for_update(
        cls,
        seed: int,
        stage: int,
        update: int,
        places: Tensor,
        num_places: int,
        purpose: str = "update",
    ) -> "Randomness":
        """Numbers of one update of training. places:
        int64 [B], positions in the global batch of `num_places`.

        purpose: numbers for another one have nothing to do with these.
        """
        return cls(_key(purpose, seed, stage), places, torch.full_like(places, update), num_places)

    @classmethod
    def for_images(cls, seeds: Tensor) -> "Randomness":
        """Numbers of pictures to be sampled. seeds:
        int64 [B], one per picture, 0 <= seed < 2^63.
        """
        return cls(_key("image"), seeds & _WORD, seeds >> 32, len(seeds))

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, float32 [B, *shape]."""
        count = torch.Size(shape).numel()
        blocks = -(-count // 4)
        if self._low.device.type == "cpu" and blocks * len(self._low) <= _MOST_SMALL:
            radius, angle = self._small_polar(blocks)
        else:
            words = self._words(blocks)
            radius = [
                torch.sqrt(-2 * torch.log((word.float() + 0.5) / 2**32)) for word in words[::2]
            ]
            angle = [word.float() * (2 * pi / 2**32) for word in words[1::2]]
        pairs = [
            part
            for r, a in zip(radius, angle, strict=True)
            for part in (r * torch.cos(a), r * torch.sin(a))
        ]
        return torch.stack(pairs, -1).flatten(1)[:, :count].reshape(-1, *shape)

    def _small_polar(self, blocks: int) -> tuple[list[Tensor], list[Tensor]]:
        """Radius and angle of a few normal numbers: the same bits as torch's, sooner.

        numpy starts an operation on a small array in a fraction of torch's time. Whole numbers,
        sums and products are the same everywhere; roots and logarithms are not, and stay torch's.
        """
        upper, lower = _small_philox(
            np.arange(blocks, dtype=np.uint64)[None],
            self._draw,
            self._low.numpy().astype(np.uint64),
            self._high.numpy().astype(np.uint64),
            self._key,
        )
        self._draw += 1
        share = (upper.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32)
        turn = lower.astype(np.float32) * np.float32(2 * pi / 2**32)
        radius = [torch.sqrt(-2 * torch.log(torch.from_numpy(part))) for part in share]
        return radius, [torch.from_numpy(part) for part in turn]

    def uniform(self) -> Tensor:
        """One number in [0, 1) per image, float64 [B]."""
        return _unit(*self._words(1)[:2])[:, 0]

    def stratified(self) -> Tensor:
        """Numbers in [0, 1), float64 [B], spread evenly over the global batch: (u + place /
        num_places) mod 1.

        One u serves the batch: each number is uniform by itself, and together they vary less.
        Source: Kingma et al. 2021, "Variational diffusion models", the low-variance sampler of t.
        """
        words = philox(
            self._counter(1, torch.full_like(self._low[:1], _NO_PLACE), self._high[:1]), self._key
        )
        self._draw += 1
        return (_unit(*words[:2])[0, 0] + self._low[:, 0].double() / self._num_places) % 1

    def keys(self) -> Tensor:
        """One 62-bit key per image, int64 [B], for whoever derives random
        numbers of its own (dropout).
        """
        high, low = self._words(1)[:2]
        return ((high >> 1 << 31) | (low >> 1))[:, 0]

    def _words(self, blocks: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        words = philox(self._counter(blocks, self._low, self._high), self._key)
        self._draw += 1
        return words

    def _counter(
        self, blocks: int, low: Tensor, high: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        block = torch.arange(blocks, device=low.device)[None]
        return block, torch.full_like(block, self._draw), low, high


def _key(*names: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(names).encode()).digest()[:8], "little")


def _unit(high: Tensor, low: Tensor) -> Tensor:
    return ((high << 21) | (low >> 11)).double() / 2**53
