"""What an LMDB file says of its own pages, read without LMDB:
is it whole, and can LMDB use it without harm?

LMDB maps the file and trusts it. A page beyond the end is a SIGBUS, a page of the wrong kind an
abort, keys that are not in order a search without end; nothing of that can be caught. So every
branch and leaf page is checked before a file is read, and everything else too before one is written
to. Values are not: they have checksums.
Layout: MDB_meta, MDB_db, MDB_page and MDB_node of LMDB 0.9 (data format 1) on 64-bit little-endian
machines.
"""

import operator
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lmdb.verify import VerifyError, verify

from vdiff.disk.os_files import read_at

_MAGIC = 0xBEEFC0DE
_FORMAT = 1
_HEADER = 16
"""Bytes at the beginning of every page."""

_BRANCH = 0x01
_LEAF = 0x02
_BIG = 0x01
"""The first two are kinds of pages; this one marks a node whose value has pages of its own."""

_NO_PAGE = 2**64 - 1
"""The first page of a database that holds nothing."""

_INTEGER_KEYS = 0x08
_MOST_LEVELS = 32
_META = struct.Struct("<II8x8x48s48sQQ")
_TREE = struct.Struct("<IHHQQQQQ")
_PAGE = struct.Struct("<QHHHH")
_NODE = struct.Struct("<HHHH")
_PLACE = struct.Struct("<Q")

_Read = Callable[[int, int], bytes]
"""So many bytes from a place in the file."""


class Tree(NamedTuple):
    """A database: its counts and its first page.

    `pad` of the list of free pages is the size of a page.
    """

    pad: int
    flags: int
    depth: int
    branch_pages: int
    leaf_pages: int
    long_pages: int
    entries: int
    root: int


class Meta(NamedTuple):
    """A meta page: the list of free pages, the main database, and how far the file goes."""

    magic: int
    data_format: int
    free: Tree
    main: Tree
    last_page: int
    transaction: int
    page_size: int


def check(file: Path) -> int:
    """Raise ValueError with the reason if LMDB cannot read `file` safely to its end,
    or would not find all its records.

    Returns the CRC-32 of all that was checked, in the order of the keys: both meta pages, every
    branch and leaf page.
    """
    with _opened(file) as (read, num_bytes):
        meta = _newest_meta(read, num_bytes)
        _check_length(meta, num_bytes)
        crc = zlib.crc32(read(0, 2 * meta.page_size))
        return _Walk(read, meta, meta.main).check(crc)


def check_for_writing(file: Path) -> None:
    """Raise ValueError with the reason if LMDB cannot write to `file` safely.

    A writer also trusts the list of free pages, the heads of long values, every count, and that the
    nodes fill a page to its end. lmdb's own verifier knows all but the last, and takes as much
    memory as a damaged list says: so that and the size of the list are looked at first.
    """
    with _opened(file) as (read, num_bytes):
        meta = _newest_meta(read, num_bytes)
        _check_length(meta, num_bytes)
        if meta.free.flags != _INTEGER_KEYS:
            raise ValueError("the head of the file is damaged")
        _Walk(read, meta, meta.main, writing=True).check(0)
        # its keys are numbers, lowest byte first
        walk = _Walk(read, meta, meta.free, order=lambda key: key[::-1], writing=True)
        walk.check(0)
        if walk.value_bytes > _PLACE.size * (meta.last_page + walk.entries):
            raise ValueError(
                "its list of free pages is damaged: it is longer than the file has pages"
            )
    try:
        problems = verify(str(file), subdir=False)
    except VerifyError as err:
        raise ValueError(str(err)) from err
    if problems:
        raise ValueError(problems[0])


def whole_size(file: Path) -> int:
    """The size in bytes that the newest meta page gives the file."""
    with _opened(file) as (read, num_bytes):
        meta = _newest_meta(read, num_bytes)
        return (meta.last_page + 1) * meta.page_size


@contextmanager
def _opened(file: Path) -> Iterator[tuple[_Read, int]]:
    """A way to read the file, and its size.

    Not mapped: one that is cut off meanwhile must not end the process.
    """
    with file.open("rb", buffering=0) as opened:
        num_bytes = os.fstat(opened.fileno()).st_size
        if not num_bytes:
            raise ValueError("the file is empty")
        yield lambda start, count: read_at(opened.fileno(), count, start), num_bytes


def _newest_meta(read: _Read, num_bytes: int) -> Meta:
    head = read(0, 512)
    page_size = int.from_bytes(head[_HEADER + 24 : _HEADER + 28], "little")
    if page_size not in (2**power for power in range(9, 17)) or num_bytes < 2 * page_size:
        raise ValueError("the file is cut off, or it is not LMDB's")
    metas = [_meta(read(start + _HEADER, _META.size), page_size) for start in (0, page_size)]
    if any((meta.magic, meta.data_format) != (_MAGIC, _FORMAT) for meta in metas):
        raise ValueError("the head of the file is damaged, or it is not LMDB's")
    # with another order of its keys, LMDB would look for one for ever
    if any(meta.main.flags for meta in metas):
        raise ValueError(
            "the head of the file is damaged, or its keys are not in order of their bytes"
        )
    return max(metas, key=lambda meta: meta.transaction)


def _meta(data: bytes, page_size: int) -> Meta:
    """page_size: that of the first meta page counts."""
    if len(data) < _META.size:
        raise ValueError("the file is cut off")
    magic, data_format, free, main, last_page, transaction = _META.unpack(data)
    free_tree, main_tree = Tree._make(_TREE.unpack(free)), Tree._make(_TREE.unpack(main))
    return Meta(magic, data_format, free_tree, main_tree, last_page, transaction, page_size)


def _check_length(meta: Meta, num_bytes: int) -> None:
    whole = (meta.last_page + 1) * meta.page_size
    if whole > num_bytes:
        raise ValueError(f"the file is cut off: {num_bytes:,} of {whole:,} bytes are there")


class _Walk:
    """One way through a tree, in the order of its keys. No page can come twice: its keys would not
    be in order.

    order: turns a key into bytes that sort as LMDB sorts the keys.
    writing: look for what only a writer trusts, too.
    """

    def __init__(
        self,
        read: _Read,
        meta: Meta,
        tree: Tree,
        order: Callable[[bytes], bytes] = bytes,
        writing: bool = False,
    ) -> None:
        self._read = read
        self._meta = meta
        self._tree = tree
        self._order = order
        self._writing = writing
        self._crc = 0
        self._greatest = b""
        self._may_equal = True  # the first key below a node of a branch may be that node's own
        self.entries = 0
        self.value_bytes = 0

    def check(self, crc: int) -> int:
        """Visit every page.

        ValueError with the reason if one is damaged.   Returns `crc`, gone on with over them.
        """
        self._crc = crc
        if self._tree.root != _NO_PAGE:
            if not 1 <= self._tree.depth <= _MOST_LEVELS:
                raise ValueError(
                    f"the head of the file is damaged: it says {self._tree.depth:,} levels of pages"
                )
            self._visit(self._tree.root, self._tree.depth)
        if self.entries != self._tree.entries:
            raise ValueError(
                f"it says {self._tree.entries:,} records, but its pages hold {self.entries:,}"
            )
        return self._crc

    def _visit(self, number: int, levels: int) -> None:
        """Check page `number` and all below it; `levels`:
        how many there must be, its own included.
        """
        if not 2 <= number <= self._meta.last_page:
            raise ValueError(f"it refers to page {number:,}, which does not exist")
        page = self._read(number * self._meta.page_size, self._meta.page_size)
        if len(page) < self._meta.page_size:
            raise ValueError("the file is cut off")
        self._crc = zlib.crc32(page, self._crc)
        if levels == 1:
            if self._writing:
                _check_packed(page, number, _LEAF)
            self._take_leaf(page, number)
        else:
            if self._writing:
                _check_packed(page, number, _BRANCH)
            self._take_branch(page, number, levels)

    def _take_leaf(self, page: bytes, number: int) -> None:
        keys = []
        length = len(page)
        for place in _nodes(page, number, _LEAF):
            low, high, flags, key_size = _NODE.unpack_from(page, place)
            value = place + _NODE.size + key_size
            size = low | high << 16
            if flags == _BIG and value + _PLACE.size <= length:  # it has pages of its own
                (first,) = _PLACE.unpack_from(page, value)
                num_pages = (_HEADER + size + length - 1) // length
                is_inside = 2 <= first <= self._meta.last_page + 1 - num_pages
            else:
                is_inside = not flags and value + size <= length
            if not is_inside:
                raise ValueError(f"page {number:,} is damaged: a key or a value lies outside")
            keys.append(page[place + _NODE.size : value])
            self.value_bytes += size
        self._take_keys(keys, number)
        self.entries += len(keys)

    def _take_branch(self, page: bytes, number: int, levels: int) -> None:
        for position, place in enumerate(_nodes(page, number, _BRANCH)):
            low, high, highest, key_size = _NODE.unpack_from(page, place)
            start = place + _NODE.size
            if start + key_size > len(page):
                raise ValueError(f"page {number:,} is damaged: a key lies outside")
            # the first node leads to all that is less than the second one's key, whatever its own
            # is
            if position:
                self._take_keys([page[start : start + key_size]], number)
                self._may_equal = True
            self._visit(low | high << 16 | highest << 32, levels - 1)

    def _take_keys(self, keys: list[bytes], number: int) -> None:
        keys = [self._greatest, *map(self._order, keys)]
        is_sorted = all(map(operator.lt, keys[self._may_equal :], keys[1 + self._may_equal :]))
        if not is_sorted or (self._may_equal and keys[0] > keys[1]):
            raise ValueError(f"page {number:,} is damaged: its keys are not in order")
        self._greatest = keys[-1]
        self._may_equal = False


def _nodes(page: bytes, number: int, kind: int) -> tuple[int, ...]:
    """Where in the page its nodes begin, in the order of their keys."""
    own_number, _, flags, lower, upper = _PAGE.unpack_from(page)
    least = _HEADER + (2 if kind == _LEAF else 4)
    if (
        (own_number, flags) != (number, kind)
        or lower % 2
        or not least <= lower <= upper <= len(page)
    ):
        raise ValueError(f"page {number:,} is damaged")
    nodes: tuple[int, ...] = struct.unpack_from(f"<{(lower - _HEADER) // 2}H", page, _HEADER)
    if min(nodes) < upper or max(nodes) > len(page) - _NODE.size or any(map((1).__and__, nodes)):
        raise ValueError(f"page {number:,} is damaged")
    return nodes


def _check_packed(page: bytes, number: int, kind: int) -> None:
    """ValueError unless the nodes lie one after the other from the end of the free space
    to the end of the page.
    """
    end = _PAGE.unpack_from(page)[4]
    for place in sorted(_nodes(page, number, kind)):
        low, high, flags, key_size = _NODE.unpack_from(page, place)
        if place != end:
            break
        end += _NODE.size + key_size
        if kind == _LEAF:
            end += _PLACE.size if flags == _BIG else low | high << 16
        end += end % 2
    if end != len(page):
        raise ValueError(f"page {number:,} is damaged: there is space between its nodes, or none")
