"""What an earlier evaluation knows already:
its rows, as long as they hold under the same conditions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from vdiff import __version__
from vdiff.errors import UsageError
from vdiff.evaluation.subjects import Subject
from vdiff.metrics.table import EvaluationRow, EvaluationTable, Protocol


@dataclass(frozen=True)
class KnownRows:
    """A table that is there, or none."""

    table: EvaluationTable | None = None

    def row(self, subject: Subject, sampler: str | None = None) -> EvaluationRow | None:
        """What is known of a model at this number of steps, drawn like this.

        sampler: as in `EvaluationRow`.
        """
        if self.table is None:
            return None
        key = (subject.card.hash, subject.num_steps, subject.role, sampler)
        for row in self.table.rows:
            if (row.hash, row.num_steps, row.role, row.sampler) == key:
                return row
        return None

    def beside_others(
        self, rows: Sequence[EvaluationRow], subjects: Sequence[Subject]
    ) -> list[EvaluationRow]:
        """New rows, and those of the same run under another guidance; without guidance come first.

        subjects: all of the run: what is known of others is of models that are gone.
        """
        if self.table is None:
            return list(rows)
        present: set[tuple[str, int, str]] = set()
        for each in subjects:
            present.add((each.card.hash, each.num_steps, each.role))
            if each.role == "undistilled":
                # where solvers are not asked for, what is known of them stays
                present.add((each.card.hash, each.num_steps, "solved"))
        new = {(row.hash, row.num_steps, row.role, row.guidance) for row in rows}
        kept = [
            row
            for row in self.table.rows
            if (row.hash, row.num_steps, row.role) in present
            and (row.hash, row.num_steps, row.role, row.guidance) not in new
        ]
        if not kept:
            return list(rows)
        return sorted([*rows, *kept], key=lambda row: (row.g != 1, row.g))

    def with_rows(
        self, rows: Sequence[EvaluationRow], protocol: Protocol, machine: str
    ) -> EvaluationTable:
        """The table of these rows. protocol, machine: of those that are new."""
        before = self.table
        made = datetime.now(UTC).isoformat(timespec="seconds")
        if before is None:
            return EvaluationTable(
                protocol=protocol,
                made=made,
                made_by=f"vdiff {__version__}",
                machine=machine,
                rows=tuple(rows),
            )
        known = before.protocol.joined_with(protocol)
        if all(row in before.rows for row in rows):
            return before.model_copy(update={"protocol": known, "rows": tuple(rows)})
        machines = "; ".join(dict.fromkeys([*before.machine.split("; "), machine]))
        return EvaluationTable(
            protocol=known,
            made=made,
            made_by=f"vdiff {__version__}",
            machine=machines,
            rows=tuple(rows),
        )


def check_comparable(before: EvaluationTable | None, asked: Protocol, path: Path) -> None:
    """UsageError for a table beside whose numbers the new ones must not stand;
    further metrics may.
    """
    if before is None:
        return
    different = before.protocol.difference(asked)
    if different is not None:
        problem = (
            f"`{path}` holds numbers of another protocol ({different}), "
            "which cannot be compared with these"
        )
        raise UsageError(problem, "ask for the same again, or replace the table with --force", path)
