"""Progress as one line of text that writes over itself,
in a terminal and in the cell of a notebook.
"""

import sys


def show_progress(done: int, total: int) -> None:
    """Tell on stderr how far a work is: `model.sample(..., watch=vdiff.show_progress)`.

    done, total: numbers of pictures. In a terminal and in a notebook the line writes over itself;
    where the output goes into a file, only the end is told.

    >>> from contextlib import redirect_stderr
    >>> with redirect_stderr(sys.stdout):
    ...     show_progress(8, 16)
    ...     show_progress(16, 16)
    16 of 16 pictures
    """
    told = f"{done:,} of {total:,} pictures"
    # the stream of a notebook's cell need not call itself a terminal, but obeys the carriage return
    is_live = sys.stderr.isatty() or "ipykernel" in sys.modules
    if is_live:
        sys.stderr.write(f"\r{told}")
    if done >= total:
        sys.stderr.write("\n" if is_live else f"{told}\n")
    sys.stderr.flush()
