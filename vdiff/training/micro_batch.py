"""How many pictures go through the network at once:
as many as the memory holds, in parts of about one size.
"""

from typing import NamedTuple

SAFE_SHARE = 0.7
"""Of the available memory; the rest is for what torch's kernels need, for gaps,
and for other programs.
"""


class Choice(NamedTuple):
    """A micro-batch, and the line that tells of it."""

    size: int
    told: str


def fitting(one: int, two: int, share: int, available: int) -> Choice:
    """The largest micro-batch that fits, no larger than it must be for so few parts.

    one, two: bytes that an update needs with one and with two pictures.
    share: pictures of an update.
    available: bytes.
    """
    each = max(two - one, 1)
    most = int((available * SAFE_SHARE - max(one - each, 0)) // each)
    parts = -(-share // min(max(most, 1), share))
    size = -(-share // parts)
    found = f"{each / 1e6:,.2f} MB each, {max(available, 0) / 1e6:,.0f} MB are free"
    return Choice(size, f"{size} of {share} pictures at once: {found}")
