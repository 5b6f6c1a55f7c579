"""What other installed packages bring to vdiff: their entry points, and whose fault an error is."""

import contextlib
import importlib
import os
import sys
from functools import lru_cache
from importlib.metadata import EntryPoint, distributions, entry_points
from traceback import walk_tb
from typing import Any

_OUR_GROUPS = "vdiff."


def entries_of(group: str) -> list[EntryPoint]:
    """The entry points of a group, of all installed packages."""
    return _entry_points(_places()).get(group, [])


@lru_cache(maxsize=1)
def _entry_points(places: tuple[tuple[str, int], ...]) -> dict[str, list[EntryPoint]]:
    """What other packages bring, by group.

    Remembered, as reading what is installed takes long.   places: where.
    """
    # `pip install` in a notebook that runs changes a folder's time, and so the key of the cache
    installed = entry_points()
    return {
        group: list(installed.select(group=group))
        for group in installed.groups
        if group.startswith(_OUR_GROUPS)
    }


def _places() -> tuple[tuple[str, int], ...]:
    """Where packages may be installed, and when something was last added there or removed,
    in nanoseconds.
    """
    places = []
    for place in sys.path:
        # a place on the path need not exist
        with contextlib.suppress(OSError):
            places.append((place, os.stat(place or ".").st_mtime_ns))
    return tuple(places)


def loaded(place: str) -> Any:
    """What "module:name" names; any error that its module raises while it is imported."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def package_of(entry: EntryPoint) -> str:
    """The name that `pip uninstall` takes."""
    # a folder on the path that somebody wrote by hand may lack the package's name
    if entry.dist is None:
        return entry.value.partition(".")[0]
    return str(entry.dist.name)


def maker_of(entry: EntryPoint) -> str:
    """The package and its version."""
    if entry.dist is None:
        return package_of(entry)
    return f"{entry.dist.name} {entry.dist.version}"


def raised_in(err: BaseException) -> str | None:
    """The package with kinds of its own in whose code, or in what that called,
    an error was raised; None for none.

    Of the innermost frames, those of libraries are passed over: torch's error is that of whoever
    called it.
    """
    makers = {
        entry.value.partition(":")[0].partition(".")[0]: f"{package.name} {package.version}"
        for package in distributions()
        for entry in package.entry_points
        if entry.group.startswith(_OUR_GROUPS)
    }
    frames = [
        frame.f_globals.get("__name__", "").partition(".")[0]
        for frame, _ in walk_tb(err.__traceback__)
    ]
    known = [name for name in frames if name == "vdiff" or name in makers]
    if not known:
        return None
    return makers.get(known[-1])
