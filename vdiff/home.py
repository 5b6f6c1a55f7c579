"""`~` at the start of a path is the home folder, also where no shell has put it there: in recipes, in `--run=~/x`."""

import os


def expanded(path: str) -> str:
    """`path` with the home folder for a `~` or `~name` at its start.

    Errors: ValueError for a home that is not known: a folder called `~` would be a trap for whoever removes it.
    """
    if not path.startswith("~"):
        return path
    found = os.path.expanduser(path)
    if found.startswith("~"):
        raise ValueError(f"there is no home folder `{path.partition('/')[0]}`; `./{path}` is a file of that name")
    return found
