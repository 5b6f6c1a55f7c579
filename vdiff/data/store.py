"""ImageStore: one LMDB of encoded pictures in one or more sizes, and what it says about itself.

Keys `256-00000`, ... and `length`, as diffusion_distiller and rosinality write them, and one record of metadata under
`vdiff`. Stores without that record are read as they are.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import lmdb
import numpy as np
import numpy.typing as npt

from vdiff.data import lmdb_pages
from vdiff.data.metadata import Metadata, NewerFormatError
from vdiff.errors import DataError, MachineError

FILE = "data.mdb"
METADATA, LENGTH = "vdiff", "length"
_KEY = re.compile(rb"([1-9]\d{0,5})-\d{5,}")
_FIRST_MAP = 64 * 2**20
_SHOWN = ("format", "made_by", "channels", "encoding", "quality", "resampling", "source")

# LMDB allows one environment per file and process.
_stores: dict[tuple[int, int], "_Opened"] = {}


class ImageStore:
    """An image store opened for reading. It can be pickled and used after a fork: each process opens the file itself.

    DataError if there is none, if it is damaged or if it does not hold what it says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: _Opened | None = None
        if not is_store(path):
            raise DataError(f"there is no image store in `{path}`", "make it: vdiff prepare", path)
        _check_pages(path)
        with self._reading() as transaction:
            self.metadata = self._read_metadata(transaction)
            self.num_images = self._read_length(transaction)
            self.sizes = self._find_sizes(transaction)
            self._check_keys(transaction)

    @property
    def labels(self) -> npt.NDArray[np.int64] | None:
        """The class of each picture, or None."""
        labels = self.metadata.labels if self.metadata else None
        return None if labels is None else np.array(labels, dtype=np.int64)

    @property
    def class_names(self) -> list[str]:
        """The name of each class; empty where there are none."""
        return list(self.metadata.class_names or []) if self.metadata else []

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the whole content: all sizes, and the labels."""
        return self.fingerprint_of(*self.sizes)

    def fingerprint_of(self, *sizes: int) -> str:
        """SHA-256 of the pictures of these sizes, by their checksums, and of the labels."""
        labels = self.metadata.labels if self.metadata else None
        channels = self.metadata.channels if self.metadata else None
        content = [self.num_images, channels, [[size, self._crcs(size)] for size in sizes], labels]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def read(self, index: int, size: int) -> bytes:
        """The encoded picture; DataError if it is not there or is not what was written."""
        key = image_key(size, index)
        with self._reading() as transaction:
            data = transaction.get(key.encode())
        if data is None:
            raise _damaged(self.path, f"record `{key}` is missing")
        if self.metadata and f"{zlib.crc32(data):08x}" != self.metadata.crcs[size][8 * index : 8 * index + 8]:
            raise _damaged(self.path, f"record `{key}` is not what was written (its checksum differs)")
        return bytes(data)

    def summary(self) -> dict[str, Any]:
        """What `vdiff inspect` shows, ready for JSON. Foreign stores have None where they say nothing."""
        said = self.metadata.model_dump(include=set(_SHOWN)) if self.metadata else dict.fromkeys(_SHOWN)
        return {
            "path": str(self.path),
            "kind": "vdiff" if self.metadata else "diffusion_distiller",
            "num_images": self.num_images,
            "sizes": list(self.sizes),
            "num_classes": len(self.class_names),
            "class_names": self.class_names,
            "bytes": (self.path / FILE).stat().st_size,
            "fingerprint": self.fingerprint,
            **said,
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Any]:
        try:
            if self._opened is None or not self._opened.is_usable():
                self._opened = _open(self.path)
            if self._opened.is_cut_off(self.path):
                raise _damaged(self.path, "the file was cut off while it was in use")
            with self._opened.environment.begin() as transaction:
                yield transaction
        except lmdb.MemoryError:
            raise  # the machine's trouble: the store is whole
        except (lmdb.Error, OSError, ValueError) as err:
            raise _damaged(self.path, str(err)) from err

    def _read_metadata(self, transaction: Any) -> Metadata | None:
        if (text := transaction.get(METADATA.encode())) is None:
            return None
        try:
            return Metadata.from_json(text)
        except NewerFormatError as err:
            raise DataError(str(err), "install a newer vdiff, or prepare the pictures again", self.path) from err
        except ValueError as err:
            raise _damaged(self.path, f"record `{METADATA}`: {err}") from err

    def _read_length(self, transaction: Any) -> int:
        text = transaction.get(LENGTH.encode())
        if text is None or not re.fullmatch(rb"[1-9]\d{0,9}", text):
            raise _damaged(self.path, f"record `{LENGTH}` is missing or is not a number of pictures")
        if self.metadata and self.metadata.count != int(text):
            raise _damaged(self.path, f"record `{LENGTH}` contradicts record `{METADATA}`")
        return int(text)

    def _find_sizes(self, transaction: Any) -> tuple[int, ...]:
        if self.metadata:
            return tuple(self.metadata.sizes)
        sizes, cursor = [], transaction.cursor()
        found = cursor.first()
        while found and (key := _KEY.fullmatch(cursor.key())):
            sizes.append(int(key[1]))
            found = cursor.set_range(key[1] + b".")  # "." follows "-": the first key of the next size
        return tuple(sorted(sizes))

    def _check_keys(self, transaction: Any) -> None:
        if not self.sizes:
            raise _damaged(self.path, "it holds no pictures under keys like `256-00000`")
        last = [image_key(size, index) for size in self.sizes for index in (0, self.num_images - 1)]
        missing = [key for key in last if transaction.get(key.encode()) is None]
        if missing:
            problem = f"it says {self.num_images:,} pictures, but record `{missing[0]}` is missing"
            raise _damaged(self.path, problem)
        others = 2 if self.metadata else 1
        if transaction.stat()["entries"] < self.num_images * len(self.sizes) + others:
            raise _damaged(self.path, f"it says {self.num_images:,} pictures, but some are missing")

    def _crcs(self, size: int) -> str:
        """The CRC-32 of each picture, eight hexadecimal digits each; a foreign store is read through once for it."""
        if self.metadata:
            return self.metadata.crcs[size]
        return "".join(f"{zlib.crc32(self.read(index, size)):08x}" for index in range(self.num_images))


class StoreWriter:
    """A store being written, by one process. What was committed survives a kill and a loss of power.

    expected_bytes: how much it will need, for the message when the disk is full.
    DataError if the folder holds a damaged file, MachineError if the disk refuses.
    """

    def __init__(self, path: Path, expected_bytes: int = 0) -> None:
        self.path = path
        self._expected_bytes = expected_bytes
        size = (path / FILE).stat().st_size if is_store(path) else 0
        if size:
            _check_pages(path)
            _forget(path)
        with self._guarded():
            self._environment = lmdb.open(str(path), map_size=max(_FIRST_MAP, 2 * size), lock=False)

    def commit(self, records: Mapping[str, bytes | None]) -> None:
        """Write all records, or none of them; None deletes one."""
        while not self._try_commit(records):
            self._environment.set_mapsize(2 * self._environment.info()["map_size"])

    def get(self, key: str) -> bytes | None:
        """The record under `key`, or None."""
        with self._guarded(), self._environment.begin() as transaction:
            found: bytes | None = transaction.get(key.encode())
        return found

    def records(self, prefix: str) -> dict[str, bytes]:
        """All records whose keys begin with `prefix`, in the order of their keys."""
        with self._guarded(), self._environment.begin() as transaction, transaction.cursor() as cursor:
            cursor.set_range(prefix.encode())
            found = itertools.takewhile(lambda item: item[0].startswith(prefix.encode()), cursor)
            return {key.decode(): value for key, value in found}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file, which is then whole."""
        self._environment.close()
        file = self.path / FILE
        # LMDB does not write pages at the end that were freed again at once: the file would look cut off.
        if file.stat().st_size < (whole := lmdb_pages.whole_size(file)):
            os.truncate(file, whole)

    def _try_commit(self, records: Mapping[str, bytes | None]) -> bool:
        try:
            with self._guarded(), self._environment.begin(write=True) as transaction:
                for key, data in sorted(records.items()):
                    if data is None:
                        transaction.delete(key.encode())
                    else:
                        transaction.put(key.encode(), data)
        except lmdb.MapFullError:
            return False
        return True

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except lmdb.MapFullError:
            raise
        except lmdb.Error as err:
            free = shutil.disk_usage(self.path).free
            space = f"it needs about {self._expected_bytes:,} bytes, {free:,} are free"
            problem = f"cannot write the image store: {err}; {space}"
            raise MachineError(problem, "free some space, or choose another place with --out", self.path) from err


def is_store(path: Path) -> bool:
    """Whether the folder holds an LMDB file."""
    return (path / FILE).is_file()


def image_key(size: int, index: int) -> str:
    """The key of a picture: `256-00000` and so on."""
    return f"{size}-{index:05d}"


def _check_pages(path: Path) -> None:
    try:
        lmdb_pages.check(path / FILE)
    except ValueError as err:
        raise _damaged(path, str(err)) from err
    except OSError as err:
        raise DataError(f"the image store cannot be read: {err.strerror}", "check its permissions", path) from err


class _Opened(NamedTuple):
    """A file that `process` has mapped, by device and inode; `size`: how far it must go."""

    process: int
    environment: Any
    identity: tuple[int, int]
    size: int

    def is_usable(self) -> bool:
        return self.process == os.getpid() and _stores.get(self.identity) is self

    def is_cut_off(self, path: Path) -> bool:
        """Whether reading would end the process. A file that was deleted or replaced stays as it is in the map."""
        with contextlib.suppress(FileNotFoundError):
            return _identity(path) == self.identity and (path / FILE).stat().st_size < self.size
        return False


def _open(path: Path) -> _Opened:
    if not (found := _stores.get(_identity(path))) or not found.is_usable():
        _forget(path)
        identity, size = _identity(path), lmdb_pages.whole_size(path / FILE)
        environment = lmdb.open(str(path), readonly=True, lock=False, create=False)
        found = _stores[identity] = _Opened(os.getpid(), environment, identity, size)
    return found


def _forget(path: Path) -> None:
    """Close what this process, or the one that it was forked from, has open of the store."""
    if found := _stores.pop(_identity(path), None):
        found.environment.close()


def _identity(path: Path) -> tuple[int, int]:
    status = (path / FILE).stat()
    return status.st_dev, status.st_ino


def _damaged(path: Path, problem: str) -> DataError:
    return DataError(f"the image store is damaged: {problem}", "make it again: vdiff prepare --force", path)
