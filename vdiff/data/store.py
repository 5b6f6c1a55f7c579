"""ImageStore: one LMDB of encoded pictures in one or more sizes, and what it says about itself.

Keys `256-00000`, ... and `length`, as diffusion_distiller and rosinality write them, and one record
of metadata under `vdiff`. Stores without that record are read as they are, unless a seal
tells that they are ours.
"""

import contextlib
import hashlib
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import numpy.typing as npt

from vdiff.data.metadata import Metadata, NewerFormatError, Seal
from vdiff.data.opened import Opened, check_pages, damaged, open_file, unreadable
from vdiff.data.seal import FILE, SEAL, is_ours, is_store, read_seal
from vdiff.data.store_writer import StoreWriter as StoreWriter
from vdiff.errors import DataError

# Keys of records that are no pictures.
METADATA = "vdiff"
LENGTH = "length"
_KEY = re.compile(rb"([1-9]\d{0,5})-\d{5,}")
_SHOWN = ("format", "made_by", "channels", "encoding", "quality", "resampling", "source")


class ImageStore:
    """An image store opened for reading. It can be pickled and used after a fork: each process
    opens the file itself.

    DataError if there is none, if it is damaged or if it does not hold what it says. PausedError if
    the machine refuses to read it for now.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: Opened | None = None
        seal = _read_seal(path)
        if not is_store(path):
            if seal:
                raise damaged(path, f"its file `{FILE}` is missing")
            raise DataError(f"there is no image store in `{path}`", "make it: vdiff prepare", path)
        # Before LMDB opens the file: at damaged pages, it would end the process.
        pages = check_pages(path)
        if seal:
            _compare(seal, path, pages)
        with self._reading() as transaction:
            self.metadata: Metadata | None = self._read_metadata(transaction)
            self.num_images: int = self._read_length(transaction)
            self.sizes: tuple[int, ...] = self._find_sizes(transaction)
            self._check_keys(transaction)
            if self.metadata is None:
                self._refuse_ours(transaction, seal)

    @property
    def labels(self) -> npt.NDArray[np.int64] | None:
        """The class of each picture, or None."""
        if self.metadata is None or self.metadata.labels is None:
            return None
        return np.array(self.metadata.labels, dtype=np.int64)

    @property
    def class_names(self) -> list[str]:
        """The name of each class; empty where there are none."""
        if self.metadata is None:
            return []
        return list(self.metadata.class_names or [])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the whole content: all sizes, and the labels."""
        return self.fingerprint_of(*self.sizes)

    def fingerprint_of(self, *sizes: int) -> str:
        """SHA-256 of the pictures of these sizes, by their checksums, and of the labels."""
        labels: list[int] | None = None
        channels: int | None = None
        if self.metadata is not None:
            labels = self.metadata.labels
            channels = self.metadata.channels
        content = [self.num_images, channels, [[size, self._crcs(size)] for size in sizes], labels]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def read(self, index: int, size: int) -> bytes:
        """The encoded picture; DataError if it is not there or is not what was written."""
        key = image_key(size, index)
        # A buffer lies in the map of the file: a size that is damaged takes no gigabytes of memory.
        with self._reading(buffers=True) as transaction:
            data = transaction.get(key.encode())
            if data is None:
                raise damaged(self.path, f"record `{key}` is missing")
            if self.metadata:
                expected = self.metadata.crcs[size][8 * index : 8 * index + 8]
                if f"{zlib.crc32(data):08x}" != expected:
                    raise damaged(
                        self.path, f"record `{key}` is not what was written (its checksum differs)"
                    )
            # A copy: the buffer ends with the transaction.
            return bytes(data)

    def verify(self) -> None:
        """Read every picture and compare its checksum; a foreign store has none.

        DataError if any byte that is used is damaged. Not used are free pages and, of a long value,
        the header of its first page and what follows it on its last one.
        """
        for size in self.sizes:
            for index in range(self.num_images):
                self.read(index, size)

    def summary(self) -> dict[str, Any]:
        """What `vdiff inspect` shows, ready for JSON.

        Foreign stores have None for what they do not say.
        """
        kind = "diffusion_distiller"
        shown: dict[str, Any] = dict.fromkeys(_SHOWN)
        if self.metadata:
            kind = "vdiff"
            shown = self.metadata.model_dump(include=set(_SHOWN))
        return {
            "path": str(self.path),
            "kind": kind,
            "num_images": self.num_images,
            "sizes": list(self.sizes),
            "num_classes": len(self.class_names),
            "class_names": self.class_names,
            "bytes": (self.path / FILE).stat().st_size,
            "fingerprint": self.fingerprint,
            **shown,
        }

    def __getstate__(self) -> dict[str, Any]:
        # An open LMDB belongs to one process.
        return {**self.__dict__, "_opened": None}

    @contextlib.contextmanager
    def _reading(self, buffers: bool = False) -> Iterator[Any]:
        try:
            if self._opened is None or not self._opened.is_usable():
                self._opened = open_file(self.path)
            if self._opened.is_cut_off(self.path):
                raise damaged(self.path, "the file was cut off while it was in use")
            with self._opened.environment.begin(buffers=buffers) as transaction:
                yield transaction
        except lmdb.MemoryError:
            # The machine is at fault: the store is whole.
            raise
        except (lmdb.Error, OSError, ValueError) as err:
            raise unreadable(self.path, err) from err

    def _read_metadata(self, transaction: Any) -> Metadata | None:
        text = transaction.get(METADATA.encode())
        if text is None:
            return None
        try:
            return Metadata.from_json(text)
        except NewerFormatError as err:
            raise _newer(self.path, err) from err
        except ValueError as err:
            raise damaged(self.path, f"record `{METADATA}`: {err}") from err

    def _read_length(self, transaction: Any) -> int:
        text = transaction.get(LENGTH.encode())
        if text is None or not re.fullmatch(rb"[1-9]\d{0,9}", text):
            raise damaged(self.path, f"record `{LENGTH}` is missing or is not a number of pictures")
        if self.metadata and self.metadata.count != int(text):
            raise damaged(self.path, f"record `{LENGTH}` contradicts record `{METADATA}`")
        return int(text)

    def _find_sizes(self, transaction: Any) -> tuple[int, ...]:
        if self.metadata:
            return tuple(self.metadata.sizes)
        # From size to size, not from picture to picture: there may be millions.
        sizes: list[int] = []
        cursor = transaction.cursor()
        is_at_key = cursor.first()
        # ":" follows the digits: no key of a picture comes after it.
        while is_at_key and cursor.key() < b":":
            key = _KEY.fullmatch(cursor.key())
            if key is None:
                # No picture's key, perhaps a damaged one. Pictures may follow.
                is_at_key = cursor.next()
                continue
            if int(key[1]) in sizes:
                raise damaged(self.path, "its keys are not in order")
            sizes.append(int(key[1]))
            # "." follows "-": this leads to the first key of the next size.
            is_at_key = cursor.set_range(key[1] + b".")
        return tuple(sorted(sizes))

    def _refuse_ours(self, transaction: Any, seal: Seal | None) -> None:
        """DataError for a store of vdiff that has lost its record:
        it would be read without checksums and labels.
        """
        if seal:
            raise damaged(self.path, f"its record `{METADATA}` is missing")
        # Pictures and the length, and nothing that could have been a record of ours: no need to
        # look at every key.
        if transaction.stat()["entries"] == self.num_images * len(self.sizes) + 1:
            return
        cursor = transaction.cursor()
        for key in cursor.iternext(values=False):
            if key != LENGTH.encode() and not _KEY.fullmatch(key) and is_ours(key, cursor.value()):
                problem = f"its record `{METADATA}` is missing, and there is one under {key[:40]!r}"
                raise damaged(
                    self.path, f"{problem}: it was never finished, or that key has changed"
                )

    def _check_keys(self, transaction: Any) -> None:
        if not self.sizes:
            raise damaged(self.path, "it holds no pictures under keys like `256-00000`")
        # The first and the last key of each size, and the number of all keys: in a moment, also for
        # millions.
        ends = [image_key(size, index) for size in self.sizes for index in (0, self.num_images - 1)]
        missing = [key for key in ends if transaction.get(key.encode()) is None]
        if missing:
            problem = f"it says {self.num_images:,} pictures, but record `{missing[0]}` is missing"
            raise damaged(self.path, problem)
        num_others = 1
        if self.metadata:
            num_others = 2
        if transaction.stat()["entries"] < self.num_images * len(self.sizes) + num_others:
            raise damaged(self.path, f"it says {self.num_images:,} pictures, but some are missing")

    def _crcs(self, size: int) -> str:
        """The CRC-32 of each picture, eight hexadecimal digits each;
        a foreign store is read through once for it.
        """
        if self.metadata:
            return self.metadata.crcs[size]
        return "".join(
            f"{zlib.crc32(self.read(index, size)):08x}" for index in range(self.num_images)
        )


def image_key(size: int, index: int) -> str:
    """The key of a picture: `256-00000` and so on."""
    return f"{size}-{index:05d}"


def _read_seal(path: Path) -> Seal | None:
    try:
        return read_seal(path)
    except NewerFormatError as err:
        raise _newer(path, err) from err
    except ValueError as err:
        raise damaged(path, f"its file `{SEAL}`: {err}") from err
    except OSError as err:
        raise unreadable(path, err) from err


def _compare(seal: Seal, path: Path, pages: int) -> None:
    """DataError unless the file is the one that was sealed. Pages that are not used may differ."""
    num_bytes = (path / FILE).stat().st_size
    if num_bytes != seal.bytes:
        problem = f"`{FILE}` has {num_bytes:,} bytes, not {seal.bytes:,} as `{SEAL}` says"
    elif f"{pages:08x}" != seal.pages:
        problem = f"a page of `{FILE}` is not what was written (its checksum in `{SEAL}` differs)"
    else:
        return
    raise damaged(path, problem)


def _newer(path: Path, err: NewerFormatError) -> DataError:
    return DataError(str(err), "install a newer vdiff, or prepare the pictures again", path)
