"""Commands that vdiff names to be typed next: they mean the same recipe, run and changes,
and can be pasted into a shell.
"""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

Given = tuple[str | None, Sequence[str] | None, Path | None]
"""What -r, --set and --run said; None where they were left out."""

NOTHING: Given = (None, None, None)


def command(words: Sequence[str], given: Given = NOTHING) -> str:
    """`vdiff` with these words and with what was given, each quoted where the shell needs it."""
    return shlex.join(["vdiff", *words, *options(given)])


def options(given: Given) -> list[str]:
    """What was given, as options again."""
    recipe, changes, run = given
    words: list[str] = []
    if recipe is not None:
        words += ["-r", recipe]
    if run is not None:
        words += ["--run", str(run)]
    for change in changes or []:
        words += ["--set", change]
    return words


def value(text: str) -> str:
    """A text as `--set` reads it as that text: YAML would take `a: b` or `1` for something else."""
    from vdiff.errors import UsageError
    from vdiff.recipe.strict_yaml import read_line

    try:
        if read_line(text, "--set").data == text:
            return text
    except UsageError:
        pass
    return json.dumps(text, ensure_ascii=False)
