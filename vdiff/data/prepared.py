"""What `prepare` did, or found done: the report on a finished store."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vdiff.data.origin import BY_NAMES, Comparison
from vdiff.data.publishing import LEFT_OUT, NOTES, SKIPPED
from vdiff.data.seal import FILE
from vdiff.data.sources import Group, Source
from vdiff.data.store import ImageStore


@dataclass(frozen=True)
class PrepareSummary:
    """What `prepare` did.

    num_skipped, skipped_file: pictures that could not be read.
    left_out, left_out_file: what is not taken for one.
    classes_told: where the classes come from, or why there are none.
    resumed_at: how many files an earlier start had dealt with.
    anew: why its work was thrown away; empty if it was not.
    already_done: nothing was to be done; `decided_by` says what was compared to find that out.
    notes: names of pictures that were stored although something was wrong, and what.
    hints: what else a user may want to know, and type.
    """

    store: Path
    num_images: int
    num_skipped: int
    skipped_file: Path | None
    sizes: tuple[int, ...]
    class_names: list[str]
    classes_told: str
    left_out: list[Group]
    left_out_file: Path | None
    bytes: int
    seconds: float
    resumed_at: int = 0
    already_done: bool = False
    decided_by: str = ""
    anew: str = ""
    notes: list[tuple[str, str]] = field(default_factory=list)
    notes_file: Path | None = None
    hints: list[str] = field(default_factory=list)


def report_of(
    out: Path,
    source: Source,
    started: float,
    resumed_at: int,
    comparison: Comparison | None = None,
    anew: str = "",
    hints: Sequence[str] = (),
) -> PrepareSummary:
    """The report on the store at `out`, which is finished.

    started: when `prepare` began, by the monotonic clock.
    comparison: what told that nothing was to be done, None if there was work.
    resumed_at, anew: as in `PrepareSummary`.   hints: of the work; those of the source come after
    them.
    """
    store = ImageStore(out)
    num_skipped = len(_rows(out / SKIPPED))
    skipped_file: Path | None = None
    if num_skipped:
        skipped_file = out / SKIPPED
    decided_by = ""
    if comparison is not None:
        decided_by = comparison.decided_by
    return PrepareSummary(
        store=out,
        num_images=store.num_images,
        num_skipped=num_skipped,
        skipped_file=skipped_file,
        sizes=store.sizes,
        class_names=store.class_names,
        classes_told=source.classes.told,
        left_out=source.left_out.groups(),
        left_out_file=_existing(out / LEFT_OUT),
        bytes=(out / FILE).stat().st_size,
        seconds=time.monotonic() - started,
        resumed_at=resumed_at,
        already_done=comparison is not None,
        decided_by=decided_by,
        anew=anew,
        notes=_rows(out / NOTES),
        notes_file=_existing(out / NOTES),
        hints=[*hints, *source.notes, *_hints_on_older(store, source, decided_by)],
    )


def _hints_on_older(store: ImageStore, source: Source, decided_by: str) -> list[str]:
    """What users should know of a store that an older vdiff made from the same source."""
    # Only stores of older vdiffs are compared by names and sizes.
    if decided_by != BY_NAMES:
        return []
    if store.metadata and store.metadata.source != source.fingerprint:
        # Older ones took a file for a picture by its suffix alone, and followed no links.
        num_more = len(source.files) - store.num_images
        return [
            (
                f"an older vdiff made the store and left out {num_more:,} pictures; "
                "`--force` takes them"
            )
        ]
    if store.class_names != source.classes.names:
        now = "no classes"
        if source.classes.names:
            now = f"{len(source.classes.names):,} classes"
        return [
            (
                f"an older vdiff made the store with {len(store.class_names):,} classes; "
                f"`--force` finds {now}"
            )
        ]
    return [
        (
            "an older vdiff made the store, which kept no times: "
            "if pictures changed since, type `--force`"
        )
    ]


def _existing(path: Path) -> Path | None:
    """The path of a list beside the store; None if there is no such list."""
    if path.exists():
        return path
    return None


def _rows(path: Path) -> list[tuple[str, str]]:
    """The rows of a list beside the store, each a name and what is said of it;
    empty if there is no such list.
    """
    if not path.exists():
        return []
    lines = [line.partition("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    return [(name, words) for name, _, words in lines]
