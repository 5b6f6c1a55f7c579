"""One image store under construction: begun or gone on with, filled, given its side files and closed."""

import hashlib
import itertools
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vdiff import __version__
from vdiff.data.conversion import (
    JOB,
    MIN_DEPTH,
    PART,
    Ledger,
    Part,
    Settings,
    convert,
    have_marks,
    is_sound,
)
from vdiff.data.metadata import Metadata
from vdiff.data.opened import check_pages
from vdiff.data.origin import Origin, compare
from vdiff.data.preview import write_preview
from vdiff.data.publishing import LEFT_OUT, NOTES, SKIPPED, STORE, clear
from vdiff.data.seal import FILE, is_store, write_seal
from vdiff.data.sources import Source
from vdiff.data.store import LENGTH, METADATA, StoreWriter, image_key
from vdiff.disk.whole_folder import clean, refusals
from vdiff.errors import DataError, PausedError, Stopped
from vdiff.system.printable import printable

_DARK = 1 / 8
"""Of the range: where no picture of 16 bits has a brighter value, they use fewer bits than they have."""
_BYTES_PER_VALUE = {"png": 0.65, "webp": 0.45, "jpeg": 0.4}


@dataclass(frozen=True)
class Progress:
    """How far the work is, in files: stored, skipped, and all there are."""

    done: int
    skipped: int
    total: int


@dataclass(frozen=True)
class Done:
    """What a job came to. resumed_at: how many files an earlier start had dealt with. hints: sentences for users."""

    resumed_at: int
    hints: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """A store made in `folder` from all pictures of `source`.

    max_bad: the share of files that may be unreadable.   workers: threads.
    said: why what an earlier start had left was not gone on with.   tell: hears what takes its time.
    """

    source: Source
    settings: Settings
    folder: Path
    max_bad: float
    workers: int
    said: list[str] = field(default_factory=list)
    tell: Callable[[str], None] = lambda text: None

    def run(self, on_progress: Callable[[Progress], None]) -> Done:
        """Store what is not stored yet.

        DataError if too many files are unreadable. PausedError if the machine refuses to read a picture. Whatever stops
        it, the next `run` goes on from the last commit.
        """
        with self._writer() as writer:
            if text := writer.get(METADATA):
                metadata, done = Metadata.from_json(text), Done(len(self.source.files))
            else:
                ledger = Ledger(writer)
                resumed_at = ledger.num_files
                self._store_all(ledger, on_progress)
                self._write_lists(ledger)
                self._write_preview(writer, ledger.num_stored)
                Origin.of(self.source, ledger.stored.marks).write(self.folder)
                metadata = self._metadata(ledger)
                ledger.close(
                    {METADATA: metadata.to_json(), LENGTH: str(ledger.num_stored).encode()}
                )
                done = Done(resumed_at, self._hints(ledger))
        self._seal(metadata)
        return done

    def has_progress(self) -> bool:
        """Whether the folder holds pictures that the next `run` need not store again."""
        with self._writer() as writer:
            return bool(writer.records(PART))

    def _writer(self) -> StoreWriter:
        expected = estimated_bytes(self.settings, len(self.source.files))
        with refusals(self.folder):
            for name in (
                ".preview.png.*",
                ".skipped.tsv.*",
            ):  # half of it, of a process that was killed
                for leftover in self.folder.glob(name):
                    if STORE.parts.fullmatch(leftover.name):
                        leftover.unlink()
            clean(self.folder)  # half a seal
        if is_store(self.folder):
            try:
                writer = StoreWriter(self.folder, expected)
                if not (reason := self._objection(writer)):
                    return writer
                is_lost = bool(writer.get(METADATA) or writer.records(PART))
                writer.close()
            except DataError as err:
                reason, is_lost = err.problem, True
            if is_lost:
                self.said.append(
                    f"what an earlier start left in `{self.folder}` cannot be gone on with: {reason}"
                )
            clear(self.folder)
        writer = StoreWriter(self.folder, expected)
        writer.commit({JOB: self._name(self.source.stamp)})
        return writer

    def _objection(self, writer: StoreWriter) -> str:
        """Why what an earlier start has stored cannot be gone on with; empty if it can."""
        text = writer.get(METADATA)
        try:
            if text:  # it was finished, but not published
                metadata = Metadata.from_json(text)
                found = compare(
                    self.folder, metadata, self.source, self.settings, self.workers, self.tell
                )
                is_this = found.verdict == "same"
                crcs, count = (
                    {str(size): crcs for size, crcs in metadata.crcs.items()},
                    metadata.count,
                )
            else:
                stored = Ledger(writer).stored
                is_this = self._is_of_these_pictures(writer, stored)
                crcs, count = stored.crcs, len(stored.labels)
        except ValueError as err:
            return f"what it says of itself is damaged: {err}"
        if not is_this:
            return "it was begun from other pictures, or they have changed, or with other settings"
        return "" if is_sound(writer, crcs, count) else "a picture in it is not what was written"

    def _seal(self, metadata: Metadata) -> None:
        write_seal(
            self.folder, metadata, (self.folder / FILE).stat().st_size, check_pages(self.folder)
        )

    def _is_of_these_pictures(self, writer: StoreWriter, stored: Part) -> bool:
        """Whether what was stored by an earlier start comes from these pictures, which have not changed since."""
        stamp = (writer.get(JOB) or b"").decode(errors="replace").partition(" ")[2]
        if writer.get(JOB) != self._name(stamp):
            return False
        if stamp == self.source.stamp:
            return True
        if self.source.marks is not None:
            is_same = self.source.marks.startswith(stored.marks)
        else:
            self.tell(
                f"`{self.source.path}` was touched since the last start: what was done is compared with it"
            )
            done = itertools.islice(self.source.pictures_from(0), stored.num_files)
            is_same = have_marks(done, stored.marks, self.workers)
        if is_same:
            writer.commit({JOB: self._name(self.source.stamp)})
        return is_same

    def _name(self, stamp: str) -> bytes:
        """What the job is called: by its files, classes and settings, and by what tells that no picture changed."""
        document = [self.source.fingerprint, self.source.labels_fingerprint, asdict(self.settings)]
        return f"{hashlib.sha256(json.dumps(document).encode()).hexdigest()} {stamp}".encode()

    def _store_all(self, ledger: Ledger, on_progress: Callable[[Progress], None]) -> None:
        labels, total = self.source.classes.labels, len(self.source.files)
        pictures = self.source.pictures_from(ledger.num_files)
        on_progress(Progress(ledger.num_stored, ledger.num_files - ledger.num_stored, total))
        with closing(convert(pictures, self.settings, self.workers)) as chunks:
            try:
                for chunk in chunks:
                    for converted in chunk:
                        ledger.add(converted, labels[ledger.num_files])
                    self._refuse_too_many(ledger)
                    on_progress(
                        Progress(ledger.num_stored, ledger.num_files - ledger.num_stored, total)
                    )
            except (Stopped, PausedError, MemoryError):
                ledger.commit()
                raise
        self._refuse_incomplete(ledger)
        ledger.commit()

    def _refuse_too_many(self, ledger: Ledger) -> None:
        total, num_skipped = len(self.source.files), ledger.num_files - ledger.num_stored
        if num_skipped > self.max_bad * total or num_skipped == total:
            first = "; ".join(f"`{name}`: {reason}" for name, reason in ledger.skipped[:5])
            problem = f"{num_skipped:,} of {total:,} pictures cannot be read ({first})"
            fix = f"mend or remove them, or allow more than {self.max_bad:.2%}: --max-bad"
            raise DataError(problem, fix, self.source.path)

    def _refuse_incomplete(self, ledger: Ledger) -> None:
        if ledger.num_files != len(self.source.files):
            raise DataError(
                "the pictures changed while they were read",
                "type the command again",
                self.source.path,
            )

    def _metadata(self, ledger: Ledger) -> Metadata:
        class_names = self.source.classes.names
        return Metadata.model_validate(
            {
                **asdict(self.settings),
                "made_by": f"vdiff {__version__}",
                "count": ledger.num_stored,
                "labels": ledger.stored.labels if class_names else None,
                "class_names": class_names or None,
                "source": self.source.fingerprint,
                "crcs": ledger.stored.crcs,
            }
        )

    def _write_lists(self, ledger: Ledger) -> None:
        left_out = [(printable(name), reason.text) for name, reason in self.source.left_out.names]
        if len(left_out) < len(self.source.left_out):
            left_out.append((f"and {len(self.source.left_out) - len(left_out):,} more", ""))
        for name, rows in (
            (SKIPPED, ledger.skipped),
            (NOTES, ledger.stored.notes),
            (LEFT_OUT, left_out),
        ):
            if rows:
                with refusals(self.folder):
                    text = "".join(f"{name}\t{reason}\n" for name, reason in rows)
                    (self.folder / name).write_text(text, encoding="utf-8", newline="\n")

    def _hints(self, ledger: Ledger) -> list[str]:
        """That pictures of 16 bits are nearly black, and what to type."""
        largest, num_deep = ledger.stored.largest, ledger.stored.num_deep
        if not num_deep or largest >= _DARK * 2**self.settings.depth:
            return []
        bits = max(MIN_DEPTH, largest.bit_length())
        what = f"no value of the {num_deep:,} grey pictures of 16 bits is above {largest:,}, so they are nearly black"
        return [
            f"{what}: if they use only {bits} of their bits, prepare them with `--depth {bits} --force`"
        ]

    def _write_preview(self, writer: StoreWriter, count: int) -> None:
        size = max(self.settings.sizes)
        read = lambda index: writer.get(image_key(size, index)) or b""  # noqa: E731
        write_preview(self.folder, size, self.settings.channels, count, read)


def estimated_bytes(settings: Settings, num_images: int) -> int:
    """About how much `num_images` photographs need on disk."""
    values = sum(size * size * settings.channels for size in settings.sizes)
    return int(
        num_images * (values * _BYTES_PER_VALUE[settings.encoding] + 2048 * len(settings.sizes))
    )
