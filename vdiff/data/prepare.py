"""Make an ImageStore of a folder or archive of pictures:
in parallel, in order, resumable, published as a whole.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage
from typing import get_args

from vdiff.choices import LABELS
from vdiff.data.conversion import MAX_DEPTH, MIN_DEPTH, Settings
from vdiff.data.job import Done, Job, PrepareCounts, estimated_bytes
from vdiff.data.origin import Comparison, compare
from vdiff.data.patience import is_of_machine, paused
from vdiff.data.prepared import PrepareSummary as PrepareSummary
from vdiff.data.prepared import report_of
from vdiff.data.publishing import OTHER_PLACE, STORE, discard, has_rests, publish, tidy
from vdiff.data.seal import FILE, is_store
from vdiff.data.sources import Group, Source, labels_file, open_source
from vdiff.data.sources.labels_file import SUFFIXES
from vdiff.data.store import ImageStore
from vdiff.disk import lock
from vdiff.errors import DataError, MachineError, PausedError, UsageError
from vdiff.images import images
from vdiff.system.cores import num_cores

__all__ = ["Forecast", "PrepareCounts", "PrepareSummary", "forecast", "prepare"]


@dataclass(frozen=True)
class Forecast:
    """What `prepare` would do.

    classes_told, left_out: as in `PrepareSummary`.   already_done: there would be nothing to do;
    `decided_by` says what was compared to find that out.
    hints: what a user should know of the source.
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


def forecast(
    source: Path,
    out: Path,
    *,
    sizes: Sequence[int],
    channels: int = 3,
    encoding: images.Encoding = "png",
    quality: int = 100,
    resampling: images.Resampling = "lanczos",
    depth: int = MAX_DEPTH,
    labels: str = "auto",
) -> Forecast:
    """What `prepare` would do with the same arguments, without writing anything."""
    settings = _settings(sizes, channels, encoding, quality, resampling, depth)
    unfinished = _unfinished(out)
    opened = _open(source, labels)
    job = Job(opened, settings, unfinished, max_bad=0.0, num_threads=_threads(None))
    comparison = _compared(out, job, is_dry=True)
    existing = next(folder for folder in out.absolute().parents if folder.exists())
    return Forecast(
        num_images=len(opened.files),
        class_names=opened.classes.names,
        classes_told=opened.classes.told,
        left_out=opened.left_out.groups(),
        sizes=settings.sizes,
        estimated_bytes=estimated_bytes(settings, len(opened.files)),
        free_bytes=disk_usage(existing).free,
        already_done=comparison.verdict == "same",
        decided_by=comparison.decided_by,
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
    labels: str = "auto",
    max_bad: float = 0.01,
    num_threads: int | None = None,
    force: bool = False,
    on_progress: Callable[[PrepareCounts], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> PrepareSummary:
    """Make the image store `out` from the pictures of `source`,
    or go on where an earlier start was stopped.

    sizes: in pixels, square.   quality: of JPEG, 1 to 100.
    max_bad: the share of files that may be unreadable.
    depth: bits that grey pictures of 16 bits use, unless they state it.   labels: see `Labels`.
    num_threads: of this process, at most 16 by default.
    force: replace a store made in another way.
    tell: is called before slow work.
    DataError: no pictures, or too many unreadable.   UsageError: `out` is there already.
    InUseError: another process prepares it.   MachineError: no space or no permission; nothing is
    left behind.   PausedError: a picture could not be read, which is not its fault; what was done
    is kept.
    """
    started = time.monotonic()
    settings = _settings(sizes, channels, encoding, quality, resampling, depth)
    unfinished = _unfinished(out)
    # Before the source is read, which may take minutes.
    lock.refuse_if_held(unfinished)
    opened = _open(source, labels)
    if tell is None:
        tell = _unheard
    job = Job(opened, settings, unfinished, max_bad, _threads(num_threads), tell=tell)
    comparison = _compared(out, job, force)
    if comparison.verdict == "same":
        _tidy_rests(out, unfinished)
        return report_of(out, opened, started, len(opened.files), comparison)
    _refuse_to_replace(out, unfinished, force or comparison.verdict == "changed")
    before = _state(out)
    with lock.held(unfinished):
        tidy(out)
        # Another process may have made the store while this one waited for the lock.
        if _state(out) != before:
            comparison = _compared(out, job, force)
            if comparison.verdict == "same":
                return report_of(out, opened, started, len(opened.files), comparison)
        _refuse_to_replace(out, unfinished, force or comparison.verdict == "changed")
        done = _run(job, on_progress or _unwatched)
        publish(unfinished, out)
    anew = "; ".join(job.said)
    return report_of(out, opened, started, done.resumed_at, anew=anew, hints=done.hints)


def _run(job: Job, on_progress: Callable[[PrepareCounts], None]) -> Done:
    """Do the job. After an error, the unfinished store stays only if there is
    work in it to go on from.
    """
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
        # No space or no permission here: it must be made elsewhere, and what is left would fill the
        # disk.
        discard(job.folder)
        raise


def _has_progress(job: Job) -> bool:
    try:
        return job.has_progress()
    except (MachineError, MemoryError):
        # The machine cannot even look. Nothing may be thrown away then.
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
    is_jpeg = encoding == "jpeg"
    if is_jpeg and (channels == 4 or not 1 <= quality <= 100):
        raise UsageError(
            "JPEG holds 1 or 3 channels, with a quality from 1 to 100",
            "choose those, or png or webp",
        )
    if not MIN_DEPTH <= depth <= MAX_DEPTH:
        raise UsageError(
            f"grey pictures of 16 bits cannot use {depth} bits",
            f"choose {MIN_DEPTH} to {MAX_DEPTH}",
        )
    # Lossless formats have no quality: it must not make equal settings differ.
    stored_quality: int | None = None
    if is_jpeg:
        stored_quality = quality
    return Settings(
        sizes=tuple(sorted(set(sizes))),
        channels=channels,
        encoding=encoding,
        quality=stored_quality,
        resampling=resampling,
        depth=depth,
    )


def _unfinished(out: Path) -> Path:
    """The folder in which the store is made before it gets the name `out`.

    UsageError for `out` without a name.
    """
    # Beside `out`, on the same disk: only there, a rename is one step.
    if out.name in ("", ".."):
        raise UsageError(
            f"a store cannot take the place of `{out}`", "name a folder in it: --out PATH", out
        )
    return out.with_name(f"{out.name}.partial")


def _open(source: Path, labels: str) -> Source:
    """The pictures, with their classes.

    labels: one of `Labels`, or the path of a labels file.
    """
    for known in LABELS:
        if labels == known:
            return open_source(source, known)
    path = Path(labels)
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"there are no labels `{labels}`",
            f"choose one of: {', '.join(LABELS)}; or name a .csv or .json of names and classes",
        )
    return open_source(source, labels_file.read(path))


def _threads(num_threads: int | None) -> int:
    return num_threads or min(16, num_cores())


def _unheard(text: str) -> None: ...


def _unwatched(progress: PrepareCounts) -> None: ...


def _compared(out: Path, job: Job, force: bool = False, is_dry: bool = False) -> Comparison:
    """How the store at `out` compares with what the job would make.

    force: it is `other` without a look.   is_dry: nothing is written.
    DataError if it is a damaged store.
    """
    # With `--force`, a damaged store is replaced too, so it is not even opened.
    if force or not is_store(out):
        return Comparison("other", "")
    metadata = ImageStore(out).metadata
    if metadata is None:
        # Another program made it.
        return Comparison("other", "")
    comparison = compare(
        out, metadata, job.source, job.settings, job.num_threads, job.tell, is_dry=is_dry
    )
    if comparison.verdict == "changed":
        job.tell(
            f"the pictures have changed since `{out}` was made, by their {comparison.decided_by}: "
            "it is made again"
        )
    return comparison


def _tidy_rests(out: Path, unfinished: Path) -> None:
    """Remove what an earlier start left, if it left anything:
    taking the lock fails on a read-only disk.
    """
    if has_rests(out):
        with lock.held(unfinished):
            tidy(out)


def _state(out: Path) -> tuple[int, int] | None:
    """What tells one store at `out` from another: the inode and the time of its data.

    None if there is none.
    """
    if not is_store(out):
        return None
    status = (out / FILE).stat()
    return status.st_ino, status.st_mtime_ns


def _refuse_to_replace(out: Path, unfinished: Path, force: bool) -> None:
    """UsageError for what vdiff did not make, in any place that it would take;
    and for a store, unless `force`.
    """
    STORE.refuse_stranger(out, OTHER_PLACE)
    STORE.refuse_stranger(unfinished, OTHER_PLACE)
    if out.is_dir() and any(out.iterdir()) and not force:
        fix = "replace it: --force; or choose another place: --out PATH"
        raise UsageError(f"`{out}` was made from other pictures or with other settings", fix, out)
