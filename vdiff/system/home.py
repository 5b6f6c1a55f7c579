"""`~` at the start of a path is the home folder, also where no shell has put it there:
in recipes, in `--run=~/x`.
"""

import os


class NoHome(ValueError):  # noqa: N818 - a fact about a path
    """A home folder that is not known. problem, fix: what a VdiffError says of it."""

    def __init__(self, path: str) -> None:
        self.problem = f"there is no home folder `{path.partition('/')[0]}`"
        self.fix = f"write `./{path}` for a file of that name"
        super().__init__(f"{self.problem}; {self.fix}")


def expanded(path: str) -> str:
    """`path` with the home folder for a `~` or `~name` at its start.

    Errors: NoHome for one that is not known: a folder called `~` would be a trap for whoever
    removes it.
    """
    if not path.startswith("~"):
        return path
    found = os.path.expanduser(path)
    if found.startswith("~"):
        raise NoHome(path)
    return found
