"""A disk that fails at a chosen call: every change that Python or safetensors makes below a folder
is counted here.
"""

import builtins
import contextlib
import errno
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
from safetensors import SafetensorError

from vdiff.errors import MachineError
from vdiff.formats import weights

Failure = Literal["full", "broken", "killed"]
FAILURES: tuple[Failure, ...] = ("full", "broken", "killed")
_NUMBERS = {"full": errno.ENOSPC, "broken": errno.EIO}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Killed(BaseException):
    """What kill -9 is to the disk: nothing changes on it any more, whatever `finally` says."""


class Call(NamedTuple):
    """One change: `open` (for writing), `write`, `save_file`, `fsync`, `rename`, `mkdir`,
    `unlink`, `rmdir`, `chmod`.

    path: what it changes.   to: of a rename.
    """

    kind: str
    path: Path
    to: Path | None = None


class Disk:
    """Counts and passes on the changes below `folder`;
    `fail_at` is the number of the call that fails, None for none.

    A write that fails leaves half of what it should have written, as full disks do. watch: told of
    every call, before and after it is carried out.
    """

    def __init__(
        self,
        folder: Path,
        fail_at: int | None = None,
        failure: Failure = "full",
        watch: Callable[[Call], None] = lambda call: None,
    ) -> None:
        self.calls: list[Call] = []
        self._folder, self._fail_at, self._failure, self._watch = (
            folder.resolve(),
            fail_at,
            failure,
            watch,
        )
        self._is_dead = False

    @contextlib.contextmanager
    def in_use(self) -> Iterator["Disk"]:
        """While this lasts, the process works on this disk."""
        with pytest.MonkeyPatch.context() as patch:
            for name, kind in _RENAMES | _CHANGES:
                patch.setattr(os, name, self._change(kind, getattr(os, name)))
            patch.setattr(os, "fsync", self._fsync(os.fsync))
            patch.setattr(os, "open", self._os_open(os.open))
            patch.setattr(weights, "save_file", self._save_file(weights.save_file))
            opened = self._open(io.open)
            patch.setattr(io, "open", opened)
            patch.setattr(builtins, "open", opened)
            yield self

    def carry_out(
        self, call: Call, do: Callable[[], Any], half: Callable[[], Any] = lambda: None
    ) -> Any:
        """Do it, or fail and do `half` of it."""
        if not call.path.is_relative_to(self._folder):
            return do()
        if self._is_dead:
            raise Killed
        self.calls.append(call)
        if len(self.calls) - 1 == self._fail_at:
            half()
            self._fail(call)
        result = do()
        self._watch(call)
        return result

    def _fail(self, call: Call) -> None:
        if self._failure == "killed":
            self._is_dead = True
            raise Killed
        number = _NUMBERS[self._failure]
        if call.kind == "save_file":
            raise SafetensorError(
                f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"
            )
        raise OSError(number, os.strerror(number), str(call.path))

    def _change(self, kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def changed(path: Any, *rest: Any, **more: Any) -> Any:
            place = _place(path, more.get("dir_fd"))
            to = _place(rest[0]) if kind == "rename" else None
            return self.carry_out(Call(kind, place, to), lambda: real(path, *rest, **more))

        return changed

    def _fsync(self, real: Callable[[int], None]) -> Callable[[int], None]:
        return lambda number: self.carry_out(
            Call("fsync", _place("", number)), lambda: real(number)
        )

    def _os_open(self, real: Callable[..., int]) -> Callable[..., int]:
        def opened(path: Any, flags: int, *rest: Any, **more: Any) -> int:
            if not flags & _WRITES:
                return real(path, flags, *rest, **more)
            number: int = self.carry_out(
                Call("open", _place(path, more.get("dir_fd"))),
                lambda: real(path, flags, *rest, **more),
            )
            return number

        return opened

    def _open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
            if isinstance(file, int) or not set(mode) & set("wax+"):
                return real(file, mode, *rest, **more)
            place = _place(file)
            return _File(
                self,
                place,
                self.carry_out(Call("open", place), lambda: real(file, mode, *rest, **more)),
            )

        return opened

    def _save_file(self, real: Callable[..., None]) -> Callable[..., None]:
        def saved(tensors: Any, path: Any, **more: Any) -> None:
            def half() -> None:
                real(tensors, path, **more)
                os.truncate(path, Path(path).stat().st_size // 2)

            self.carry_out(
                Call("save_file", _place(path)), lambda: real(tensors, path, **more), half
            )

        return saved


class _File:
    """A file open for writing; nothing stays in its buffer,
    where a kill would lose it or a late flush write it.
    """

    def __init__(self, disk: Disk, place: Path, real: Any) -> None:
        self._disk, self._place, self._real = disk, place, real

    def write(self, data: Any) -> Any:
        def put(part: Any) -> Any:
            written = self._real.write(part)
            self._real.flush()
            return written

        return self._disk.carry_out(
            Call("write", self._place), lambda: put(data), lambda: put(data[: len(data) // 2])
        )

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        self._real.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


_RENAMES = {("rename", "rename"), ("replace", "rename")}
_CHANGES = {
    ("mkdir", "mkdir"),
    ("unlink", "unlink"),
    ("remove", "unlink"),
    ("rmdir", "rmdir"),
    ("chmod", "chmod"),
}


def _place(path: Any, folder: int | None = None) -> Path:
    """Where a path lies that may be relative to an open folder."""
    beginning = Path.cwd() if folder is None else Path(os.readlink(f"/proc/self/fd/{folder}"))
    return beginning / os.fspath(path)


class Outcome(NamedTuple):
    """What came of one failure: `call` is the one that failed, `error` what the work raised,
    None if it went on.
    """

    failure: Failure
    call: Call
    error: BaseException | None

    def __str__(self) -> str:
        return f"{self.failure} at {self.call.kind} of {self.call.path.name}: {self.error!r}"


def outcomes(
    folder: Path, begin: Callable[[], object], work: Callable[[], object]
) -> Iterator[Outcome]:
    """Do `work` once for every call it makes below `folder` and every failure of that call;
    `begin` comes before.

    The work must end, be killed or raise a MachineError.
    """
    begin()
    with Disk(folder).in_use() as whole:
        work()
    for failure in FAILURES:
        for number in range(len(whole.calls)):
            begin()
            error: BaseException | None = None
            with Disk(folder, number, failure).in_use() as disk:
                try:
                    work()
                except (MachineError, Killed) as err:
                    error = err
            yield Outcome(failure, disk.calls[number], error)
