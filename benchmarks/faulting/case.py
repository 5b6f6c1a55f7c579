"""One damaged file or hostile input: a working folder, commands in it,
and what must be true after each.
"""

import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from . import state
from .episode import check_output, last_lines
from .outcome import Outcome
from .service import Ended, Meanwhile, Service
from .state import Seen, look
from .world import World

MOST_BYTES = 500 * 2**20
CANARY = "canary"
"""The file that hostile code tries to make."""
PRECIOUS = "precious"
"""A folder beside the run that nothing may touch."""


class Case:
    """Commands in a folder that begins in a state of the undisturbed chain."""

    def __init__(
        self, world: World, service: Service, outcome: Outcome, begins: str, keep: bool = False
    ) -> None:
        self._world, self._service, self._keep, self._outcome = world, service, keep, outcome
        self.folder = world.begin(begins, f"{outcome.fault.kind}-{outcome.fault.number}")
        self.rng = outcome.fault.rng()
        (self.folder / PRECIOUS).mkdir()
        (self.folder / PRECIOUS / "letter.txt").write_text("do not touch")

    def say(self, what: str) -> None:
        """What the fault is, in words; `and ...` adds to it."""
        self._outcome.what = f"{self._outcome.what}, {what}" if what.startswith("and ") else what

    def miss(self, goal: str, found: str) -> None:
        """A goal was missed."""
        self._outcome.miss(goal, found)

    def vdiff(
        self,
        *arguments: str,
        codes: Collection[int],
        unless_used: str = "used",
        fails: Mapping[str, int] | None = None,
        meanwhile: Meanwhile | None = None,
    ) -> Ended:
        """Run a command that must end with one of `codes`;
        with 0 in spite of them, it has used what it should not.

        fails, meanwhile: see `Service`.
        """
        before = look_without_stores(self.folder)
        ended = self._service(self.folder, *arguments, fails=fails, meanwhile=meanwhile)
        self._note(arguments, ended)
        self._check(ended)
        if ended.code not in codes and ended.code is not None:
            said = f"`vdiff {' '.join(arguments)}` gives {ended.code}: {last_lines(ended.output)}"
            self.miss(unless_used if ended.code == 0 else "wrong end", said)
        after = look_without_stores(self.folder)
        whole = {name: digest for name, digest in before.models.items() if digest != "damaged"}
        if found := state.lost(Seen(whole), Seen(after.models)):
            self.miss("lost", ", ".join(found))
        return ended

    def completes(
        self,
        *commands: tuple[str, ...],
        like: str = "complete",
        parts: tuple[str, ...] = ("models", "log", "store"),
    ) -> None:
        """These commands must go through, and leave what an undisturbed chain does."""
        for command in commands:
            self.vdiff(*command, codes={0})
        seen = look(self.folder)
        if found := state.differences(seen, self._world.seen(like), parts):
            self.miss("differs", "; ".join(found))
        if seen.invalid:
            self.miss("invalid", ", ".join(seen.invalid))
        if left := state.leftovers(self.folder):
            self.miss("left over", ", ".join(left))

    def reference(self, name: str = "complete") -> Seen:
        """What an undisturbed chain leaves."""
        return self._world.seen(name)

    def close(self) -> None:
        """The folder goes, unless something was found that somebody may want to look at."""
        if self._keep and self._outcome.missed:
            self._outcome.where = f"; see {self.folder}"
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _check(self, ended: Ended) -> None:
        check_output(self._outcome, ended.output)
        if ended.code is None:
            self.miss("hang", "it did not end")
        elif ended.code < 0:
            self.miss("wrong end", f"it died of signal {-ended.code}")
        elif ended.code and not ("error: " in ended.output and "fix: " in ended.output):
            self.miss(
                "wrong end", f"exit code {ended.code} without a message: {last_lines(ended.output)}"
            )
        if ended.grown_bytes > MOST_BYTES:
            self.miss("wrong end", f"it took {ended.grown_bytes / 2**20:.0f} MB")
        if ended.held:
            self.miss("left over", f"still held: {', '.join(ended.held)}")
        if canaries := named(self._world.root, CANARY):
            self.miss("executed", "the canary is there")
            for path in canaries:
                path.unlink(missing_ok=True)
        letter, there = (
            self.folder / PRECIOUS / "letter.txt",
            sorted(self.folder.glob(f"{PRECIOUS}/*")),
        )
        if there != [letter] or letter.read_text() != "do not touch":
            self.miss(
                "executed", f"a folder outside the run was touched: {[path.name for path in there]}"
            )

    def _note(self, arguments: tuple[str, ...], ended: Ended) -> None:
        with (self.folder / "faults.txt").open("a") as file:
            file.write(f"== vdiff {' '.join(arguments)} -> {ended.code}\n{ended.output}\n")


def named(root: Path, name: str) -> list[Path]:
    """The paths of this name below a folder where other cases work:
    what vanishes meanwhile is passed by.
    """
    return [
        Path(place, name) for place, folders, files in os.walk(root) if name in (*folders, *files)
    ]


def look_without_stores(folder: Path) -> Seen:
    """As `look`, but for the store, which may be damaged and then kills whoever reads it."""
    marks = (folder / state.RUN).glob("[!.]*/vdiff.json")
    return Seen(
        {
            mark.parent.name: "damaged"
            if state.damage(mark)
            else state.sha256(mark.parent / state.WEIGHTS)
            for mark in marks
        }
    )


def update_of(line: str) -> tuple[str, int] | None:
    """Stage and update of a line of the log; None for anything else."""
    try:
        entry = json.loads(line)
        return str(entry["stage"]), int(entry["update"])
    except (ValueError, KeyError, TypeError):
        return None


def names_a_line(output: str) -> bool:
    """Whether a message says where in a recipe: `recipe.yaml:3:5`."""
    return bool(re.search(r"\.yaml:\d+:\d+", output))
