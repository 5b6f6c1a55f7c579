"""One long-lived process that runs many vdiff commands: imports are paid once.

Speaks JSON lines; see `service.py`.
"""

import builtins
import contextlib
import gc
import io
import json
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def main() -> None:
    """Answer requests {cwd, arguments} with {code, output, seconds, grown_bytes,
    held} until stdin ends.
    """
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    _import_all()
    replies.write("ready\n")
    for line in sys.stdin:
        replies.write(json.dumps(_answer(json.loads(line))) + "\n")


def _import_all() -> None:
    import accelerate.tracking  # noqa: F401
    import torch

    import vdiff.chain.chain
    import vdiff.cli.app
    import vdiff.drawing.drawing
    import vdiff.reporting.inspection  # noqa: F401

    torch.set_num_threads(1)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    from vdiff.cli import app

    os.chdir(request["cwd"])
    with tempfile.TemporaryFile() as output:
        kept = [os.dup(number) for number in (1, 2)]
        for number in (1, 2):
            os.dup2(output.fileno(), number)
        rested, began = _rest(), time.monotonic()
        try:
            with _refusing(request["fails"]):
                code = app.run(request["arguments"])
        finally:
            # see `machine.py`
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            for number, old in zip((1, 2), kept, strict=True):
                os.dup2(old, number)
                os.close(old)
        seconds, grown = time.monotonic() - began, _peak() - rested
        output.seek(0)
        text = output.read().decode(errors="replace")
    return {
        "code": code,
        "output": text,
        "seconds": seconds,
        "grown_bytes": grown,
        "held": _held(request["cwd"]),
    }


@contextlib.contextmanager
def _refusing(fails: dict[str, int] | None) -> Iterator[None]:
    """While this lasts, some openings of files that are no part of Python are refused."""
    if fails is None:
        yield
        return
    last, seen, lock = fails["at"] + fails["times"], [0], threading.Lock()

    def refuse(path: object) -> None:
        if isinstance(path, int) or str(path).startswith(
            (sys.prefix, sys.base_prefix, "/proc", "/sys", "/dev")
        ):
            return
        with lock:
            seen[0] += 1
        if fails["at"] <= seen[0] - 1 < last:
            raise OSError(fails["errno"], os.strerror(fails["errno"]), str(path))

    def guarded(before: Callable[..., Any]) -> Callable[..., Any]:
        def opened(path: Any, *more: Any, **options: Any) -> Any:
            refuse(path)
            return before(path, *more, **options)

        return opened

    class FileIO(io.FileIO):
        def __init__(self, path: Any, *more: Any, **options: Any) -> None:
            refuse(path)
            super().__init__(path, *more, **options)

    kept = (os.open, io.open, builtins.open, io.FileIO)
    os.open = guarded(os.open)
    setattr(io, "FileIO", FileIO)  # noqa: B010 - a class, which a type checker wants to stay
    io.open = builtins.open = guarded(io.open)
    try:
        yield
    finally:
        os.open, io.open, builtins.open, io.FileIO = kept  # type: ignore[misc]


def _rest() -> int:
    """Bytes of memory in use; from now on the peak counts anew."""
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(name: str) -> int:
    found = [
        line.split()
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(name)
    ]
    return int(found[0][1]) * 1024 if found else 0


def _held(folder: str) -> list[str]:
    """What a command should have let go of: files of its folder,
    but for stores (they stay open), and threads.
    """
    gc.collect()
    links = [_target(number) for number in os.listdir("/proc/self/fd")]
    files = [
        link
        for link in links
        if link.startswith(folder) and not link.removesuffix(" (deleted)").endswith("data.mdb")
    ]
    others = [
        thread
        for thread in threading.enumerate()
        if thread is not threading.main_thread() and not thread.daemon
    ]
    return [*files, *(f"thread {thread.name}" for thread in others)]


def _target(number: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return ""


if __name__ == "__main__":
    main()
