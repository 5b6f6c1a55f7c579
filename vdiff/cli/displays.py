"""Live displays: the bars and tables a person watches while vdiff works."""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vdiff.chain.plan import BASE
from vdiff.cli.console import say, stderr
from vdiff.cli.options import mode
from vdiff.cli.progress import (
    Clock,
    Fit,
    FitLines,
    Pace,
    PrepareLines,
    PrepareProgress,
    duration,
    ever_more_rarely,
    number,
    steadily,
)
from vdiff.training.progress import Progress, StageRow


def fit_progress(is_silent: bool = False) -> Progress:
    """Progress of training one network: live in a terminal, else lines;
    nothing with --quiet or when `is_silent`.
    """
    if _is_live(is_silent):
        return FitDisplay()
    return FitLines(_writer(is_silent), pause=_pause())


def chain_progress(is_silent: bool = False) -> Progress:
    """Progress of a chain of stages, as `fit_progress`."""
    if _is_live(is_silent):
        return ChainDisplay()
    return FitLines(_writer(is_silent), pause=_pause())


def prepare_progress(is_silent: bool = False, unit: str | None = None) -> PrepareProgress:
    """Progress of preparing pictures, as `fit_progress`. unit:
    what is counted instead, where none is skipped.
    """
    if _is_live(is_silent):
        return PrepareDisplay(unit=unit)
    return PrepareLines(_writer(is_silent), unit=unit, pause=_pause())


def _is_live(is_silent: bool) -> bool:
    if is_silent or mode.quiet or is_notebook():
        return False
    # a dumb terminal, such as the shell inside Emacs, cannot move its cursor up
    return stderr.file.isatty() and not stderr.is_dumb_terminal


def is_notebook() -> bool:
    """Whether what is printed goes into the cell of a notebook.

    It looks like a terminal, but nothing that was printed there can be painted over, and all of it
    is kept.
    """
    if "JPY_PARENT_PID" in os.environ or "COLAB_RELEASE_TAG" in os.environ:
        return True
    # a kernel that an editor has started sets neither, but has pictures drawn in the cell
    return "inline" in os.environ.get("MPLBACKEND", "")


def _pause() -> Callable[[float], float]:
    if is_notebook():
        return ever_more_rarely
    return steadily


def _writer(is_silent: bool) -> Callable[[str], None]:
    if is_silent:
        return _silence
    return say


def _silence(text: str) -> None: ...


class _Display:
    """A live region at the foot of the terminal.

    It is drawn when it is told something, ten times a second at most, and by no thread of its own:
    threads and the forked workers of a data loader do not mix.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self._drawn = float("-inf")
        self._live = Live(
            console=stderr, auto_refresh=False, redirect_stdout=False, vertical_overflow="crop"
        )

    def frame(self) -> RenderableType:
        raise NotImplementedError

    def draw(self, at_once: bool = True) -> None:
        if not at_once and self.clock() - self._drawn < 0.1:
            return
        self._drawn = self.clock()
        self._live.start()
        self._live.update(self.frame(), refresh=True)

    def note(self, text: str) -> None:
        say(text)

    def close(self) -> None:
        if self._live.is_started:
            self.draw()
            self._live.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *err: object) -> None:
        self.close()


class PrepareDisplay(_Display):
    """The bar of `vdiff prepare`."""

    pace: Pace | None = None
    skipped = 0

    def __init__(self, clock: Clock = time.monotonic, unit: str | None = None) -> None:
        super().__init__(clock)
        self._unit = unit

    def update(self, stored: int, skipped: int, total: int) -> None:
        # from the first call on: what an earlier start has done counts for no speed
        self.pace = self.pace or Pace(total, stored + skipped, self.clock)
        self.pace.at(stored + skipped)
        self.skipped = skipped
        self.draw(at_once=stored + skipped == total)

    def frame(self) -> RenderableType:
        if not self.pace:
            return Text()
        if self._unit is not None:
            return _bar(self._unit, self.pace)
        skipped = Text(f"{self.skipped:,} skipped")
        if self.skipped:
            skipped.stylize("yellow")
        return Group(
            _bar("pictures", self.pace),
            _facts([skipped, Text(f"{self.pace.per_second:,.0f} images/s")]),
        )


class FitDisplay(_Display):
    """The bar of one training: updates, loss, gradient, rate, images/s, time left, last save."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        super().__init__(clock)
        self.rows: dict[str, StageRow] = {}
        self.fit: Fit | None = None
        self.last_save = ""

    def show_stages(self, stages: Sequence[StageRow]) -> None:
        self.rows = {row.name: row for row in stages}
        for row in stages:
            if row.state == "skipped":
                self.note(f"`{row.name}` is complete already")

    def begin(self, stage: str, updates: int, first_update: int) -> None:
        self.fit = Fit(stage, Pace(updates, first_update, self.clock))
        self.last_save = ""
        self._change(stage, state="running", updates=updates)

    def update(
        self,
        update: int,
        loss: float,
        grad_norm: float,
        learning_rate: float,
        images_per_second: float,
    ) -> None:
        if self.fit:
            self.fit.update(update, loss, grad_norm, learning_rate, images_per_second)
            self.draw(at_once=False)

    def saved(self, what: str) -> None:
        self.last_save = what
        self.draw()

    def end(self, stage: str, loss: float, seconds: float) -> None:
        self._change(stage, state="done", loss=loss, seconds=seconds)

    def frame(self) -> RenderableType:
        if not self.fit:
            return Text()
        facts = [Text(fact) for fact in self.fit.facts()]
        if self.last_save:
            facts.append(Text.assemble("saved ", (self.last_save, "cyan")))
        return Group(_bar(self.fit.stage, self.fit.pace), _facts(facts))

    def _change(self, stage: str, **changes: Any) -> None:
        if stage in self.rows:
            self.rows[stage] = self.rows[stage]._replace(**changes)
        self.draw()


class ChainDisplay(FitDisplay):
    """A table with a row per stage, above the bar of the one that runs."""

    def show_stages(self, stages: Sequence[StageRow]) -> None:
        self.rows = {row.name: row for row in stages}
        self.draw()

    def frame(self) -> RenderableType:
        is_running = any(row.state == "running" for row in self.rows.values())
        if not is_running:
            return self._table()
        return Group(self._table(), super().frame())

    def _table(self) -> RenderableType:
        rows = self._visible()
        before = max(len(str(row.start_steps)) for row in rows)
        after = max(len(str(row.num_steps)) for row in rows)
        cells = [[row.name, _steps(row, before, after), *self._numbers(row)] for row in rows]
        # at least 7, so that no column jumps when the first `running` or time comes into it
        widths = [max(7, *map(cell_len, column)) for column in zip(_COLUMNS, *cells, strict=True)]
        shown = _fitting(widths, stderr.width)
        rule = "─"
        if stderr.options.ascii_only:
            # under LANG=C the terminal would show `?` for every one
            rule = "-"
        lines = [_line(_COLUMNS, widths, shown, "bold")]
        lines.append(Text(rule * _total(widths, shown), "bright_black", no_wrap=True))
        lines += [
            _line(texts, widths, shown, "", _STATES[row.state])
            for row, texts in zip(rows, cells, strict=True)
        ]
        return Group(*lines)

    def _visible(self) -> list[StageRow]:
        """The rows that fit on the screen, with the running one among them."""
        rows = list(self.rows.values())
        # two lines of head, two of bar and facts, and two that stay free
        room = max(stderr.height - 6, 1)
        active = next(
            (i for i, row in enumerate(rows) if row.state in ("running", "waiting")), len(rows)
        )
        first = min(max(active - room // 2, 0), max(len(rows) - room, 0))
        return rows[first : first + room]

    def _numbers(self, row: StageRow) -> list[str]:
        loss = row.loss
        seconds = row.seconds
        if row.state == "running" and self.fit:
            loss = self.fit.loss.value
            seconds = self.fit.pace.seconds
        texts = [row.state, f"{row.updates:,}", "", ""]
        if loss is not None:
            texts[2] = number(loss)
        if seconds is not None:
            texts[3] = duration(seconds)
        return texts


def _steps(row: StageRow, before: int, after: int) -> str:
    """`1024 ->  512`, aligned with the other rows."""
    # the base comes from no steps; its own stand below those of the students
    if row.name == BASE:
        return f"{'':>{before}}    {row.num_steps:>{after}}"
    return f"{row.start_steps:>{before}} -> {row.num_steps:>{after}}"


_COLUMNS = ("stage", "steps", "state", "updates", "loss", "time")
_NAME = 0
_STATE = 2
_BY_IMPORTANCE = (_NAME, _STATE, 1, 4, 3, 5)
_GAP = "  "
_STATES = {
    "done": "green",
    "skipped": "bright_black",
    "running": "bold cyan",
    "waiting": "bright_black",
}


def _fitting(widths: Sequence[int], room: int) -> list[int]:
    """The most important columns that fit side by side, in their order."""
    chosen: list[int] = []
    for column in _BY_IMPORTANCE:
        if _total(widths, [*chosen, column]) <= room:
            chosen.append(column)
    return sorted(chosen)


def _total(widths: Sequence[int], shown: Sequence[int]) -> int:
    return sum(widths[column] for column in shown) + len(_GAP) * (len(shown) - 1)


def _line(
    cells: Sequence[str], widths: Sequence[int], shown: Sequence[int], style: str, state: str = ""
) -> Text:
    """One row: names and states begin at the left of their column, numbers end at its right."""
    line = Text(style=style, no_wrap=True, overflow="ellipsis")
    for column in shown:
        text = Text(cells[column])
        if column == _STATE:
            text.style = state
        if column in (_NAME, _STATE):
            text.align("left", widths[column])
        else:
            text.align("right", widths[column])
        if column != shown[0]:
            line.append(_GAP)
        line.append_text(text)
    return line


def _bar(label: str, pace: Pace) -> RenderableType:
    """`label`, a bar, and as much of counts, percent and time left as the width allows."""
    left = f"{duration(pace.seconds_left)} left"
    if pace.done >= pace.total:
        left = duration(pace.seconds)
    # the most telling first; each is 2 apart from the next, and a bar of under 10 tells nothing
    texts = {"percent": pace.percent, "left": f"{left:>10}", "counts": pace.counts}
    room = stderr.width - len(label) - 1 - 10
    taken = 0
    shown: list[str] = []
    for name, text in texts.items():
        if taken + len(text) <= room or not shown:
            shown.append(name)
            taken += len(text) + 2
    line = Table.grid(expand=True, padding=(0, 1, 0, 0))
    line.add_column(no_wrap=True, overflow="ellipsis")
    line.add_column(ratio=1, min_width=1)
    bar = ProgressBar(total=pace.total, completed=pace.done, width=None)
    if not pace.total:
        # nothing to do is done
        bar = ProgressBar(total=1, completed=1, width=None)
    cells = [Text(texts[name]) for name in ("counts", "percent", "left") if name in shown]
    for _ in cells:
        line.add_column(no_wrap=True, justify="right")
    line.add_row(Text(label, "bold"), bar, *cells)
    return line


def _facts(facts: Sequence[Text]) -> Text:
    """The first of the `facts` that fit on one line."""
    line = Text(no_wrap=True, overflow="ellipsis")
    for fact in facts:
        if line.cell_len and line.cell_len + fact.cell_len + 3 > stderr.width:
            break
        if line.cell_len:
            line.append("   ")
        line.append_text(fact)
    return line
