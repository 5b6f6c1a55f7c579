"""What a power cut may leave of a folder: what was flushed is there,
and of the rest anything may be.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

from tests.failing_disk import Call


class _File:
    def __init__(self, data: bytes = b"", is_flushed: bool = False) -> None:
        self.data, self.flushed = data, data if is_flushed else b""


class _Folder:
    """entries: as the process sees them.

    flushed: as they surely are on the disk.   changes: since then, in order.
    """

    def __init__(self, entries: "dict[str, _Folder | _File] | None" = None) -> None:
        self.entries = entries or {}
        self.flushed = dict(self.entries)
        self.changes: list[dict[str, _Folder | _File]] = []

    def change(self, entries: "dict[str, _Folder | _File]") -> None:
        self.entries = entries
        self.changes.append(entries)

    def flush(self) -> None:
        self.flushed, self.changes = dict(self.entries), []


class PowerCut:
    """Follows the calls that change `folder` (see `Disk`) and knows all that a power
    cut may leave of it now.

    The model: a file that was not flushed has its flushed content, nothing, or what was written;
    the changes of a folder that was not flushed came onto the disk in order, up to any of them.
    """

    def __init__(self, folder: Path) -> None:
        self._place = folder.resolve()
        self._root = _read(folder)

    def follow(self, call: Call) -> None:
        names = call.path.relative_to(self._place).parts
        if call.kind == "fsync":
            self._flush(names)
        elif call.kind != "chmod":
            self._change(call, self._folder(names[:-1]), names[-1])

    def leftovers(self, place: Path) -> Iterator[Path]:
        """Every state that may be found after the power is back,
        each in a folder of its own below `place`.
        """
        lengths = range(len(self._root.changes) + 1)
        for number, (length, is_inner, is_data) in enumerate(
            itertools.product(lengths, (False, True), (False, True))
        ):
            found = [self._root.flushed, *self._root.changes][length]
            folder = place / str(number)
            folder.mkdir(parents=True)
            for name, node in found.items():
                _write(node, folder / name, is_inner, is_data)
            yield folder

    def _folder(self, names: tuple[str, ...]) -> _Folder:
        node: _Folder | _File = self._root
        for name in names:
            assert isinstance(node, _Folder)
            node = node.entries[name]
        assert isinstance(node, _Folder)
        return node

    def _flush(self, names: tuple[str, ...]) -> None:
        node = self._folder(names[:-1]).entries[names[-1]] if names else self._root
        if isinstance(node, _Folder):
            node.flush()
        else:
            node.flushed = node.data

    def _change(self, call: Call, folder: _Folder, name: str) -> None:
        entries = dict(folder.entries)
        if call.kind == "rename":
            assert call.to is not None
            assert call.to.parent == call.path.parent, (
                "only renames within a folder are one step on every disk"
            )
            entries[call.to.name] = entries.pop(name)
        elif call.kind in ("unlink", "rmdir"):
            del entries[name]
        elif call.kind == "mkdir":
            entries[name] = _Folder()
        elif name not in entries:
            entries[name] = _File(call.path.read_bytes())
        else:
            node = entries[name]
            assert isinstance(node, _File)
            node.data = call.path.read_bytes()
            return
        folder.change(entries)


def _read(folder: Path) -> _Folder:
    entries = {
        path.name: _read(path) if path.is_dir() else _File(path.read_bytes(), True)
        for path in folder.iterdir()
    }
    return _Folder(entries)


def _write(node: _Folder | _File, path: Path, is_inner: bool, is_data: bool) -> None:
    """is_inner: whether changes in folders further in came onto the disk.

    is_data: whether contents did.
    """
    if isinstance(node, _File):
        path.write_bytes(node.data if is_data else node.flushed)
        return
    path.mkdir()
    for name, inner in (node.entries if is_inner else node.flushed).items():
        _write(inner, path / name, is_inner, is_data)
