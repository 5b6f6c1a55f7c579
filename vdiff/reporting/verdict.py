"""One sentence from the numbers: what the students keep of the original,
and what the steps would give without them.
"""

import itertools
from collections.abc import Sequence
from typing import Literal

from vdiff.images.images import to_float
from vdiff.metrics.agreement import agreement
from vdiff.metrics.metric import words_for
from vdiff.metrics.table import EvaluationRow, EvaluationTable, Value
from vdiff.reporting.pictures import Gallery, Strip
from vdiff.reporting.quality import metrics_of
from vdiff.reporting.record import Record
from vdiff.reporting.wording import count, counted, number, signed_range


def verdict(record: Record, gallery: Gallery | None) -> str:
    """The sentence; backticks stand around names. What cannot be said yet is not said."""
    if not record.cards:
        return "No model is finished yet."
    if record.table is not None:
        sentence = measured(record.table)
        if sentence:
            return sentence
    if not record.students:
        return "The base network is trained; nothing has been distilled from it yet."
    if gallery is not None:
        return _seen(gallery) or _counted(record)
    return _counted(record)


def _counted(record: Record) -> str:
    last = record.students[-1]
    base = record.base
    if base is None:
        return f"The last student, `{last['name']}`, draws in {counted(last['num_steps'])}."
    times = base["num_steps"] / last["num_steps"]
    return (
        f"The last student, `{last['name']}`, draws in {counted(last['num_steps'])} instead of "
        f"{base['num_steps']:,}: {times:,.0f} times fewer. How well is not measured yet."
    )


def measured(table: EvaluationTable) -> str:
    """From a distance of the evaluation, else from its agreement;
    nothing where it tells neither.
    """
    whole, table = table, table.alike()
    original = next((row for row in table.rows if row.role == "original"), None)
    students = [row for row in table.rows if row.role == "student"]
    students.sort(key=lambda row: row.num_steps)
    if original is None or not students:
        return _apart(whole)
    # the most telling metric comes first: FID where it was measured, else what was
    for metric in metrics_of(table):
        with_metric = [row for row in students if metric in row.metrics]
        if with_metric and metric in original.metrics:
            return _compared(table, metric, original, with_metric)
    last = students[0]
    psnr = _psnr_of(last)
    if psnr is None:
        return ""
    return (
        f"In {counted(last.num_steps)}, `{last.model}` draws what the original draws in "
        f"{original.num_steps:,} to a PSNR of {psnr:.1f} "
        f"dB{_undistilled_psnr(table, last.num_steps)}."
    )


def _apart(table: EvaluationTable) -> str:
    """Of a table whose students and original were measured under other guidance each."""
    strengths = {row.g for row in table.rows if row.role == "student"}
    if len(strengths) != 1 or not any(row.role == "original" for row in table.rows):
        return ""
    g = f"{strengths.pop():g}"
    return (
        f"The students are measured at guidance {g}, the original at another: "
        f"`vdiff evaluate --guidance {g}` sets them beside each other."
    )


def _compared(
    table: EvaluationTable, metric: str, original: EvaluationRow, students: list[EvaluationRow]
) -> str:
    name = words_for(metric).title
    last = students[0]
    best = original.metrics[metric]
    # From the most steps down: a student behind one that is worse is not told,
    # it may be as good by chance.
    equal = list(
        itertools.takewhile(
            lambda row: _as_good(row.metrics[metric], best, metric), reversed(students)
        )
    )
    parts = _beside_solvers(table, metric, students)
    if equal:
        parts.append(
            f"Down to {counted(equal[-1].num_steps)} the students' {name} stays within the 95 % "
            f"interval of the original's in {original.num_steps:,}, or on its better side."
        )
    plain = _undistilled(table, last.num_steps)
    without = ""
    if plain is not None and metric in plain.metrics:
        without = f", without distillation {_with_range(plain.metrics[metric])}"
    parts.append(
        f"In {counted(last.num_steps)}, `{last.model}` has a {name} of "
        f"{_with_range(last.metrics[metric])}; the original in {original.num_steps:,} has "
        f"{_with_range(best)}{without}."
    )
    return " ".join(parts)


def _beside_solvers(
    table: EvaluationTable, metric: str, students: Sequence[EvaluationRow]
) -> list[str]:
    """Where the undistilled base by a solver is as good as the student of as many network calls,
    and where it is not; nothing where no solver was measured.
    """
    solved = {row.all_calls: row for row in table.shown() if row.role == "solved"}
    pairs = [
        (row, solved[row.all_calls])
        for row in sorted(students, key=lambda row: -row.all_calls)
        if row.all_calls in solved and metric in solved[row.all_calls].metrics
    ]
    found: dict[Outcome, list[tuple[EvaluationRow, EvaluationRow]]] = {}
    for pair in pairs:
        found.setdefault(_outcome(*pair, metric), []).append(pair)
    told = [
        f"at {_calls(found[outcome])} {words} ({_told(found[outcome][-1], metric)})"
        for outcome, words in _OUTCOMES.items()
        if outcome in found
    ]
    if not told:
        return []
    whole = "; ".join(told)
    return [f"Beside the best solver on the undistilled base: {whole}."]


Outcome = Literal["lost", "even", "won"]

_OUTCOMES: dict[Outcome, str] = {
    "lost": "a student gains nothing",
    "even": "these pictures show no difference",
    "won": "a student is ahead",
}


def _outcome(student: EvaluationRow, solver: EvaluationRow, metric: str) -> Outcome:
    """Whether the solver is as good as the student, behind it by less than the student's interval
    is wide, or by more.
    """
    own, other = student.metrics[metric], solver.metrics[metric]
    sign = 1
    worst = own.high
    if words_for(metric).better.startswith("more"):
        sign = -1
        worst = own.low
    if sign * other.value <= sign * own.value:
        return "lost"
    if worst is not None and sign * other.value <= sign * worst:
        return "even"
    return "won"


def _calls(pairs: Sequence[tuple[EvaluationRow, EvaluationRow]]) -> str:
    """`8 calls`, `8, 4 and 2 calls`."""
    numbers = [f"{student.all_calls:,}" for student, _ in pairs]
    told = " and ".join(filter(None, [", ".join(numbers[:-1]), numbers[-1]]))
    return f"{told} {'call' if told == '1' else 'calls'}"


def _told(pair: tuple[EvaluationRow, EvaluationRow], metric: str) -> str:
    """At the fewest of these calls: the student's number, and the solver's."""
    student, solver = pair
    values = [number(row.metrics[metric].value) for row in (student, solver)]
    return f"at {student.all_calls:,} {values[0]}, by `{solver.sampler}` {values[1]}"


def _as_good(value: Value, best: Value, metric: str) -> bool:
    """Whether a value lies in the best one's interval, or on its better side:
    that intervals touch proves little.
    """
    if best.low is None or best.high is None:
        return False
    if words_for(metric).better.startswith("more"):
        return value.value >= best.low
    return value.value <= best.high


def _with_range(value: Value) -> str:
    interval = signed_range(value.low, value.high)
    if not interval:
        return number(value.value)
    return f"{number(value.value)} ({interval})"


def _undistilled(table: EvaluationTable, steps: int) -> EvaluationRow | None:
    """The row of the base at so few steps, if it was measured there."""
    for row in table.rows:
        if row.role == "undistilled" and row.num_steps == steps:
            return row
    return None


def _undistilled_psnr(table: EvaluationTable, steps: int) -> str:
    row = _undistilled(table, steps)
    psnr = _psnr_of(row)
    if psnr is None:
        return ""
    return f"; without distillation, to {psnr:.1f} dB"


def _psnr_of(row: EvaluationRow | None) -> float | None:
    """Of the agreement with the original; None where there is none, or an infinite one."""
    if row is None or row.original is None:
        return None
    return row.original.numbers.get("psnr")


def _seen(gallery: Gallery) -> str:
    """From the few pictures that the page shows."""
    original = gallery.strips[0]
    students = [strip for strip in gallery.strips if strip.role == "student"]
    if not students:
        return ""
    last = students[-1]
    plain = [s for s in gallery.strips if s.role == "undistilled" and s.num_steps == last.num_steps]
    without = ""
    if plain:
        without = f", where the undistilled model reaches {_psnr(plain[0], original)}"
    return (
        f"On the {count(len(gallery.seeds), 'picture')} below, `{last.model}` draws in "
        f"{counted(last.num_steps)} what the original draws in {original.num_steps:,} to a PSNR of "
        f"{_psnr(last, original)}{without}. Few pictures: a first look, no measurement."
    )


def _psnr(strip: Strip, original: Strip) -> str:
    return f"{agreement(to_float(strip.pictures), to_float(original.pictures)).psnr:.1f} dB"
