"""How far a run is, in numbers and in plain lines for logs; no terminal needed."""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

from vdiff.chain.plan import BASE
from vdiff.training.report import StageRow

Clock = Callable[[], float]

SECONDS_PER_LINE = 30.0
"""Without a terminal there is one line of progress in this time."""


def steadily(seconds: float) -> float:
    """Seconds until the next line, for a log that may be long."""
    return SECONDS_PER_LINE


def ever_more_rarely(seconds: float) -> float:
    """The same where every line stays on the page: 3 s at first, 30 s after five minutes, 5 minutes after an hour.

    seconds: since the work began.
    """
    return min(max(seconds / 10, 3.0), 300.0)


def duration(seconds: float | None) -> str:
    """Seconds as `0:42`, `12:31` or `1:02:03`; `-:--` when unknown."""
    if seconds is None or not math.isfinite(seconds):
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def number(value: float | None) -> str:
    """A loss or a norm in at most eight characters."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1000 else f"{value:.2e}"


class Pace:
    """How much of `total` is done, how fast, and how long the rest will take at the speed of the last half minute."""

    def __init__(self, total: int, done: int = 0, clock: Clock = time.monotonic) -> None:
        self.total, self.done, self.clock = total, done, clock
        self.began = clock()
        self._seen = deque([(self.began, done)], maxlen=60)

    def at(self, done: int) -> None:
        """`done` of `total` are done now."""
        self.done = done
        now = self.clock()
        if now - self._seen[-1][0] >= 0.5 or len(self._seen) < 3:
            self._seen.append((now, done))

    @property
    def per_second(self) -> float:
        (first, before), (last, after) = self._seen[0], self._seen[-1]
        return (after - before) / (last - first) if last > first else 0.0

    @property
    def seconds(self) -> float:
        return self.clock() - self.began

    @property
    def seconds_left(self) -> float | None:
        return (self.total - self.done) / self.per_second if self.per_second > 0 else None

    @property
    def share(self) -> float:
        return min(self.done / self.total, 1.0) if self.total else 0.0

    @property
    def counts(self) -> str:
        """`  120/2,000`, as wide at the start as at the end."""
        total = f"{self.total:,}"
        return f"{self.done:>{len(total)},}/{total}"

    @property
    def percent(self) -> str:
        return f"{math.floor(100 * self.share):>3}%"


class Smooth:
    """An average that forgets: each value counts 0.98 times as much as the next one."""

    keep = 0.98

    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def add(self, value: float) -> None:
        if math.isfinite(value):
            self._sum = self.keep * self._sum + value
            self._weight = self.keep * self._weight + 1

    @property
    def value(self) -> float | None:
        return self._sum / self._weight if self._weight else None


@dataclass
class Fit:
    """What is known about the stage that runs."""

    stage: str
    pace: Pace
    loss: Smooth = field(default_factory=Smooth)
    grad_norm: float = math.nan
    learning_rate: float = math.nan
    images_per_second: float = math.nan

    def update(
        self,
        update: int,
        loss: float,
        grad_norm: float,
        learning_rate: float,
        images_per_second: float,
    ) -> None:
        self.pace.at(update)
        self.loss.add(loss)
        self.grad_norm, self.learning_rate, self.images_per_second = (
            grad_norm,
            learning_rate,
            images_per_second,
        )

    def facts(self) -> list[str]:
        """Numbers of the last update, the most telling first."""
        if self.loss.value is None:
            return ["no update yet"]
        facts = [f"loss {number(self.loss.value)}", f"gradient {number(self.grad_norm)}"]
        if math.isfinite(self.learning_rate):
            facts.append(f"rate {self.learning_rate:.2e}")
        if math.isfinite(self.images_per_second):
            facts.append(f"{self.images_per_second:,.0f} images/s")
        return facts


class PrepareProgress(Protocol):
    """Whoever wants to know how far the pictures are; used as a context manager, `close` comes last."""

    def update(self, stored: int, skipped: int, total: int) -> None:
        """Of `total` pictures, `stored` are in the store and `skipped` are left out."""

    def note(self, text: str) -> None:
        """A line of talk."""

    def close(self) -> None:
        """Nothing follows; may be called twice."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *err: object) -> None: ...


class _Lines:
    """Progress as lines: one at every change, and others between. pause: until the next one, see `steadily`."""

    def __init__(
        self,
        write: Callable[[str], None],
        clock: Clock = time.monotonic,
        pause: Callable[[float], float] = steadily,
    ) -> None:
        self.write, self.clock, self.pause = write, clock, pause
        self._began = self._written = clock()

    def note(self, text: str) -> None:
        self._written = self.clock()
        self.write(text)

    def is_due(self) -> bool:
        return self.clock() - self._written >= self.pause(self.clock() - self._began)

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *err: object) -> None:
        self.close()


class FitLines(_Lines):
    """Training and distilling as lines."""

    def __init__(
        self,
        write: Callable[[str], None],
        clock: Clock = time.monotonic,
        pause: Callable[[float], float] = steadily,
    ) -> None:
        super().__init__(write, clock, pause)
        self._rows: dict[str, StageRow] = {}
        self._fit = Fit("", Pace(0, clock=clock))

    def plan(self, stages: Sequence[StageRow]) -> None:
        self._rows = {row.name: row for row in stages}
        for row in stages:
            if row.state == "skipped":
                self.note(f"{row.name}: {_steps(row)}is complete already, skipped")

    def begin(self, stage: str, updates: int, first_update: int) -> None:
        self._fit = Fit(stage, Pace(updates, first_update, self.clock))
        row = self._rows.get(stage)
        goes_on = f", going on at update {first_update:,}" if first_update else ""
        self.note(f"{stage}: {_steps(row) if row else ''}{updates:,} updates{goes_on}")

    def update(
        self,
        update: int,
        loss: float,
        grad_norm: float,
        learning_rate: float,
        images_per_second: float,
    ) -> None:
        self._fit.update(update, loss, grad_norm, learning_rate, images_per_second)
        if self.is_due():
            pace = self._fit.pace
            facts = ", ".join(self._fit.facts())
            counts = f"update {pace.done:,} of {pace.total:,} ({pace.percent.strip()})"
            self.note(f"{self._fit.stage}: {counts}, {facts}, {duration(pace.seconds_left)} left")

    def saved(self, what: str) -> None:
        self.note(f"{self._fit.stage}: saved {what}")

    def end(self, stage: str, loss: float, seconds: float) -> None:
        self.note(f"{stage}: done, loss {number(loss)}, {duration(seconds)}")


class PrepareLines(_Lines):
    """Preparing pictures as lines. unit: what is counted instead of pictures, where none is skipped."""

    _pace: Pace | None = None

    def __init__(
        self,
        write: Callable[[str], None],
        clock: Clock = time.monotonic,
        unit: str | None = None,
        pause: Callable[[float], float] = steadily,
    ) -> None:
        super().__init__(write, clock, pause)
        self._unit = unit

    def update(self, stored: int, skipped: int, total: int) -> None:
        done = stored + skipped
        if not self._pace:
            self._pace = Pace(total, done, self.clock)
            self.note(
                f"{total:,} {self._unit or 'pictures'}"
                + (f", {done:,} of them done before" if done > 1 else "")
            )
        self._pace.at(done)
        if self.is_due():
            left = f"{duration(self._pace.seconds_left)} left"
            facts = f"pictures, {skipped:,} skipped, {self._pace.per_second:,.0f} images/s"
            self.note(f"{done:,} of {total:,} {self._unit or facts}, {left}")


def _steps(row: StageRow) -> str:
    return "" if row.name == BASE else f"{row.start_steps} -> {row.num_steps} steps, "
