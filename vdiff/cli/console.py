"""What is printed: talk on stderr, data on stdout, errors in three lines."""

import errno
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from rich.console import Console, ConsoleOptions, RenderableType
from rich.highlighter import RegexHighlighter
from rich.segment import Segment
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

from vdiff.cli.options import mode
from vdiff.errors import VdiffError
from vdiff.system.printable import printable, printable_json

_KEPT = "\n\t"

_GONE = (errno.EPIPE, errno.EIO)
"""How the system says that nobody reads any longer:
the reader has left, or the terminal is closed.
"""


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
        except OSError as err:
            if err.errno in _GONE:
                # else Python finds the text that nobody took when it ends, and exits with 120
                _send_nowhere(2)
        except (ValueError, AttributeError):
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


class _Console(Console):
    """A console on which only our own styles and displays act:
    texts that would are made visible.
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(printable(segment.text, _KEPT), segment.style)


_THEME = Theme(
    {
        "vdiff.name": "cyan",
        "bar.complete": "cyan",
        "bar.finished": "green",
        "bar.back": "bright_black",
    }
)

stderr = _Console(file=_Stderr(), theme=_THEME, highlighter=_Names(), markup=False, emoji=False)  # type: ignore[arg-type]


def say(text: str, style: str = "") -> None:
    """A line of talk; style is a colour, such as `green` for success. Nothing with --quiet."""
    if not mode.quiet:
        # the terminal breaks the line: one that rich had broken cannot be copied as one command
        stderr.print(text, style=style or None, soft_wrap=True)


def warn(text: str) -> None:
    """A line about something that may not be what the user wants."""
    say(f"warning: {text}", "yellow")


def write(text: str) -> None:
    """Data for stdout; what would act on a terminal is made visible."""
    _put(printable(text, _KEPT))


def _put(text: str) -> None:
    """Text for stdout, as it is; somebody who closed stdout, or the terminal, has read enough."""
    try:
        print(text, flush=True)  # noqa: T201 - this is the door to stdout
    except OSError as err:
        if err.errno not in _GONE:
            raise
        close_stdout()


def prose(text: str) -> None:
    """A sentence for stdout; in a terminal its lines end between words."""
    if is_terminal():
        # a name such as `base-4` stays one word
        text = textwrap.fill(text, shutil.get_terminal_size().columns, break_on_hyphens=False)
    write(text)


def emit_json(content: Any) -> None:
    """One JSON object on stdout."""
    write(printable_json(json.dumps(content, ensure_ascii=False, indent=2, default=str)))


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    right: Sequence[str] = (),
    importance: Sequence[str] = (),
) -> list[str]:
    """A table on stdout, whole in a file; in a terminal, with as many columns as fit. Returns those
    that are left out.

    right: columns that hold numbers.   importance: columns that may be left out, the last one
    first; those that may not are cut.
    """
    # in a file a row is one line, whatever its width: people grep in it
    width: int | None = _ENDLESS
    room = _ENDLESS
    if is_terminal():
        width = None
        room = shutil.get_terminal_size().columns
    left_out = _left_out(columns, rows, importance, room)
    kept = [place for place, name in enumerate(columns) if name not in left_out]
    columns = [columns[place] for place in kept]
    rows = [[printable(str(row[place])) for place in kept] for row in rows]
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        justify: Literal["left", "right"] = "left"
        if column in right:
            justify = "right"
        drawn.add_column(column, no_wrap=True, justify=justify, overflow="ellipsis")
    for row in rows:
        drawn.add_row(*(Text(str(cell)) for cell in row))
    stdout = _Console(theme=_THEME, highlight=False, width=width)
    with stdout.capture() as captured:
        stdout.print(drawn)
    _put("\n".join(line.rstrip() for line in captured.get().splitlines()))
    return left_out


_ENDLESS = 10_000
"""Columns of what is no terminal."""


def is_terminal() -> bool:
    """Whether a person looks at stdout; there may be none at all."""
    return bool(sys.stdout and sys.stdout.isatty())


def _left_out(
    columns: Sequence[str], rows: Sequence[Sequence[object]], importance: Sequence[str], room: int
) -> list[str]:
    cells = {
        name: [*name.splitlines(), *(str(row[place]) for row in rows)]
        for place, name in enumerate(columns)
    }
    widths = {name: max(map(len, texts), default=0) + 2 for name, texts in cells.items()}
    # the gap after the last column needs no room
    left = room + 2 - sum(width for name, width in widths.items() if name not in importance)
    left_out = []
    for name in (name for name in importance if name in widths):
        if widths[name] <= left:
            left -= widths[name]
        else:
            left_out.append(name)
    return left_out


def show_error(err: VdiffError) -> None:
    """The three lines of an error, and with --json the same as an object on stdout."""
    if mode.json:
        emit_json(
            {"error": err.problem, "where": err.where, "fix": err.fix, "exit_code": err.exit_code}
        )
    for label, style, text in (
        ("error", "bold red", err.problem),
        ("where", "", err.where),
        ("fix", "cyan", err.fix),
    ):
        if text:
            # all mistakes of a recipe are lines of one `where`; they stand below one another
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
    _send_nowhere(1)


def _send_nowhere(stream: int) -> None:
    # by the number: libraries in C write there too, past sys.stdout
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream)
    os.close(nowhere)
