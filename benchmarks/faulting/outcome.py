"""What became of each fault, and the table of all."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from .draw import SHARES, Fault

GOALS = {
    "lost": "something published before is gone or changed",
    "invalid": "a published folder, store or picture is not whole",
    "differs": "the completed run is not the unbroken one",
    "used": "a damaged file was used",
    "executed": "code from a file ran, or something outside the run was touched",
    "hang": "it had not ended after a minute, or left a process behind",
    "traceback": "a bare traceback",
    "wrong end": "an exit code or message that does not fit the fault",
    "left over": "temporary files stayed",
}
"""The ways to miss the goal, each of which must have happened 0 times."""


@dataclass
class Outcome:
    """What became of a fault. what: in words.   missed: (one of GOALS, what was found) each.

    is_injected: False where the command ended every time before it could be struck.
    """

    fault: Fault
    what: str
    missed: list[tuple[str, str]] = field(default_factory=list)
    is_injected: bool = True
    where: str = ""

    def miss(self, goal: str, found: str) -> None:
        """Note that a goal was missed."""
        assert goal in GOALS, goal
        self.missed.append((goal, found))

    def lines(self) -> list[str]:
        """The failure, for a person: what it was and how to repeat it."""
        found = "; ".join(f"{goal}: {text}" for goal, text in self.missed)
        again = f"--seed {self.fault.seed} --only {self.fault.number}"
        return [
            (
                f"FAILED {self.fault.kind} {self.fault.number} ({self.what}): "
                f"{found}{self.where}   [{again}]"
            )
        ]


def table(outcomes: Sequence[Outcome]) -> str:
    """A row per kind, and the totals."""
    kinds = [kind for kind in SHARES if any(outcome.fault.kind == kind for outcome in outcomes)]
    rows = [_row(kind, [each for each in outcomes if each.fault.kind == kind]) for kind in kinds]
    lines = [["fault", "injected", "survived", *GOALS], *rows, _row("total", outcomes)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    texts = [
        "| "
        + " | ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    return "\n".join([texts[0], rule, *texts[1:]])


def _row(name: str, outcomes: Sequence[Outcome]) -> list[str]:
    injected = [each for each in outcomes if each.is_injected]
    survived = [each for each in injected if not each.missed]
    missed = [sum(goal in dict(each.missed) for each in outcomes) for goal in GOALS]
    return [name, *map(str, [len(injected), len(survived), *missed])]
