"""Which faults a campaign has: the n-th fault of a seed is always the same,
however many are asked for.
"""

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import count, islice

SHARES = {
    "kill": 6,
    "signal": 4,
    "disk": 1,
    "damage": 3,
    "hostile": 1,
    "foreign": 2,
    "machine": 2,
    "diverged": 1,
}
"""Faults of each kind among twenty."""


@dataclass(frozen=True)
class Fault:
    """One fault; everything about it follows from the seed and its number."""

    seed: int
    number: int
    kind: str

    def rng(self) -> random.Random:
        """Its own random numbers, always the same."""
        return random.Random(f"fault {self.seed} {self.number}")


def draw(seed: int, number: int, kinds: Collection[str] = SHARES) -> list[Fault]:
    """The first `number` faults of these kinds."""
    return list(islice((fault for fault in _all(seed) if fault.kind in kinds), number))


def pick(seed: int, numbers: Collection[int]) -> list[Fault]:
    """The faults with these numbers."""
    return [fault for fault in islice(_all(seed), max(numbers) + 1) if fault.number in numbers]


def _all(seed: int) -> Iterator[Fault]:
    for block in count():
        kinds = [kind for kind, share in SHARES.items() for _ in range(share)]
        random.Random(f"block {seed} {block}").shuffle(kinds)
        yield from (
            Fault(seed, block * len(kinds) + place, kind) for place, kind in enumerate(kinds)
        )
