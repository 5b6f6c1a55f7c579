"""Names of files: how they are shown, what they hide and how they end."""

import re

_SYSTEM_FOLDERS = (
    "__MACOSX",
    "@eaDir",
    "#recycle",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
)
"""What macOS adds to archives, thumbnails and trash of network disks,
and what systems keep on a disk of their own.
"""

_MAY_HIDE = re.compile("|".join([r"^\.", r"/\.", *map(re.escape, _SYSTEM_FOLDERS)]))


def suffix_of(name: str) -> str:
    """The end of a name from its last dot on, in small letters; empty where there is none."""
    base = name[name.rfind("/") + 1 :]
    dot = base.rfind(".")
    # A dot at the beginning hides a file, and one at the end begins nothing.
    if 0 < dot < len(base) - 1:
        return base[dot:].lower()
    return ""


def parts_of(name: str) -> list[str]:
    """The folders of a name, and what it is called in the last one; without `.` and empty ones."""
    return [part for part in name.split("/") if part not in ("", ".")]


def folder_of(name: str) -> str:
    """The name without its last part."""
    return name[: max(name.rfind("/"), 0)]


def is_hidden(name: str) -> bool:
    """Whether a part of the path begins with a dot (`.name`, macOS's `._name`) or is a folder of
    the system's own.
    """
    # One search is faster than splitting, and it settles nearly all names.
    if not _MAY_HIDE.search(name):
        return False
    return any(
        (part.startswith(".") and part != "..") or part in _SYSTEM_FOLDERS
        for part in parts_of(name)
    )
