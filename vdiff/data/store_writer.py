"""A store that is being written: LMDB, with what was committed safe from kills and power cuts."""

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

import lmdb

from vdiff.data import lmdb_pages
from vdiff.data.opened import check_pages, damaged, forget
from vdiff.data.patience import is_refusal
from vdiff.data.seal import FILE, break_seal, is_store
from vdiff.errors import MachineError, PausedError

# LMDB must be told how large its file may become. It is doubled when it is full.
_FIRST_MAP = 64 * 2**20


class StoreWriter:
    """A store being written, by one process. What was committed survives a kill and a loss of
    power.

    expected_bytes: how much it will need, for the message when the disk is full.
    DataError if the folder holds a damaged file, MachineError if the disk refuses.
    """

    def __init__(self, path: Path, expected_bytes: int = 0) -> None:
        self.path = path
        self._expected_bytes = expected_bytes
        size = 0
        if is_store(path):
            size = (path / FILE).stat().st_size
        if size:
            check_pages(path, writing=True)
            forget(path)
        break_seal(path)
        with self._guarded():
            # No lock: a file lock beside the store keeps other processes out.
            # The engine is named: an environment variable could ask for one whose files lmdb 2
            # cannot read.
            self._environment = lmdb.open(
                os.fsencode(path), map_size=max(_FIRST_MAP, 2 * size), lock=False, lib_version=0
            )

    def commit(self, records: Mapping[str, bytes | None]) -> None:
        """Write all records, or none of them; None deletes one."""
        while not self._try_commit(records):
            self._environment.set_mapsize(2 * self._environment.info()["map_size"])

    def get(self, key: str) -> bytes | None:
        """The record under `key`, or None."""
        with self._guarded(), self._environment.begin() as transaction:
            record: bytes | None = transaction.get(key.encode())
        return record

    def records(self, prefix: str) -> dict[str, bytes]:
        """All records whose keys begin with `prefix`, in the order of their keys."""
        with (
            self._guarded(),
            self._environment.begin() as transaction,
            transaction.cursor() as cursor,
        ):
            cursor.set_range(prefix.encode())
            records: dict[str, bytes] = {}
            for key, value in cursor:
                if not key.startswith(prefix.encode()):
                    break
                records[key.decode()] = value
            return records

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file, which is then whole."""
        self._environment.close()
        file = self.path / FILE
        # LMDB does not write pages at the end that were freed again at once: the file would look
        # cut off.
        # On Windows it makes the file as large as the map.
        size = file.stat().st_size
        whole = lmdb_pages.whole_size(file)
        if size < whole or (sys.platform == "win32" and size > whole):
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
        except (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.PanicError) as err:
            raise damaged(self.path, str(err)) from err
        except lmdb.Error as err:
            # A full disk comes as an input/output error too, so that one is not taken for a
            # refusal.
            if is_refusal(str(err)) and os.strerror(errno.EIO) not in str(err):
                fix = (
                    "give it more memory, files or a better disk; "
                    "the same command then goes on from here"
                )
                raise PausedError(f"cannot write the image store: {err}", fix, self.path) from err
            free = shutil.disk_usage(self.path).free
            space = f"it needs about {self._expected_bytes:,} bytes, {free:,} are free"
            problem = f"cannot write the image store: {err}; {space}"
            raise MachineError(
                problem, "free some space, or choose another place with --out", self.path
            ) from err
