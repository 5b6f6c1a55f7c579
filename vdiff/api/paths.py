"""Paths as people give them, and errors of the system as errors of vdiff."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from vdiff.errors import MachineError, UsageError
from vdiff.system.home import NoHome, expanded


def path_of(given: str | os.PathLike[str]) -> Path:
    """The path, with the home folder for a leading `~`.

    Errors: UsageError for what no path can be.
    """
    text = os.fspath(given)
    if "\0" in text:
        raise UsageError(f"{text!r} is no path: it holds a zero byte", "name a file or a folder")
    try:
        return Path(expanded(text))
    except NoHome as err:
        raise UsageError(err.problem, err.fix) from err


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within it, what the system refuses is a MachineError that names the path."""
    try:
        yield
    except OSError as err:
        reason = (err.strerror or str(err)).lower()
        fix = "look at its permissions and at the disk, or name another path"
        raise MachineError(f"`{err.filename or path}` cannot be read: {reason}", fix, path) from err
