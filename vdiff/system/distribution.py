"""What vdiff is called on the package index, and whether its namesake there has
been installed over it.

The name `vdiff` on the index belongs to another program, a front end to vimdiff, whose command and
import package are called vdiff too. Whichever of the two is installed last replaces files of the
other, and whichever is removed takes them along.
"""

from pathlib import Path

from vdiff.errors import MachineError

NAME = "vdiff-distill"
"""The distribution; the command and the import package are `vdiff`."""

UPGRADE = f"pip install --upgrade {NAME}"


def with_extra(name: str) -> str:
    """What to type for the packages that one of vdiff's extras brings."""
    return f"pip install '{NAME}[{name}]'"


_NAMESAKE = ("main.py", "vdiff.py")
"""Files of the other program's package."""

_MEND = f"pip uninstall vdiff, then: pip install --force-reinstall --no-deps {NAME}"


def check(package: Path) -> str | None:
    """A warning where files of the other program lie in our package folder, None where all is well.

    Errors: MachineError where they have replaced ours.
    """
    strangers = [name for name in _NAMESAKE if (package / name).exists()]
    start = package / "__init__.py"
    if not start.is_file() or b"progressive" not in start.read_bytes()[:200]:
        problem = (
            "another package called `vdiff` was installed over this one, "
            "or removed together with a part of it"
        )
        raise MachineError(problem, _MEND, package)
    if strangers:
        return (
            f"another program called `vdiff` is installed in the same folder ({package}); "
            f"to part them: {_MEND}"
        )
    return None
