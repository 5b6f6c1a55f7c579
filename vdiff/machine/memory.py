"""Memory: how much was used at most, how much is left, how much a piece of work needs,
and who keeps what is free.
"""

import contextlib
import ctypes
import platform
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vdiff.errors import OUT_OF_MEMORY

if sys.platform != "win32":
    import resource

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")

# parameters of mallopt, with their numbers in malloc.h
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3


def set_malloc_policy(sparing: bool) -> None:
    """Say what becomes of a tensor's memory on a CPU when it is free:
    given back at once, or kept for the next one.

    Kept, an update takes 8 % less time, as no page is asked for twice; given back, the gaps between
    tensors go, which are a fifth of the memory (docs/benchmarks.md). Does nothing without the GNU C
    library.
    """
    library = _gnu_c_library()
    if library is None:
        return
    if sparing:
        # blocks of 64 KiB and more have pages of their own, which go back when they are free
        library.mallopt(_MMAP_THRESHOLD, 2**16)
        library.mallopt(_TRIM_THRESHOLD, 2**17)
        library.malloc_trim(0)  # what was kept until now
    else:
        # blocks of up to 1 GiB come from the heap, and -1 keeps all of that
        library.mallopt(_MMAP_THRESHOLD, 2**30)
        library.mallopt(_TRIM_THRESHOLD, -1)


def _gnu_c_library() -> ctypes.CDLL | None:
    if platform.libc_ver()[0] != "glibc":
        return None
    return ctypes.CDLL(None)


def is_lacking(err: RuntimeError) -> bool:
    """Whether an error says that memory ran out;
    torch has a class for it only where its own allocator asked.
    """
    return isinstance(err, torch.OutOfMemoryError) or any(
        words in str(err) for words in OUT_OF_MEMORY
    )


def forget_peak(device: torch.device) -> None:
    """Begin to count anew, where that is possible: on GPUs and on Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    if (library := _gnu_c_library()) is not None:
        library.malloc_trim(0)  # what an earlier piece of work left would count as used
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")


def peak_bytes(device: torch.device) -> int:
    """The most that was in use since then, or since the process began;
    on a CPU with all that Python and torch need.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        # it tells no peak, but keeps what it once had
        return torch.mps.driver_allocated_memory()
    return _field(_STATUS, "VmHWM:") or _peak_told_by_system()


def _peak_told_by_system() -> int:
    if sys.platform == "win32":
        import psutil

        found = int(psutil.Process().memory_info().peak_wset)
    else:
        # bytes on a Mac, KiB elsewhere
        unit = 1 if sys.platform == "darwin" else 1024
        found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return found


def _field(path: Path, name: str) -> int:
    """A number of bytes out of a file of `name: n kB` lines; 0 where there is none."""
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0


def available_bytes(device: torch.device, root: Path = Path("/")) -> int | None:
    """What this process may still take, None where nobody tells; on a CPU the least of all limits.

    root: where /proc and /sys are.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return max(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory(), 1)
    if sys.platform != "linux":
        import psutil

        return int(psutil.virtual_memory().available)
    found = [_field(root / "proc/meminfo", "MemAvailable:"), *_left_to_groups(root)]
    return min((each for each in found if each), default=None)


def _left_to_groups(root: Path) -> Iterator[int]:
    """What the control group of this process, and every one that it is in, leaves to it."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, kinds, name = line.split(":", 2)
            if kinds not in ("", "memory"):
                continue
            top = root / "sys/fs/cgroup" / kinds
            limit, used = _GROUP_FILES[kinds]
            inner = top / name.lstrip("/")
            # in a container the name may be that outside of it: then only the top is there
            for folder in [inner, *inner.parents]:
                if folder.is_relative_to(top):
                    most = _number(folder / limit)
                    now = _number(folder / used)
                    if most is not None and now is not None and most < _NO_LIMIT:
                        yield max(most - now + _droppable(folder), 1)


_GROUP_FILES = {
    "": ("memory.max", "memory.current"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}
_NO_LIMIT = 2**60


def _number(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text(encoding="utf-8"))
    return None


def _droppable(folder: Path) -> int:
    """Bytes of files that the system only keeps in memory while nobody wants it."""
    with contextlib.suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines():
            if line.startswith("inactive_file "):
                return int(line.split()[1])
    return 0


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that are made within it. peak: the most at any moment."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # what was there before is not counted when an operation returns it
        for holder, _ in _holders((args, kwargs)):
            self._meet(holder, 0)
        out = func(*args, **(kwargs or {}))
        for holder, size in _holders(out):
            self._meet(holder, size)
        return out

    def _meet(self, holder: object, size: int) -> None:
        if id(holder) not in self._known:
            self._known[id(holder)] = weakref.finalize(holder, self._forget, id(holder), size)
            self._now += size
            self.peak = max(self.peak, self._now)

    def _forget(self, key: int, size: int) -> None:
        del self._known[key]
        self._now -= size


def _holders(tree: Any) -> Iterator[tuple[object, int]]:
    """What holds the memory of every tensor, and how many bytes;
    tensors that share memory have one holder.
    """
    for leaf in tree_leaves(tree):
        if not isinstance(leaf, torch.Tensor):
            continue
        if leaf.is_mkldnn:
            # oneDNN's own layout has no storage that torch knows
            yield leaf, leaf.numel() * leaf.itemsize
        else:
            yield _storage(leaf)


def _storage(tensor: torch.Tensor) -> tuple[object, int]:
    storage = tensor.untyped_storage()
    return storage, storage.nbytes()


def peak_of(work: Callable[[], object], device: torch.device) -> int:
    """The most memory that tensors made by `work` take at any moment."""
    if device.type != "cuda":
        with Counted() as counted:
            work()
        return int(counted.peak)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return int(torch.cuda.max_memory_allocated(device) - before)
