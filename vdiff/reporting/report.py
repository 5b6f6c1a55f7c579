"""The report of a run: what it has come to, on one page."""

from datetime import UTC, datetime

from vdiff.diffusion import inside
from vdiff.reporting import course, origin, quality, side_by_side
from vdiff.reporting.markup import Markup, joined, spoken, tag
from vdiff.reporting.page import contents, page, section
from vdiff.reporting.pictures import FEW_STEPS, Gallery
from vdiff.reporting.record import Record
from vdiff.reporting.verdict import measured, verdict
from vdiff.reporting.wording import count, counted

_ROLES = (
    ("student", "students"),
    ("undistilled", "the base, not distilled"),
    ("original", "the original"),
)


def report(
    record: Record,
    gallery: Gallery | None,
    *,
    published: str | None = None,
    price_per_hour: float | None = None,
    device: str = "",
    undrawn: str = "",
) -> str:
    """The page as HTML.

    published: a key of `published.CURVES`.   device: what the pictures were drawn on, in words.
    undrawn: why there are no pictures.
    """
    if gallery is None:
        device = ""
    sections = [
        *_pictures(gallery, undrawn, record),
        *_numbers(record, published),
        _levels(record, gallery),
        _trends(record),
        _losses(record),
        _origin(record, price_per_hour, device),
    ]
    shown = [part for part in sections if part is not None]
    links = contents([(id_, title) for id_, title, _ in shown])
    return page(
        f"{record.name} · vdiff report",
        [_head(record, gallery), links],
        [body for _, _, body in shown],
    )


_Part = tuple[str, str, Markup]


def _part(id_: str, title: str, lead: Markup | str, *content: Markup | None) -> _Part:
    return id_, title, section(id_, title, lead, *content)


def _head(record: Record, gallery: Gallery | None) -> Markup:
    status = record.status
    state = None
    if status:
        state = tag("span", status["state"], class_=f"state {status['state']}")
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    top = tag("p", tag("span", "vdiff report"), state, tag("span", made), class_="eyebrow")
    table = record.table
    said = tag("p", spoken(verdict(record, gallery)), class_="verdict")
    line = None
    # no number without its protocol; a sentence that no number stands in needs none
    if table is not None and measured(table):
        line = quality.protocol(table)
    notes = origin.sentences(_to_do(record), "todo")
    return joined(
        (
            top,
            tag("h1", record.name),
            said,
            line,
            notes,
            origin.sentences(record.warnings, "warnings"),
        )
    )


def _to_do(record: Record) -> list[str]:
    """What is missing, and the command to get it."""
    lines = []
    status = record.status
    missing = record.missing()
    if status and status["state"] == "running":
        where = f"`{status['stage']}` is at update {status['update']:,} of {status['updates']:,}"
        lines.append(f"The run is at work: {where}. Make the report again to see more.")
    elif status and status["state"] in ("stopped", "failed", "killed"):
        reason = ""
        # a process that was killed has left none
        if status["reason"]:
            reason = f": {status['reason']}"
        lines.append(
            f"The run was {status['state']}{reason}. `{status['resume_command']}` goes on."
        )
    elif missing:
        command = "vdiff distill"
        if "original" in missing:
            command = "vdiff train"
        lines.append(
            f"Not made yet: {', '.join(f'`{name}`' for name in missing)}. `{command}` makes them."
        )
    if record.cards and record.table is None:
        lines.append(
            f"Not measured yet. `vdiff evaluate {record.folder.path}` measures every stage."
        )
    if record.table is not None and _unmeasured(record):
        names = ", ".join(f"`{name}`" for name in _unmeasured(record))
        lines.append(
            f"Not measured, or changed since: {names}. "
            f"`vdiff evaluate {record.folder.path}` measures them."
        )
    return lines


def _unmeasured(record: Record) -> list[str]:
    known: set[str] = set()
    if record.table:
        # by their weights: a model that was trained anew keeps its name
        known = {row.hash for row in record.table.rows}
    return [name for name, card in record.cards.items() if card["hash"] not in known]


def _pictures(gallery: Gallery | None, undrawn: str, record: Record) -> list[_Part]:
    if gallery is None and not undrawn:
        return []
    if gallery is None:
        return [_part("pictures", "Pictures", spoken(undrawn))]
    original = gallery.strips[0]
    students = [strip for strip in gallery.strips if strip.role == "student"]
    parts = []
    if students:
        pull = tag(
            "span",
            " Pull the divider: the original on its left, the student on its right.",
            class_="on-screen",
        )
        said = joined(("Both sides of a picture start from the same noise.", pull))
        slider = side_by_side.slider(original, students, gallery.seeds)
        parts.append(_part("teacher-and-student", "Teacher and student", said, slider))
    left_out = ""
    if len(students) < len(record.students):
        left_out = f"; students of more than {FEW_STEPS} steps are left out"
    lead = (
        "Each column starts from the same noise. Above each student, the undistilled model with "
        f"as few steps{left_out}. Sampler: {gallery.sampled_by()}, seeds {gallery.seeds[0]} to "
        f"{gallery.seeds[-1]}.{_guided(record)}"
    )
    parts.append(_part("strips", "All stages, same noise", lead, side_by_side.strips(gallery)))
    lead = (
        f"Seed {gallery.seeds[0]}, from pure noise on the left to the picture on the right; "
        "a frame stands at its time."
    )
    parts.append(_part("ways", "From noise to picture", lead, side_by_side.ways(gallery.ways)))
    return parts


def _guided(record: Record) -> str:
    """With how much guidance the students draw; empty where they have none inside."""
    held = [card.get("guidance") for card in record.students]
    if not held or held[-1] is None:
        return ""
    drawn = inside.usual(held[-1])
    if drawn is None:
        return f" The students have guidance {inside.told(held[-1])}; the original has none."
    return f" The students take guidance ({inside.told(held[-1])}) and draw with {drawn:g} here."


def _numbers(record: Record, published: str | None) -> list[_Part]:
    table = record.table
    if table is None:
        return []
    roles: list[tuple[str, str]] = list(_ROLES)
    if any(row.role == "solved" for row in table.rows):
        roles.insert(2, ("solved", "the base, not distilled, by the best solver"))
    if published:
        roles.append(("published", "published by others"))
    lead = "How good the pictures are with so many steps; bars are 95 % intervals."
    curves = (quality.legend(roles), quality.curves(table, published))
    what = tag("dl", quality.features(table), class_="facts")
    return [
        _part("quality", "Quality against steps", lead, *curves),
        _part("numbers", "All numbers", "", quality.numbers(table), what),
    ]


def _levels(record: Record, gallery: Gallery | None) -> _Part | None:
    if gallery is None or not gallery.errors:
        return None
    original = gallery.strips[0]
    lead = (
        "Mean squared difference, without any loss weight, between what a student predicts in one "
        "step and the exact target from its own teacher's steps: on the "
        f"{count(len(gallery.seeds), 'picture')} that the original draws in "
        f"{counted(original.num_steps)}, with fresh noise, at up to 8 of the student's own times."
    )
    return _part("levels", "Error by noise level", lead, course.levels(gallery.errors, record))


def _trends(record: Record) -> _Part | None:
    if not record.trends:
        return None
    lead = (
        "A trend, no measurement: of the few pictures that `evaluate.num_images` in the recipe "
        "allows, drawn while the networks learned. Compare the numbers of one chart with one "
        "another only: each has its own number of pictures."
    )
    return _part("trend", "Trend while training", spoken(lead), course.trends(record))


def _losses(record: Record) -> _Part | None:
    if not record.losses:
        return None
    lead = (
        "The training loss of each stage as log.jsonl has it: the recipe's weighting, mean over "
        "the updates between two points. Losses of different stages are losses against different "
        "teachers."
    )
    return _part("losses", "Losses", lead, course.losses(record))


def _origin(record: Record, price_per_hour: float | None, device: str) -> _Part:
    models = tag("p", "No model is finished yet.")
    if record.cards:
        models = origin.lineage(record)
    content: list[Markup | None] = [
        tag("h3", "Line of models"),
        models,
        tag("h3", "Time and cost"),
        origin.time_and_cost(record, price_per_hour),
        _untimed_note(record),
        tag("h3", "Data, versions, machine"),
        origin.origin_tables(record, device),
    ]
    if record.recipe:
        content += [tag("h3", "Recipe"), origin.recipe(record.recipe)]
    return _part("origin", "Where it comes from", "", *content)


def _untimed_note(record: Record) -> Markup | None:
    untimed = origin.untimed(record)
    if not untimed:
        return None
    note = (
        f"No time was recorded for {', '.join(untimed)}: an older vdiff made them, or another run."
    )
    return tag("p", note, class_="note")
