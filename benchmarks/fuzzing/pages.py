"""Where things lie in an LMDB file (0.9, 64 bits), and ways to damage them.

Knows nothing of vdiff's own page check.
"""

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

PAGE = 4096
HEAD, NODE = 16, 8
BRANCH, LEAF, LONG = 1, 2, 4
NOWHERE = 2**64 - 1

Span = tuple[int, int]
"""First byte and the one behind the last."""

ODD_NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    15,
    16,
    17,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    2**31 - 1,
    2**32 - 1,
    2**63 - 1,
)


@dataclass(frozen=True)
class Map:
    """The spans of a file by what they hold; a part that the file lacks has none."""

    spans: dict[str, list[Span]]
    free_pages: list[int]
    """Pages of the tree that lists the free pages, and of its long values."""

    @property
    def parts(self) -> list[str]:
        """Names of the parts that are there."""
        return [name for name, spans in self.spans.items() if spans]

    def place(self, rng: random.Random, part: str) -> int:
        """A byte of the part: first a span, then a byte in it."""
        start, stop = rng.choice(self.spans[part])
        return rng.randrange(start, stop)

    def part_of(self, place: int) -> str:
        """What lies there, in a word."""
        for name, spans in self.spans.items():
            if any(start <= place < stop for start, stop in spans):
                return name
        return "unused, or a value"


def chart(data: bytes) -> Map:
    """Where the pages that are in use have their numbers and keys."""
    metas = [struct.unpack_from("<Q", data, page * PAGE + HEAD + 128)[0] for page in (0, 1)]
    newest = metas.index(max(metas))
    spans: dict[str, list[Span]] = {
        "newest meta page": [(newest * PAGE, newest * PAGE + HEAD + 136)],
        "older meta page": [((1 - newest) * PAGE, (1 - newest) * PAGE + HEAD + 136)],
        "page heads": [],
        "pointers": [],
        "node heads": [],
        "keys": [],
        "heads of long values": [],
        "free list": [],
    }
    free_root, main_root = (
        struct.unpack_from("<Q", data, newest * PAGE + at)[0] for at in (HEAD + 64, HEAD + 112)
    )
    for page in _pages(data, main_root):
        start = page * PAGE
        if not _is_tree(data, page):
            if struct.unpack_from("<Q2xH", data, start) == (
                page,
                LONG,
            ):  # else it goes on with a value
                spans["heads of long values"].append((start, start + HEAD))
            continue
        spans["page heads"].append((start, start + HEAD))
        lower = struct.unpack_from("<H", data, start + 12)[0]
        spans["pointers"].append((start + HEAD, start + lower))
        for node in _nodes(data, page):
            size = struct.unpack_from("<H", data, node + 6)[0]
            spans["node heads"].append((node, node + NODE))
            if size:
                spans["keys"].append((node + NODE, node + NODE + size))
    free_pages = list(_pages(data, free_root))
    spans["free list"] = [(page * PAGE, (page + 1) * PAGE) for page in free_pages]
    for page in free_pages:
        if _is_tree(data, page):
            spans["free list"] += [
                (node, min(node + 40, (page + 1) * PAGE)) for node in _nodes(data, page)
            ] * 3
            spans["free list"] += [(page * PAGE, page * PAGE + HEAD)] * 3
    return Map(spans, free_pages)


def _is_tree(data: bytes | bytearray, page: int) -> bool:
    return struct.unpack_from("<H", data, page * PAGE + 10)[0] in (BRANCH, LEAF)


def _nodes(data: bytes | bytearray, page: int) -> Iterator[int]:
    """Where in the file the nodes of a branch or leaf begin."""
    lower = struct.unpack_from("<H", data, page * PAGE + 12)[0]
    for at in range(HEAD, lower, 2):
        yield page * PAGE + struct.unpack_from("<H", data, page * PAGE + at)[0]


def _pages(data: bytes, root: int) -> Iterator[int]:
    """The pages of a whole tree, and of its long values."""
    if root == NOWHERE:
        return
    yield root
    is_leaf = struct.unpack_from("<H", data, root * PAGE + 10)[0] == LEAF
    for node in _nodes(data, root):
        low, high, flags, key = struct.unpack_from("<HHHH", data, node)
        if not is_leaf:
            yield from _pages(data, low | high << 16 | flags << 32)
        elif flags & 1:
            first = struct.unpack_from("<Q", data, node + NODE + key)[0]
            yield from range(first, first + (HEAD + (low | high << 16) + PAGE - 1) // PAGE)


Damage = Callable[[random.Random, bytearray, Map], str]
"""Changes the file's bytes; says how."""


def flip(rng: random.Random, data: bytearray, found: Map) -> str:
    """One bit, in a part of the file chosen first."""
    part = rng.choice([*found.parts, "anywhere"])
    place = rng.randrange(len(data)) if part == "anywhere" else found.place(rng, part)
    bit = rng.randrange(8)
    data[place] ^= 1 << bit
    return f"bit {bit} of byte {place:,} flipped ({part})"


def one_byte(rng: random.Random, data: bytearray, found: Map) -> str:
    """One byte replaced by any other."""
    part = rng.choice([*found.parts, "anywhere"])
    place = rng.randrange(len(data)) if part == "anywhere" else found.place(rng, part)
    data[place] = (data[place] + rng.randrange(1, 256)) % 256
    return f"byte {place:,} is now {data[place]} ({part})"


def number(rng: random.Random, data: bytearray, found: Map) -> str:
    """A field of 2, 4 or 8 bytes gets a number that is at the edge of something."""
    part = rng.choice([name for name in found.parts if name != "keys"])
    width = rng.choice([2, 4, 8])
    place = min(found.place(rng, part) // 2 * 2, len(data) - width)
    value = rng.choice(ODD_NUMBERS) if rng.random() < 0.7 else rng.randrange(2**16)
    value %= 2 ** (8 * width)
    data[place : place + width] = value.to_bytes(width, "little")
    return f"the {width} bytes from {place:,} are now {value:,} ({part})"


def several(rng: random.Random, data: bytearray, found: Map) -> str:
    """Two to eight bits in one part."""
    part = rng.choice(found.parts)
    places = [found.place(rng, part) for _ in range(rng.randrange(2, 9))]
    for place in places:
        data[place] ^= 1 << rng.randrange(8)
    return f"{len(places)} bits flipped ({part})"


def free_node(rng: random.Random, data: bytearray, found: Map) -> str:
    """A size, a count or a page number in the list of free pages is another one."""
    if not found.free_pages:
        return flip(rng, data, found)
    page = rng.choice(found.free_pages)
    places = [page * PAGE + 8 * rng.randrange(PAGE // 8)]
    if _is_tree(data, page):
        places = [node + at for node in _nodes(data, page) for at in (0, 2, 4, 6, 8, 16, 24, 32)]
    width = rng.choice([2, 8])
    place = min(rng.choice(places), (page + 1) * PAGE - width)
    last = len(data) // PAGE
    value = rng.choice(
        [rng.randrange(last), rng.choice(ODD_NUMBERS), last, last + 1, 2**20, 2**40]
    ) % 2 ** (8 * width)
    data[place : place + width] = value.to_bytes(width, "little")
    return f"the {width} bytes from {place:,} are now {value:,} (free list)"


def keys_changed(rng: random.Random, data: bytearray, found: Map) -> str:
    """A key is another's, or a neighbour of itself."""
    start, stop = rng.choice(found.spans["keys"])
    other, end = rng.choice(found.spans["keys"])
    if rng.random() < 0.5 and end - other == stop - start:
        data[start:stop] = data[other:end]
    else:
        data[stop - 1] = (data[stop - 1] + rng.choice([1, 255])) % 256
    return f"the key at {start:,} is now {bytes(data[start:stop])!r}"


def _two_pages(rng: random.Random, data: bytearray) -> tuple[int, int]:
    one, other = rng.sample(range(len(data) // PAGE), 2)
    return one * PAGE, other * PAGE


def zero_page(rng: random.Random, data: bytearray, found: Map) -> str:
    """A page, or the last part of one, was never written."""
    page = rng.randrange(len(data) // PAGE) * PAGE
    start = page + rng.choice([0, 0, 512, 2048])
    data[start : page + PAGE] = bytes(page + PAGE - start)
    return f"zeros from {start:,} to the end of page {page // PAGE}"


def swap_pages(rng: random.Random, data: bytearray, found: Map) -> str:
    """Two pages have changed places."""
    one, other = _two_pages(rng, data)
    data[one : one + PAGE], data[other : other + PAGE] = (
        data[other : other + PAGE],
        data[one : one + PAGE],
    )
    return f"pages {one // PAGE} and {other // PAGE} swapped"


def copy_page(rng: random.Random, data: bytearray, found: Map) -> str:
    """A page lies where another one belongs."""
    one, other = _two_pages(rng, data)
    data[one : one + PAGE] = data[other : other + PAGE]
    return f"page {one // PAGE} is page {other // PAGE}"


def cut(rng: random.Random, data: bytearray, found: Map) -> str:
    """The end is missing."""
    length = rng.choice([rng.randrange(len(data)), rng.randrange(len(data) // PAGE) * PAGE])
    del data[length:]
    return f"cut to {length:,} bytes"


def longer(rng: random.Random, data: bytearray, found: Map) -> str:
    """There is more at the end."""
    more = rng.choice([1, PAGE, 3 * PAGE + 7])
    data += rng.choice([bytes(more), rng.randbytes(more)])
    return f"{more:,} bytes more"


DAMAGES: dict[Damage, int] = {
    flip: 10,
    one_byte: 4,
    number: 6,
    several: 2,
    free_node: 5,
    keys_changed: 2,
    zero_page: 1,
    swap_pages: 1,
    copy_page: 2,
    cut: 1,
    longer: 1,
}
"""How to damage a file, and how often against the others."""


def spoil(rng: random.Random, data: bytearray, found: Map) -> str:
    """Damage the file in one of these ways until it is another one; says how."""
    before = bytes(data)
    while True:
        [damage] = rng.choices(list(DAMAGES), list(DAMAGES.values()))
        how = damage(rng, data, found)
        if data != before:
            return how
