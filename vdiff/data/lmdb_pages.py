"""What an LMDB file says of its own pages, read without LMDB: is it whole, and can LMDB walk it without harm?

LMDB maps the file and trusts it. A page beyond the end is a SIGBUS, a page of the wrong kind an abort; neither can be
caught. So the meta pages and every branch and leaf page are checked first. Values are not: they have checksums.
Layout: MDB_meta, MDB_db, MDB_page and MDB_node of LMDB 0.9 (data format 1) on 64-bit little-endian machines.
"""

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_MAGIC, _FORMAT = 0xBEEFC0DE, 1
_HEADER = 16
_NODE = 8
_BRANCH, _LEAF, _BIG = 0x01, 0x02, 0x01
_NO_PAGE = 2**64 - 1
_META = struct.Struct("<II16xI48xHH32xQQQ")


class Meta(NamedTuple):
    """A meta page: where the tree of the main database starts, and how far the file goes."""

    magic: int
    data_format: int
    page_size: int
    database_flags: int
    depth: int
    root: int
    last_page: int
    transaction: int


def check(file: Path) -> None:
    """Raise ValueError with the reason if LMDB cannot read `file` safely, to its end."""
    with _mapped(file) as pages:
        meta = _newest_meta(pages)
        whole = (meta.last_page + 1) * meta.page_size
        if whole > len(pages):
            raise ValueError(f"the file is cut off: {len(pages):,} of {whole:,} bytes are there")
        _check_tree(pages, meta)


def whole_size(file: Path) -> int:
    """The size in bytes that the newest meta page gives the file."""
    with _mapped(file) as pages:
        meta = _newest_meta(pages)
        return (meta.last_page + 1) * meta.page_size


@contextmanager
def _mapped(file: Path) -> Iterator[mmap.mmap]:
    with file.open("rb") as opened:
        if not file.stat().st_size:
            raise ValueError("the file is empty")
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as pages:
            yield pages


def _newest_meta(pages: mmap.mmap) -> Meta:
    page_size = struct.unpack_from("<I", pages, _HEADER + 24)[0] if len(pages) > 512 else 0
    if page_size not in (2**power for power in range(9, 17)) or len(pages) < 2 * page_size:
        raise ValueError("the file is cut off, or it is not LMDB's")
    metas = [Meta._make(_META.unpack_from(pages, start + _HEADER)) for start in (0, page_size)]
    if any((meta.magic, meta.data_format) != (_MAGIC, _FORMAT) for meta in metas):
        raise ValueError("the head of the file is damaged, or it is not LMDB's")
    if any(meta.database_flags for meta in metas):  # other orders of keys: LMDB would look for one for ever
        raise ValueError("the head of the file is damaged, or its keys are not in order of their bytes")
    # The page size counts in the first meta page only.
    return max(metas, key=lambda meta: meta.transaction)._replace(page_size=page_size)


def _check_tree(pages: mmap.mmap, meta: Meta) -> None:
    """Walk level by level from the root: branches above, leaves at the bottom, no more pages than there are."""
    level = [] if meta.root == _NO_PAGE else [meta.root]
    seen = 0
    for depth in range(1, meta.depth + 1):
        seen += len(level)
        if seen > meta.last_page:
            raise ValueError("its pages refer to each other in circles")
        level = [child for number in level for child in _children(pages, number, depth == meta.depth, meta)]


def _children(pages: mmap.mmap, number: int, is_leaf: bool, meta: Meta) -> list[int]:
    """The pages below a branch, none below a leaf; ValueError if the page, or a value of it, is not where it says."""
    if not 2 <= number <= meta.last_page:
        raise ValueError(f"it refers to page {number:,}, which does not exist")
    page = np.frombuffer(pages[number * meta.page_size : (number + 1) * meta.page_size], np.uint8)
    nodes = _nodes(page, is_leaf)
    if nodes is None:
        raise ValueError(f"page {number:,} is damaged")
    heads = page.view("<u2").astype(np.int64)[nodes[:, None] // 2 + np.arange(_NODE // 2)]
    values = nodes + _NODE + heads[:, 3]
    if is_leaf and not _values_are_inside(page, heads, values, meta):
        raise ValueError(f"page {number:,} is damaged: a value lies outside")
    if values.max(initial=0) > meta.page_size:
        raise ValueError(f"page {number:,} is damaged: a key lies outside")
    children: list[int] = [] if is_leaf else (heads[:, :3] << [0, 16, 32]).sum(1).tolist()
    return children


def _nodes(page: npt.NDArray[np.uint8], is_leaf: bool) -> npt.NDArray[np.int64] | None:
    """Where in the page its nodes begin; None if that cannot be."""
    flags, lower, upper = page[10:16].view("<u2").tolist()
    least = _HEADER + (2 if is_leaf else 4)
    if flags != (_LEAF if is_leaf else _BRANCH) or lower % 2 or not least <= lower <= upper <= len(page):
        return None
    nodes = page[_HEADER:lower].view("<u2").astype(np.int64)
    is_sound = nodes.min() >= upper and nodes.max() <= len(page) - _NODE and not (nodes % 2).any()
    return nodes if is_sound else None


def _values_are_inside(
    page: npt.NDArray[np.uint8], heads: npt.NDArray[np.int64], values: npt.NDArray[np.int64], meta: Meta
) -> bool:
    """Whether small values end inside the page, and big ones, which have pages of their own, inside the file."""
    sizes, flags = heads[:, 0] | heads[:, 1] << 16, heads[:, 2]
    is_big = flags == _BIG
    if (flags & ~_BIG).any() or (values + np.where(is_big, 8, sizes) > len(page)).any():
        return False
    first = page[values[is_big][:, None] + np.arange(8)].view("<u8").ravel()
    num_pages = (_HEADER + sizes[is_big] + len(page) - 1) // len(page)
    last = meta.last_page + 1 - num_pages
    return bool(((first >= 2) & (first <= last.clip(0).astype(np.uint64))).all())
