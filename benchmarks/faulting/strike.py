"""Blows from outside at a command that works: kills, signals and full disks;
when, at whom, and how it may end.
"""

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from .draw import Fault
from .process import HANG_SECONDS, Moment, Process, wait_until
from .world import BY_TWO, FORMS, PROGRAMS, Program

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""Those that save everything."""
_STOPPING = {
    "SIGKILL",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGCHLD",
    "SIGCONT",
    "SIGURG",
    "SIGWINCH",
}
_OTHERS = tuple(
    number for number in signal.Signals if number not in _SIGNALS and number.name not in _STOPPING
)
"""Those that may end a command at once; what is on the disk is whole then."""
_ANY = frozenset(range(-64, 256))


@dataclass(frozen=True)
class Strike:
    """A blow at a program.

    what: in words.   hit: carries it out, at the n-th attempt (from 0).
    codes: how the command may end then, beside 0 for one that was just done.
    asks: the signal after which everything must be saved, 0 for none.
    """

    fault: Fault
    program: Program
    moment: Moment
    what: str
    hit: Callable[[Process, int], None]
    codes: frozenset[int]
    asks: int = 0

    def describe(self, moment: Moment) -> str:
        """What, whom and when, for a person."""
        return f"{self.what}, `{self.program.name}`, {moment}"


def draw(fault: Fault, durations: dict[str, float], startup: float) -> Strike:
    """The strike that a fault of the kinds kill, signal and disk means."""
    rng = fault.rng()
    program = _program(fault.kind, rng)
    moment = _moment(rng, program, durations.get(program.name, 2 * startup), startup)
    what, hit, codes, asks = {"kill": _kill, "signal": _signals, "disk": _disk}[fault.kind](
        rng, program
    )
    return Strike(fault, program, moment, what, hit, codes, asks)


def program_of(fault: Fault) -> Program:
    """The program that a fault of the kinds kill, signal and disk strikes."""
    return _program(fault.kind, fault.rng())


def _program(kind: str, rng: random.Random) -> Program:
    by_two = rng.random()
    name = rng.choices(["prepare", "train", "distill", "sample"], [15, 35, 35, 15])[0]
    form = rng.choice(FORMS)
    if kind == "signal" and by_two < 0.3:
        return PROGRAMS[BY_TWO[by_two > 0.2]]
    return PROGRAMS[f"sample {form}" if name == "sample" else name]


def _moment(rng: random.Random, program: Program, duration: float, startup: float) -> Moment:
    """Anywhere in the command, anywhere in its work, or aimed at something
    that it is about to do.
    """
    choice, share, mark = rng.random(), rng.random(), rng.choice(program.marks)
    if choice < 0.4:
        return Moment(share * duration)
    if choice < 0.6:
        return Moment(share * max(duration - startup, 0.5), program.works)
    return Moment(share**3 * 0.1, mark, rng.randint(1, 5))


Blow = tuple[str, Callable[[Process, int], None], frozenset[int], int]


def _kill(rng: random.Random, program: Program) -> Blow:
    return "kill -9", lambda process, attempt: process.signal(signal.SIGKILL), frozenset({-9}), 0


def _disk(rng: random.Random, program: Program) -> Blow:
    num_bytes = round(10 ** rng.uniform(2, 4.9))
    codes = _ANY if program.name.startswith("torchrun") else frozenset({6})

    def hit(process: Process, attempt: int) -> None:
        process.fill_disk(num_bytes >> 2 * attempt)

    return f"disk full at {num_bytes:,} bytes a file", hit, codes, 0


def _signals(rng: random.Random, program: Program) -> Blow:
    if program.name in BY_TWO and rng.random() < 0.5:
        return _kill_one_of_two(rng, program)
    if rng.random() < 0.3:
        return _other_signal(rng, program)
    first, second = rng.choice(_SIGNALS), rng.choice(_SIGNALS) if rng.random() < 0.3 else None
    pause = rng.random() ** 2
    numbers = [first] if second is None else [first, second]

    def hit(process: Process, attempt: int) -> None:
        process.signal(first)
        if second is not None:
            time.sleep(pause)
            process.signal(second)

    # before a command looks out for signals, they do what they always do
    codes = frozenset(code for number in numbers for code in (128 + number, -number))
    names = " and then ".join(number.name for number in numbers)
    asks = first if second is None and program.name not in BY_TWO else 0
    return names, hit, _ANY if program.name.startswith("torchrun") else codes, asks


def _other_signal(rng: random.Random, program: Program) -> Blow:
    number = rng.choice(_OTHERS)
    codes = frozenset({128 + number, -number})
    return (
        number.name,
        lambda process, attempt: process.signal(number),
        _ANY if program.name in BY_TWO else codes,
        0,
    )


def _kill_one_of_two(rng: random.Random, program: Program) -> Blow:
    victim = rng.choice([None, 0, 1])

    def hit(process: Process, attempt: int) -> None:
        if victim is not None:
            wait_until(lambda: process.rank(victim), HANG_SECONDS)
        process.kill_one(process.pid if victim is None else process.rank(victim))

    if victim is None:
        return "kill -9 of the launcher", hit, frozenset({-9}), 0
    codes = _ANY if program.name.startswith("torchrun") else frozenset({6})
    return f"kill -9 of rank {victim}", hit, codes, 0
