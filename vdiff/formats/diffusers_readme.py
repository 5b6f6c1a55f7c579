"""What the front matter of a folder's README.md says, as hubs read it."""

import re
from pathlib import Path

NULL_CLASS = "vdiff_null_class"
"""Which class stands for no class: a line that vdiff writes, as the configuration has no place."""


def licence(path: Path) -> str | None:
    """Of the weights."""
    told = re.search(r"^license:[ \t]*([\w.+-]{1,60})[ \t]*$", _front_matter(path), re.M)
    return None if told is None else told[1]


def null_label(path: Path) -> int | None:
    """The class that stands for no class; None where nothing is said."""
    told = re.search(rf"^{NULL_CLASS}: (\d{{1,9}})$", _front_matter(path), re.M)
    return None if told is None else int(told[1])


def _front_matter(path: Path) -> str:
    """Empty without one."""
    try:
        with (path / "README.md").open(encoding="utf-8", errors="replace") as file:
            text = file.read(1 << 16)
    except OSError:
        return ""
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    return "" if front is None else front[1]
