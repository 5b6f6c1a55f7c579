"""What is printed: talk on stderr, data on stdout, errors in three lines."""

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.highlighter import RegexHighlighter
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

from vdiff.cli.options import mode
from vdiff.errors import VdiffError


class _Names(RegexHighlighter):
    """What stands in backticks, a name or something to type, is cyan."""

    base_style = "vdiff."
    highlights = (r"(?P<name>`[^`]*`)",)


class _Stderr:
    """stderr, as whoever redirected it left it; a closed one must not end a run."""

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except (OSError, ValueError, AttributeError):
            return 0
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError, AttributeError):
            return

    def isatty(self) -> bool:
        try:
            return bool(self._stream.isatty())
        except (OSError, ValueError, AttributeError):
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def _stream(self) -> Any:
        # a live display puts a proxy of this very console there
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)


_THEME = Theme({"vdiff.name": "cyan", "bar.complete": "cyan", "bar.finished": "green", "bar.back": "bright_black"})

stderr = Console(file=_Stderr(), theme=_THEME, highlighter=_Names(), markup=False, emoji=False)  # type: ignore[arg-type]


def say(text: str, style: str = "") -> None:
    """A line of talk; style is a colour, such as `green` for success. Nothing with --quiet."""
    if not mode.quiet:
        stderr.print(text, style=style or None, soft_wrap=True)


def warn(text: str) -> None:
    """A line about something that may not be what the user wants."""
    say(f"warning: {text}", "yellow")


def write(text: str) -> None:
    """Data for stdout, as it is; somebody who closed stdout has read enough."""
    try:
        print(text, flush=True)  # noqa: T201 - this is the door to stdout
    except BrokenPipeError:
        close_stdout()


def emit_json(content: Any) -> None:
    """One JSON object on stdout."""
    write(json.dumps(content, ensure_ascii=False, indent=2, default=str))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[str] = ()) -> None:
    """A table on stdout; the columns named in `right` hold numbers. Cut to the width of a terminal, whole in a file."""
    is_terminal = bool(sys.stdout and sys.stdout.isatty())
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        drawn.add_column(column, no_wrap=True, justify="right" if column in right else "left", overflow="ellipsis")
    for row in rows:
        drawn.add_row(*(Text(str(cell)) for cell in row))
    stdout = Console(theme=_THEME, highlight=False, width=None if is_terminal else 10_000)
    with stdout.capture() as captured:
        stdout.print(drawn)
    write("\n".join(line.rstrip() for line in captured.get().splitlines()))


def show_error(err: VdiffError) -> None:
    """The three lines of an error, and with --json the same as an object on stdout."""
    if mode.json:
        emit_json({"error": err.problem, "where": err.where, "fix": err.fix, "exit_code": err.exit_code})
    for label, style, text in (("error", "bold red", err.problem), ("where", "", err.where), ("fix", "cyan", err.fix)):
        if text:
            inside = text.replace("\n", "\n" + " " * len(f"{label}: "))
            stderr.print(Text.assemble((f"{label}:", style), " ", _Names()(inside)), soft_wrap=True)


def stopped(what: str, exit_code: int) -> None:
    """The end of a command that somebody stopped."""
    if mode.json:
        emit_json({"stopped": what, "exit_code": exit_code})
    say(what, "yellow")


def show_traceback(text: str) -> None:
    stderr.print(Text(text.rstrip()), soft_wrap=True)


def close_stdout() -> None:
    """Send what is still to be printed nowhere, so that nothing complains when the process ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
