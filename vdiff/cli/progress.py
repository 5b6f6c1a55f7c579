"""How far a run is, in numbers and in plain lines for logs; no terminal needed."""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

from vdiff.chain.plan import BASE
from vdiff.system.plural import count
from vdiff.training.progress import StageRow

Clock = Callable[[], float]

SECONDS_PER_LINE = 30.0
"""Without a terminal there is one line of progress in this time."""


def steadily(seconds: float) -> float:
    """Seconds until the next line, for a log that may be long."""
    return SECONDS_PER_LINE


def ever_more_rarely(seconds: float) -> float:
    """The same where every line stays on the page:
    3 s at first, 30 s after five minutes, 5 minutes after an hour.

    seconds: since the work began.
    """
    return min(max(seconds / 10, 3.0), 300.0)


def duration(seconds: float | None) -> str:
    """Seconds as `0:42`, `12:31`, `1:02:03` or `1 d 7:02:03`; `-:--` when unknown."""
    if seconds is None or not math.isfinite(seconds):
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days:,} d {hours}:{minutes:02}:{rest:02}"
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}"


def number(value: float | None) -> str:
    """A loss or a norm in at most eight characters."""
    if value is None or not math.isfinite(value):
        return "-"
    if value == 0 or 1e-3 <= abs(value) < 1000:
        return f"{value:.4f}"
    return f"{value:.2e}"


class Pace:
    """How much of `total` is done, how fast, and how long the rest will take at the speed of the
    last half minute.
    """

    def __init__(self, total: int, done: int = 0, clock: Clock = time.monotonic) -> None:
        self.total = total
        self.done = done
        self.clock = clock
        self.began = clock()
        self._seen = deque([(self.began, done)], maxlen=60)

    def at(self, done: int) -> None:
        """`done` of `total` are done now."""
        self.done = done
        now = self.clock()
        # 60 points half a second apart are the last half minute, however short an update is;
        # the first ones come at once, so that a time left is shown early
        if now - self._seen[-1][0] >= 0.5 or len(self._seen) < 3:
            self._seen.append((now, done))

    @property
    def per_second(self) -> float:
        first, before = self._seen[0]
        last, after = self._seen[-1]
        # a clock may stand still between two updates
        if last <= first:
            return 0.0
        return (after - before) / (last - first)

    @property
    def seconds(self) -> float:
        return self.clock() - self.began

    @property
    def seconds_left(self) -> float | None:
        if self.per_second <= 0:
            return None
        return (self.total - self.done) / self.per_second

    @property
    def share(self) -> float:
        if not self.total:
            return 0.0
        return min(self.done / self.total, 1.0)

    @property
    def counts(self) -> str:
        """`  120/2,000`, as wide at the start as at the end."""
        total = f"{self.total:,}"
        return f"{self.done:>{len(total)},}/{total}"

    @property
    def percent(self) -> str:
        # rounded down: 100% is said of what is finished only
        return f"{math.floor(100 * self.share):>3}%"


class Smooth:
    """An average that forgets: each value counts 0.98 times as much as the next one."""

    keep = 0.98

    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def add(self, value: float) -> None:
        # an update that fp16 skipped has an infinite loss, which would stay in the average
        if math.isfinite(value):
            self._sum = self.keep * self._sum + value
            self._weight = self.keep * self._weight + 1

    @property
    def value(self) -> float | None:
        if not self._weight:
            return None
        return self._sum / self._weight


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
        self.grad_norm = grad_norm
        self.learning_rate = learning_rate
        self.images_per_second = images_per_second

    def facts(self) -> list[str]:
        """Numbers of the last update, the most telling first."""
        if self.loss.value is None:
            return ["no update yet"]
        facts = [f"loss {number(self.loss.value)}", f"gradient {number(self.grad_norm)}"]
        # both are unknown until the first report of the loop
        if math.isfinite(self.learning_rate):
            facts.append(f"rate {self.learning_rate:.2e}")
        if math.isfinite(self.images_per_second):
            facts.append(f"{self.images_per_second:,.0f} images/s")
        return facts


class PrepareProgress(Protocol):
    """Whoever wants to know how far the pictures are;
    used as a context manager, `close` comes last.
    """

    def update(self, stored: int, skipped: int, total: int) -> None:
        """Of `total` pictures, `stored` are in the store and `skipped` are left out."""

    def note(self, text: str) -> None:
        """A line of talk."""

    def close(self) -> None:
        """Nothing follows; may be called twice."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *err: object) -> None: ...


class _Lines:
    """Progress as lines: one at every change, and others between. pause:
    until the next one, see `steadily`.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        clock: Clock = time.monotonic,
        pause: Callable[[float], float] = steadily,
    ) -> None:
        self.write = write
        self.clock = clock
        self.pause = pause
        self._began = clock()
        self._written = self._began

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

    def show_stages(self, stages: Sequence[StageRow]) -> None:
        self._rows = {row.name: row for row in stages}
        for row in stages:
            if row.state == "skipped":
                self.note(f"{row.name}: {_steps(row)}is complete already, skipped")

    def begin(self, stage: str, updates: int, first_update: int) -> None:
        self._fit = Fit(stage, Pace(updates, first_update, self.clock))
        parts = []
        if stage in self._rows:
            parts.append(_steps(self._rows[stage]))
        parts.append(count(updates, "update"))
        if first_update:
            parts.append(f", going on at update {first_update:,}")
        self.note(f"{stage}: {''.join(parts)}")

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
    """Preparing pictures as lines. unit: what is counted instead of pictures,
    where none is skipped.
    """

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
            line = self._counted(total)
            # an evaluation tells of its first pass when that is done: one alone is of this start
            if done > 1:
                line += f", {done:,} of them done before"
            self.note(line)
        self._pace.at(done)
        if self.is_due():
            facts = [f"{done:,} of {self._counted(total)}"]
            if self._unit is None:
                facts.append(f"{skipped:,} skipped")
                facts.append(f"{self._pace.per_second:,.0f} images/s")
            facts.append(f"{duration(self._pace.seconds_left)} left")
            self.note(", ".join(facts))

    def _counted(self, total: int) -> str:
        if self._unit is None:
            return count(total, "picture")
        return f"{total:,} {self._unit}"


def _steps(row: StageRow) -> str:
    """`8 -> 4 steps, `; the base is no student and halves nothing."""
    if row.name == BASE:
        return ""
    return f"{row.start_steps} -> {row.num_steps} steps, "
