"""A folder or archive of pictures becomes an ImageStore: in parallel, in order, resumable, published as a whole."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from shutil import disk_usage
from typing import get_args

from vdiff.data.conversion import MAX_DEPTH, MIN_DEPTH, Settings
from vdiff.data.job import Done, Job, Progress, estimated_bytes
from vdiff.data.origin import BY_NAMES, Comparison, compare
from vdiff.data.patience import is_of_machine, paused
from vdiff.data.publishing import (
    LEFT_OUT,
    NOTES,
    OTHER_PLACE,
    SKIPPED,
    STORE,
    discard,
    has_rests,
    publish,
    tidy,
)
from vdiff.data.seal import FILE, is_store
from vdiff.data.sources import Group, Labels, Source, open_source
from vdiff.data.store import ImageStore
from vdiff.disk import lock
from vdiff.errors import DataError, MachineError, PausedError, UsageError
from vdiff.images import images
from vdiff.system.cores import num_cores

__all__ = ["Plan", "Progress", "Report", "plan", "prepare"]


@dataclass(frozen=True)
class Plan:
    """What `prepare` would do.

    classes_told, left_out: as in `Report`.   decided_by: what tells that it is done already.   hints: of the source.
    """

    num_images: int
    class_names: list[str]
    classes_told: str
    left_out: list[Group]
    sizes: tuple[int, ...]
    estimated_bytes: int
    free_bytes: int
    already_done: bool
    decided_by: str
    hints: list[str]


@dataclass(frozen=True)
class Report:
    """What `prepare` did.

    num_skipped, skipped_file: pictures that could not be read.   left_out, left_out_file: what is not taken for one.
    classes_told: where the classes come from, or why there are none.
    resumed_at: how many files an earlier start had dealt with.   anew: why its work was of no use, if it was of none.
    already_done: nothing was to be done; `decided_by` says by what that was seen.
    notes: names of pictures that were taken though something was amiss, and what.   hints: what else a user may want to
    know, and type.
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


def plan(
    source: Path,
    out: Path,
    *,
    sizes: Sequence[int],
    channels: int = 3,
    encoding: images.Encoding = "png",
    quality: int = 100,
    resampling: images.Resampling = "lanczos",
    depth: int = MAX_DEPTH,
    labels: Labels = "auto",
) -> Plan:
    """What `prepare` would do with the same arguments, without writing anything."""
    settings = _settings(sizes, channels, encoding, quality, resampling, depth)
    _unfinished(out)
    opened = _open(source, labels)
    made = _compared(out, opened, settings, _threads(None), _unheard, is_dry=True)
    return Plan(
        num_images=len(opened.files),
        class_names=opened.classes.names,
        classes_told=opened.classes.told,
        left_out=opened.left_out.groups(),
        sizes=settings.sizes,
        estimated_bytes=estimated_bytes(settings, len(opened.files)),
        free_bytes=disk_usage(next(path for path in out.absolute().parents if path.exists())).free,
        already_done=made.verdict == "same",
        decided_by=made.decided_by,
        hints=opened.notes,
    )


def prepare(
    source: Path,
    out: Path,
    *,
    sizes: Sequence[int],
    channels: int = 3,
    encoding: images.Encoding = "png",
    quality: int = 100,
    resampling: images.Resampling = "lanczos",
    depth: int = MAX_DEPTH,
    labels: Labels = "auto",
    max_bad: float = 0.01,
    workers: int | None = None,
    force: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Report:
    """Make the image store `out` from the pictures of `source`, or go on where an earlier start was stopped.

    sizes: in pixels, square.   quality: of JPEG, 1 to 100.   max_bad: the share of files that may be unreadable.
    depth: bits that grey pictures of 16 bits use, where they do not state it.   labels: where classes come from, see
    `Labels`.   workers: threads; default one per core, at most 16.   force: replace a store that was made in another
    way.   tell: hears what takes its time, one sentence each.
    DataError: no pictures, or too many unreadable.   UsageError: `out` is there already.   InUseError: another process
    prepares it.   MachineError: no space or no permission; nothing is left behind.   PausedError: a picture could not
    be read, which is not its fault; what was done is kept.
    """
    started = time.monotonic()
    settings = _settings(sizes, channels, encoding, quality, resampling, depth)
    unfinished = _unfinished(out)
    lock.refuse_if_held(unfinished)
    opened, threads, tell = (
        _open(source, labels),
        _threads(workers),
        _unheard if tell is None else tell,
    )
    compared = partial(_compared, out, opened, settings, threads, tell, force)
    made = compared()
    if made.verdict == "same":
        _tidy_rests(out, unfinished)
        return _report(out, opened, started, len(opened.files), made)
    _refuse_to_replace(out, unfinished, force or made.verdict == "changed")
    before = _state(out)
    job = Job(opened, settings, unfinished, max_bad, threads, tell=tell)
    with lock.held(unfinished):
        tidy(out)
        made = (
            made if _state(out) == before else compared()
        )  # another process made it, while this one waited
        if made.verdict == "same":
            return _report(out, opened, started, len(opened.files), made)
        _refuse_to_replace(out, unfinished, force or made.verdict == "changed")
        done = _run(job, on_progress or (lambda progress: None))
        publish(unfinished, out)
    report = _report(out, opened, started, done.resumed_at, anew="; ".join(job.said))
    return replace(report, hints=done.hints + report.hints)


def _run(job: Job, on_progress: Callable[[Progress], None]) -> Done:
    try:
        return job.run(on_progress)
    except (MemoryError, OSError) as err:
        if not is_of_machine(err):
            raise
        raise paused(str(getattr(err, "filename", None) or job.source.path), err) from err
    except (DataError, PausedError):
        if not _has_progress(job):
            discard(job.folder)
        raise
    except MachineError:
        discard(job.folder)
        raise


def _has_progress(job: Job) -> bool:
    try:
        return job.has_progress()
    except (MachineError, MemoryError):  # without memory even that cannot be seen
        return True


def _settings(
    sizes: Sequence[int],
    channels: int,
    encoding: images.Encoding,
    quality: int,
    resampling: images.Resampling,
    depth: int,
) -> Settings:
    """The arguments as Settings; UsageError for one that does not exist or does not fit."""
    if not sizes or not all(1 <= size <= 4096 for size in sizes):
        raise UsageError("an image store needs sizes from 1 to 4096 pixels", "give one: --size 256")
    if channels not in images.MODES:
        raise UsageError(
            f"pictures cannot have {channels} channels",
            "choose 1 (grey), 3 (colour) or 4 (transparent)",
        )
    for name, value, known in (
        ("encoding", encoding, images.Encoding),
        ("resampling", resampling, images.Resampling),
    ):
        if value not in get_args(known):
            raise UsageError(
                f"there is no {name} `{value}`", f"choose one of: {', '.join(get_args(known))}"
            )
    if encoding == "jpeg" and (channels == 4 or not 1 <= quality <= 100):
        raise UsageError(
            "JPEG holds 1 or 3 channels, with a quality from 1 to 100",
            "choose those, or png or webp",
        )
    if not MIN_DEPTH <= depth <= MAX_DEPTH:
        raise UsageError(
            f"grey pictures of 16 bits cannot use {depth} bits",
            f"choose {MIN_DEPTH} to {MAX_DEPTH}",
        )
    return Settings(
        sizes=tuple(sorted(set(sizes))),
        channels=channels,
        encoding=encoding,
        quality=quality if encoding == "jpeg" else None,
        resampling=resampling,
        depth=depth,
    )


def _unfinished(out: Path) -> Path:
    """Where the store is made that is to lie at `out`. UsageError for a place that has no name of its own."""
    if out.name in ("", ".."):
        raise UsageError(
            f"a store cannot take the place of `{out}`", "name a folder in it: --out PATH", out
        )
    return out.with_name(f"{out.name}.partial")


def _open(source: Path, labels: Labels) -> Source:
    if labels not in get_args(Labels):
        raise UsageError(
            f"there are no labels `{labels}`", f"choose one of: {', '.join(get_args(Labels))}"
        )
    return open_source(source, labels)


def _threads(workers: int | None) -> int:
    return workers or min(16, num_cores())


def _unheard(text: str) -> None: ...


def _compared(
    out: Path,
    source: Source,
    settings: Settings,
    workers: int,
    tell: Callable[[str], None],
    force: bool = False,
    is_dry: bool = False,
) -> Comparison:
    """How `out` stands to what these files and settings give, which `force` does not ask.

    is_dry: nothing is written.   DataError if it is a damaged store.
    """
    metadata = ImageStore(out).metadata if is_store(out) and not force else None
    if metadata is None:
        return Comparison("other", "")
    found = compare(out, metadata, source, settings, workers, tell, is_dry)
    if found.verdict == "changed":
        tell(
            f"the pictures have changed since `{out}` was made, by their {found.decided_by}: it is made again"
        )
    return found


def _tidy_rests(out: Path, unfinished: Path) -> None:
    """Nothing is written where there are none: a read-only disk would refuse."""
    if has_rests(out):
        with lock.held(unfinished):
            tidy(out)


def _state(out: Path) -> tuple[int, int] | None:
    """What is different when another store has come to `out`."""
    if not is_store(out):
        return None
    status = (out / FILE).stat()
    return status.st_ino, status.st_mtime_ns


def _refuse_to_replace(out: Path, unfinished: Path, force: bool) -> None:
    """UsageError for what vdiff did not make, in any place that it would take; and for a store, unless `force`."""
    STORE.refuse_stranger(out, OTHER_PLACE)
    STORE.refuse_stranger(unfinished, OTHER_PLACE)
    if out.is_dir() and any(out.iterdir()) and not force:
        fix = "replace it: --force; or choose another place: --out PATH"
        raise UsageError(f"`{out}` was made from other pictures or with other settings", fix, out)


def _report(
    out: Path,
    source: Source,
    started: float,
    resumed_at: int,
    made: Comparison | None = None,
    anew: str = "",
) -> Report:
    store, skipped, notes, left_out = ImageStore(out), out / SKIPPED, out / NOTES, out / LEFT_OUT
    num_skipped = len(skipped.read_text(encoding="utf-8").splitlines()) if skipped.exists() else 0
    return Report(
        store=out,
        num_images=store.num_images,
        num_skipped=num_skipped,
        skipped_file=skipped if num_skipped else None,
        sizes=store.sizes,
        class_names=store.class_names,
        classes_told=source.classes.told,
        left_out=source.left_out.groups(),
        left_out_file=left_out if left_out.exists() else None,
        bytes=(out / FILE).stat().st_size,
        seconds=time.monotonic() - started,
        resumed_at=resumed_at,
        already_done=made is not None,
        decided_by=made.decided_by if made else "",
        anew=anew,
        notes=_rows(notes),
        notes_file=notes if notes.exists() else None,
        hints=source.notes + _hints_on_older(store, source, made),
    )


def _hints_on_older(store: ImageStore, source: Source, made: Comparison | None) -> list[str]:
    """What should be known of a store that an older vdiff made from the same source."""
    if made is None or made.decided_by != BY_NAMES:
        return []
    if store.metadata and store.metadata.source != source.fingerprint:
        num_more = len(source.files) - store.num_images
        return [
            f"an older vdiff made the store and left out {num_more:,} pictures; `--force` takes them"
        ]
    if store.class_names != source.classes.names:
        now = f"{len(source.classes.names):,} classes" if source.classes.names else "no classes"
        return [
            f"an older vdiff made the store with {len(store.class_names):,} classes; `--force` finds {now}"
        ]
    return [
        "an older vdiff made the store, which kept no times: if pictures changed since, type `--force`"
    ]


def _rows(path: Path) -> list[tuple[str, str]]:
    """The names and the words of a list that was written beside the store; none if there is no such file."""
    if not path.exists():
        return []
    lines = [line.partition("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    return [(name, words) for name, _, words in lines]
