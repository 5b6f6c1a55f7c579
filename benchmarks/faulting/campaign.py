"""A whole campaign: options, the work in parallel, and what is printed."""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import vdiff

from . import damage, diverged, draw, foreign, hostile, machine, strike
from .draw import SHARES, Fault
from .episode import MOST, Episode
from .outcome import GOALS, Outcome, table
from .service import Service
from .strike import Strike
from .world import BY_TWO, World

Task = Callable[[], list[Outcome]]


class Campaign:
    """Faults, and a folder in which they strike.

    jobs: how many at once.   seconds: no new ones are begun after that.
    say: told about failures and progress.
    """

    def __init__(
        self,
        root: Path,
        faults: Sequence[Fault],
        *,
        jobs: int = 1,
        seconds: float = float("inf"),
        keep: bool = False,
        say: Callable[[str], None] = print,
    ) -> None:
        self._root, self._faults, self._jobs, self._keep, self._say = root, faults, jobs, keep, say
        self._deadline = time.monotonic() + seconds
        self._own = threading.local()
        self._services: list[Service] = []
        self._num_done = 0

    def run(self) -> list[Outcome]:
        """Prepare what faults begin from, inject all, and tell what became of them."""
        try:
            self._world = World(self._root, self._service())
            self._world.build(
                {
                    strike.program_of(fault).name
                    for fault in self._faults
                    if fault.kind not in _CASES
                }
            )
            with ThreadPoolExecutor(self._jobs) as pool:
                found = list(pool.map(self._do, self._tasks()))
        finally:
            for service in self._services:
                service.close()
        return sorted(
            (outcome for each in found for outcome in each),
            key=lambda outcome: outcome.fault.number,
        )

    def _tasks(self) -> list[Task]:
        """Several strikes at one run are a task, and so is every other fault;
        in the order of their numbers.
        """
        groups = _together(self._strikes())
        episodes = [
            (strikes[0].fault.number, partial(self._episode, strikes)) for strikes in groups
        ]
        cases = [
            (fault.number, partial(self._case, fault))
            for fault in self._faults
            if fault.kind in _CASES
        ]
        return [task for _, task in sorted([*episodes, *cases], key=lambda pair: pair[0])]

    def _strikes(self) -> list[Strike]:
        durations, startup = self._world.durations, self._service().import_seconds
        return [
            strike.draw(fault, durations, startup)
            for fault in self._faults
            if fault.kind not in _CASES
        ]

    def _do(self, task: Task) -> list[Outcome]:
        if time.monotonic() > self._deadline:
            return []
        outcomes = task()
        for outcome in outcomes:
            for line in outcome.lines() if outcome.missed else []:
                self._say(line)
        self._num_done += len(outcomes)
        self._say(
            f"{self._num_done} of {len(self._faults)}: "
            f"{'; '.join(outcome.what for outcome in outcomes)}"
        )
        return outcomes

    def _episode(self, strikes: Sequence[Strike]) -> list[Outcome]:
        try:
            return Episode(self._world, strikes, self._keep).run()
        except Exception:
            outcome = Outcome(strikes[0].fault, strikes[0].what)
            outcome.miss("wrong end", f"the campaign itself failed: {traceback.format_exc()}")
            return [outcome]

    def _case(self, fault: Fault) -> list[Outcome]:
        outcome = Outcome(fault, fault.kind)
        try:
            _CASES[fault.kind](self._world, self._service(), outcome, self._keep)
        except Exception:
            outcome.miss("wrong end", f"the campaign itself failed: {traceback.format_exc()}")
        return [outcome]

    def _service(self) -> Service:
        """One for each thread."""
        if not hasattr(self._own, "service"):
            self._own.service = Service()
            self._services.append(self._own.service)
        service: Service = self._own.service
        return service


_CASES = {
    "damage": damage.strike,
    "hostile": hostile.strike,
    "foreign": foreign.strike,
    "machine": machine.strike,
    "diverged": diverged.strike,
}


def _together(strikes: Sequence[Strike]) -> Iterator[list[Strike]]:
    """Strikes at the same program, `MOST` at a time (fewer where two processes work:
    they are slow to complete).
    """
    waiting: dict[str, list[Strike]] = {}
    for each in strikes:
        group = waiting.setdefault(each.program.name, [])
        group.append(each)
        if len(group) == MOST - 2 * (each.program.name in BY_TWO):
            yield waiting.pop(each.program.name)
    yield from waiting.values()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a campaign from the command line; 1 when any goal was missed."""
    given = _parser().parse_args(arguments)
    # whoever ignores Ctrl-C, as a background job does, hands that down
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faults = (
        draw.pick(given.seed, given.only)
        if given.only
        else draw.draw(given.seed, given.count, given.kinds)
    )
    began = time.monotonic()
    with _root(given.keep) as root:
        campaign = Campaign(
            root,
            faults,
            jobs=given.jobs,
            seconds=given.seconds,
            keep=given.keep is not None,
            say=_say,
        )
        outcomes = campaign.run()
    print(
        f"\nseed {given.seed}, vdiff {_commit()}, {given.jobs} at a time, "
        f"{(time.monotonic() - began) / 60:.1f} minutes"
    )
    if len(outcomes) < len(faults):
        print(f"the time was up: {len(outcomes)} of {len(faults)} faults were drawn")
    print(f"\n{table(outcomes)}\n")
    missed = [outcome for outcome in outcomes if outcome.missed]
    for outcome in missed:
        print(*outcome.lines(), sep="\n")
    print("every goal is reached" if not missed else f"{len(missed)} faults missed a goal")
    return int(bool(missed))


def _parser() -> argparse.ArgumentParser:
    goals = "\n".join(f"  {goal:<11} {text}" for goal, text in GOALS.items())
    parser = argparse.ArgumentParser(
        description="Strike vdiff with seeded faults and count what is lost.",
        epilog=f"columns of the table, each of which must be 0:\n{goals}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", type=int, default=500, help="how many faults [500]")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn [0]")
    parser.add_argument(
        "--kinds", type=_kinds, default=tuple(SHARES), help=f"some of {','.join(SHARES)} [all]"
    )
    parser.add_argument(
        "--only",
        type=_numbers,
        help="the faults with these numbers, as 17 or 17,23; in one run where they can be",
    )
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="begin no more faults after this time"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="faults at once [one per core]",
    )
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="work there, and keep what failed"
    )
    return parser


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(text.split(","))
    if unknown := set(kinds) - set(SHARES):
        raise argparse.ArgumentTypeError(f"there is no kind {', '.join(unknown)}")
    return kinds


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


@contextlib.contextmanager
def _root(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield Path(tempfile.mkdtemp(prefix="campaign-", dir=keep.resolve()))
        return
    with tempfile.TemporaryDirectory(prefix="vdiff-faults-", ignore_cleanup_errors=True) as folder:
        yield Path(folder).resolve()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _commit() -> str:
    """The commit of the package that is struck, and whether it was changed since."""
    package = Path(vdiff.__file__).parent
    git = ["git", "-C", str(package)]
    found = subprocess.run(
        [*git, "describe", "--always", "--dirty=+changes"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"{vdiff.__version__} {found.stdout.strip()}".strip()
