"""What Pillow and libtiff say while they decode:
heard by whoever listens in the same thread, never printed.
"""

import ctypes
import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import PIL
from PIL import _imaging

_PILLOW = os.path.dirname(PIL.__file__) + os.sep
# "always": the default tells each warning once, and the second picture would seem to be without it.
_FILTER = ("always", None, Warning, re.compile(r"PIL\."), 0)

# What Pillow logs, Python prints as a last resort if nobody takes it.
logging.getLogger("PIL").addHandler(logging.NullHandler())

_here = threading.local()
_lock = threading.Lock()
_num_listeners = 0
_show_before: Any = None
_tiff_before: int | None = None


@contextmanager
def listening() -> Iterator[list[str]]:
    """A list that gets what Pillow warns of in this thread. Meanwhile nothing of it is printed, nor
    errors of libtiff.

    Threads may listen at the same time. What other threads and other packages warn of goes where it
    went before.
    """
    said: list[str] = []
    outer = getattr(_here, "said", None)
    _here.said = said
    _begin()
    try:
        yield said
    finally:
        _end()
        _here.said = outer


def _begin() -> None:
    global _num_listeners, _show_before, _tiff_before
    with _lock:
        _num_listeners += 1
        if _num_listeners == 1:
            # `warnings.catch_warnings` would do for one thread: here the first comes and the last
            # goes.
            _show_before = warnings.showwarning
            warnings.showwarning = _show
            warnings.filters.insert(0, _FILTER)  # type: ignore[attr-defined]
            _tiff_before = _set_tiff_handler(None)


def _end() -> None:
    global _num_listeners
    with _lock:
        _num_listeners -= 1
        if _num_listeners == 0:
            if warnings.showwarning is _show:
                warnings.showwarning = _show_before
            if _FILTER in warnings.filters:
                warnings.filters.remove(_FILTER)  # type: ignore[attr-defined]
            _set_tiff_handler(_tiff_before)


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    said = getattr(_here, "said", None)
    if said is not None and filename.startswith(_PILLOW):
        said.append(str(message))
    else:
        _show_before(message, category, filename, lineno, file, line)


def _no_tiff_handler(handler: int | None) -> int | None:
    return handler


def _find_tiff_handler() -> Any:
    """libtiff's `TIFFSetErrorHandler`, found through the module of Pillow that is linked to it.

    libtiff prints its errors to the standard error stream of the process, past Python. Pillow turns
    off its warnings only. Where the function cannot be found, as in a Pillow without libtiff, there
    is nothing to turn off.
    """
    try:
        function = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
    except (OSError, AttributeError):
        return _no_tiff_handler
    function.argtypes = [ctypes.c_void_p]
    function.restype = ctypes.c_void_p
    return function


_set_tiff_handler = _find_tiff_handler()
