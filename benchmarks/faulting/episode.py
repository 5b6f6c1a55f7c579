"""One run struck several times, then completed and compared with an undisturbed one."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import vdiff

from . import state
from .outcome import Outcome
from .process import HANG_SECONDS, Process
from .state import Seen, look
from .strike import Strike
from .world import World

TRIES = 5
MOST = 8
"""Strikes at one run before it is completed."""

CODES = frozenset({0, 1, 2, 3, 4, 5, 6, 7, 130, 137, 138, 143})


class Episode:
    """A working folder, and the strikes at the program that works in it."""

    def __init__(self, world: World, strikes: Sequence[Strike], keep: bool = False) -> None:
        self._world, self._strikes, self._keep = world, strikes, keep
        self._program = strikes[0].program
        self._name = f"{self._program.name}-{strikes[0].fault.number}".replace(" ", "_")
        self._copies = 0
        self._since: list[Outcome] = []
        self._folder = self._begin()

    def run(self) -> list[Outcome]:
        """Strike, look, strike again; complete and compare at the end."""
        outcomes = [self._strike(strike) for strike in self._strikes]
        self._complete()
        if not self._keep or not any(outcome.missed for outcome in outcomes):
            shutil.rmtree(self._folder)
        return outcomes

    def _begin(self) -> Path:
        self._copies += 1
        folder = self._world.begin(self._program.begins, f"{self._name}.{self._copies}")
        self._before = look(folder)
        self._since = []
        return folder

    def _strike(self, strike: Strike) -> Outcome:
        outcome = Outcome(strike.fault, strike.describe(strike.moment), is_injected=False)
        self._since.append(outcome)
        moment = strike.moment
        for attempt in range(TRIES):
            if outcome not in self._since:  # what went before is complete
                self._since.append(outcome)
            process = Process(self._program.command, self._folder)
            is_struck = process.reach(moment)
            if is_struck:
                strike.hit(process, attempt)
            is_ended = process.wait()
            left = process.leave_nothing() if is_ended else ["it did not end"]
            process.kill()
            self._note(process.output, f"{strike.describe(moment)} -> {process.code}")
            outcome.what = strike.describe(moment)
            if left:
                outcome.miss("hang", f"{HANG_SECONDS:.0f} s later there is still {', '.join(left)}")
            # a full disk that nothing was written to, like a blow that came too late, was none
            outcome.is_injected = is_struck and not (
                strike.fault.kind == "disk" and process.code == 0
            )
            self._judge(outcome, strike, process, is_struck)
            if outcome.is_injected or outcome.missed:
                break
            moment = moment.earlier()
        if outcome.missed:
            self._renew()
        return outcome

    def _judge(self, outcome: Outcome, strike: Strike, process: Process, is_struck: bool) -> None:
        check_output(outcome, process.output)
        code = process.code
        if code not in ({*strike.codes, 0} if is_struck else {0}):
            outcome.miss("wrong end", f"exit code {code}: {last_lines(process.output)}")
        if code == 6 and "fix:" not in process.output:
            outcome.miss(
                "wrong end", f"no message with its exit code 6: {last_lines(process.output)}"
            )
        seen = look(self._folder)
        check_seen(outcome, self._before, seen)
        self._check_pictures(outcome, seen)
        if strike.fault.kind == "disk" and code == 6 and (found := state.leftovers(self._folder)):
            outcome.miss("left over", ", ".join(found))
        if strike.asks and code == 128 + strike.asks:
            _check_saved(outcome, seen)
        self._before = seen
        if code == 0:
            self._compare()
            self._renew()

    def _check_pictures(self, outcome: Outcome, seen: Seen) -> None:
        wanted = self._world.seen(self._program.ends).pictures
        broken = [name for name, digest in seen.pictures.items() if wanted.get(name) != digest]
        if broken and "pictures" in self._program.parts:
            outcome.miss("invalid", f"{broken[0]} is not what it should be")

    def _complete(self) -> None:
        """Run the command once more, undisturbed."""
        if not self._since:
            return
        process = Process(self._program.command, self._folder)
        is_ended = process.wait(2 * HANG_SECONDS)
        left = process.leave_nothing(5) if is_ended else ["it did not end"]
        process.kill()
        self._note(process.output, f"completed -> {process.code}")
        last = self._since[-1]
        check_output(last, process.output)
        if left:
            last.miss("hang", f"the undisturbed command: {', '.join(left)}")
        if process.code != 0:
            last.miss(
                "wrong end",
                f"the same command again gives {process.code}: {last_lines(process.output)}",
            )
        seen = look(self._folder)
        check_seen(last, self._before, seen)
        self._compare()

    def _compare(self) -> None:
        """The completed run must be as if nothing had happened."""
        last = self._since[-1]
        found = state.differences(
            look(self._folder), self._world.seen(self._program.ends), self._program.parts
        )
        others = [str(outcome.fault.number) for outcome in self._since[:-1]]
        after = f" (struck before by {', '.join(others)})" if others else ""
        if found:
            last.miss("differs", "; ".join(found) + after)
        if left := state.leftovers(self._folder):
            last.miss("left over", ", ".join(left) + after)

    def _renew(self) -> None:
        """Go on in a new folder: this one is complete, or has failed."""
        if self._keep and any(outcome.missed for outcome in self._since):
            for outcome in self._since:
                outcome.where = f"; see {self._folder}"
        else:
            shutil.rmtree(self._folder)
        self._folder = self._begin()

    def _note(self, output: str, title: str) -> None:
        with (self._folder / "faults.txt").open("a") as file:
            file.write(f"== {title}\n{output}\n")


def check_output(outcome: Outcome, output: str) -> None:
    """No traceback that goes through vdiff: launchers of others print their own."""
    package = str(Path(vdiff.__file__).parent)
    for block in re.findall(r"Traceback \(most recent call last\):\n(?:[ \t|+].*\n|\n)*.*", output):
        if package in block or ("runpy" not in block and "torch/distributed" not in block):
            outcome.miss("traceback", block.splitlines()[-1])
            return


def check_seen(outcome: Outcome, before: Seen, after: Seen) -> None:
    """Nothing published is lost, and what is published is whole."""
    if found := state.lost(before, after):
        outcome.miss("lost", ", ".join(found))
    if after.invalid:
        outcome.miss("invalid", ", ".join(after.invalid))


def last_lines(output: str) -> str:
    """The end of an output, on one line."""
    return " / ".join(output.strip().splitlines()[-4:])[-400:]


def _check_saved(outcome: Outcome, seen: Seen) -> None:
    """A stage that a signal ended is saved at its last update."""
    told = re.findall(r'"stage": "(\w+)", "update": (\d+)', seen.log[-1]) if seen.log else []
    for stage, update in told:
        if stage not in seen.models and seen.points.get(stage, 0) < int(update):
            outcome.miss(
                "lost",
                f"{stage} was at update {update} and is saved at {seen.points.get(stage, 0)}",
            )
