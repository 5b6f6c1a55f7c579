"""The work on one image store: begin it or go on with it, fill it, write the files beside it,
close it.
"""

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
"""Share of the range. If no picture of 16 bits has a brighter value,
they probably use fewer bits than they have.
"""
# For photographs, where one value takes one byte unpacked.
_BYTES_PER_VALUE = {"png": 0.65, "webp": 0.45, "jpeg": 0.4}


@dataclass(frozen=True)
class PrepareCounts:
    """How far the work is, in files: stored, skipped, and all there are."""

    done: int
    skipped: int
    total: int


@dataclass(frozen=True)
class Done:
    """The result of a job.

    resumed_at: how many files an earlier start had dealt with.   hints: sentences for users.
    """

    resumed_at: int
    hints: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """A store made in `folder` from all pictures of `source`.

    max_bad: the share of files that may be unreadable.   num_threads: of this process.
    said: why the work of an earlier start was thrown away.
    tell: is called with a sentence before slow work.
    """

    source: Source
    settings: Settings
    folder: Path
    max_bad: float
    num_threads: int
    said: list[str] = field(default_factory=list)
    tell: Callable[[str], None] = lambda text: None

    def run(self, on_progress: Callable[[PrepareCounts], None]) -> Done:
        """Store what is not stored yet.

        DataError if too many files are unreadable. PausedError if the machine refuses to read a
        picture. Whatever stops it, the next `run` goes on from the last commit.
        """
        with self._writer() as writer:
            text = writer.get(METADATA)
            if text:
                # A kill came between the last commit and the rename.
                metadata = Metadata.from_json(text)
                done = Done(len(self.source.files))
            else:
                ledger = Ledger(writer)
                resumed_at = ledger.num_files
                self._store_all(ledger, on_progress)
                # The files beside the store come before its last record: a store that says it is
                # complete is.
                self._write_lists(ledger)
                self._write_preview(writer, ledger.num_stored)
                Origin.of(self.source, ledger.stored.marks).write(self.folder)
                metadata = self._metadata(ledger)
                ledger.close(
                    {METADATA: metadata.to_json(), LENGTH: str(ledger.num_stored).encode()}
                )
                done = Done(resumed_at, self._hints(ledger))
        # After the writer is closed: the seal holds the size and the checksum of the whole file.
        self._seal(metadata)
        return done

    def has_progress(self) -> bool:
        """Whether the folder holds pictures that the next `run` need not store again."""
        with self._writer() as writer:
            return bool(writer.records(PART))

    def _writer(self) -> StoreWriter:
        """The store, gone on with if that can be done, or else begun anew."""
        expected = estimated_bytes(self.settings, len(self.source.files))
        with refusals(self.folder):
            self._forget_half_files()
        if is_store(self.folder):
            try:
                writer = StoreWriter(self.folder, expected)
                reason = self._objection(writer)
                if not reason:
                    return writer
                is_lost = bool(writer.get(METADATA) or writer.records(PART))
                writer.close()
            except DataError as err:
                reason = err.problem
                is_lost = True
            if is_lost:
                self.said.append(
                    f"what an earlier start left in `{self.folder}` cannot be "
                    f"gone on with: {reason}"
                )
            clear(self.folder)
        writer = StoreWriter(self.folder, expected)
        writer.commit({JOB: self._name(self.source.stamp)})
        return writer

    def _forget_half_files(self) -> None:
        """Remove what a process that was killed had begun to write beside the store."""
        for pattern in (".preview.png.*", ".skipped.tsv.*"):
            for leftover in self.folder.glob(pattern):
                if STORE.paths.fullmatch(leftover.name):
                    leftover.unlink()
        # Half a seal.
        clean(self.folder)

    def _objection(self, writer: StoreWriter) -> str:
        """Why what an earlier start has stored cannot be gone on with; empty if it can."""
        text = writer.get(METADATA)
        try:
            if text:
                # It was finished, but not published.
                metadata = Metadata.from_json(text)
                comparison = compare(
                    self.folder, metadata, self.source, self.settings, self.num_threads, self.tell
                )
                is_this = comparison.verdict == "same"
                crcs = {str(size): crcs for size, crcs in metadata.crcs.items()}
                count = metadata.count
            else:
                stored = Ledger(writer).stored
                is_this = self._is_of_these_pictures(writer, stored)
                crcs = stored.crcs
                count = len(stored.labels)
        except ValueError as err:
            return f"what it says of itself is damaged: {err}"
        if not is_this:
            return "it was begun from other pictures, or they have changed, or with other settings"
        # All pictures are read again: after a crash, the disk may hold other bytes than were
        # written.
        if not is_sound(writer, crcs, count):
            return "a picture in it is not what was written"
        return ""

    def _seal(self, metadata: Metadata) -> None:
        write_seal(
            self.folder, metadata, (self.folder / FILE).stat().st_size, check_pages(self.folder)
        )

    def _is_of_these_pictures(self, writer: StoreWriter, stored: Part) -> bool:
        """Whether an earlier start stored these pictures, and they have not changed since."""
        stamp = (writer.get(JOB) or b"").decode(errors="replace").partition(" ")[2]
        if writer.get(JOB) != self._name(stamp):
            return False
        if stamp == self.source.stamp:
            return True
        if self.source.marks is not None:
            is_same = self.source.marks.startswith(stored.marks)
        else:
            # Copying or checking out a folder changes its times, not its pictures: only reading
            # them tells.
            self.tell(
                f"`{self.source.path}` was touched since the last start: "
                "what was done is compared with it"
            )
            done = itertools.islice(self.source.pictures_from(0), stored.num_files)
            is_same = have_marks(done, stored.marks, self.num_threads)
        if is_same:
            writer.commit({JOB: self._name(self.source.stamp)})
        return is_same

    def _name(self, stamp: str) -> bytes:
        """The name of the job: a hash of its files, classes and settings,
        and the stamp of its source.
        """
        document = [self.source.fingerprint, self.source.labels_fingerprint, asdict(self.settings)]
        return f"{hashlib.sha256(json.dumps(document).encode()).hexdigest()} {stamp}".encode()

    def _store_all(self, ledger: Ledger, on_progress: Callable[[PrepareCounts], None]) -> None:
        labels = self.source.classes.labels
        total = len(self.source.files)
        pictures = self.source.pictures_from(ledger.num_files)
        on_progress(PrepareCounts(ledger.num_stored, ledger.num_files - ledger.num_stored, total))
        with closing(convert(pictures, self.settings, self.num_threads)) as chunks:
            try:
                for chunk in chunks:
                    for converted in chunk:
                        ledger.add(converted, labels[ledger.num_files])
                    self._refuse_too_many(ledger)
                    on_progress(
                        PrepareCounts(
                            ledger.num_stored, ledger.num_files - ledger.num_stored, total
                        )
                    )
            except (Stopped, PausedError, MemoryError):
                # Nothing is wrong with what waits: the next start need not convert it again.
                ledger.commit()
                raise
        self._refuse_incomplete(ledger)
        ledger.commit()

    def _refuse_too_many(self, ledger: Ledger) -> None:
        total = len(self.source.files)
        num_skipped = ledger.num_files - ledger.num_stored
        # Asked after each chunk, not at the end: a user hears of a wrong folder at once.
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
        """The lists of files that were skipped, stored with a note, or left out;
        none that would be empty.
        """
        left_out = [(printable(name), reason.text) for name, reason in self.source.left_out.names]
        # Only the names of the first hundred thousand are kept.
        num_unnamed = len(self.source.left_out) - len(left_out)
        if num_unnamed > 0:
            left_out.append((f"and {num_unnamed:,} more", ""))
        lists = {SKIPPED: ledger.skipped, NOTES: ledger.stored.notes, LEFT_OUT: left_out}
        for list_name, rows in lists.items():
            if rows:
                with refusals(self.folder):
                    text = "".join(f"{name}\t{reason}\n" for name, reason in rows)
                    (self.folder / list_name).write_text(text, encoding="utf-8", newline="\n")

    def _hints(self, ledger: Ledger) -> list[str]:
        """A hint if all pictures of 16 bits are nearly black, with what to type."""
        # Many cameras and scanners store 10 or 12 bits in 16, and do not say so.
        largest = ledger.stored.largest
        num_deep = ledger.stored.num_deep
        if not num_deep or largest >= _DARK * 2**self.settings.depth:
            return []
        bits = max(MIN_DEPTH, largest.bit_length())
        what = (
            f"no value of the {num_deep:,} grey pictures of 16 bits is above {largest:,}, "
            "so they are nearly black"
        )
        return [
            (
                f"{what}: if they use only {bits} of their bits, "
                f"prepare them with `--depth {bits} --force`"
            )
        ]

    def _write_preview(self, writer: StoreWriter, count: int) -> None:
        size = max(self.settings.sizes)

        def read(index: int) -> bytes:
            return writer.get(image_key(size, index)) or b""

        write_preview(self.folder, size, self.settings.channels, count, read)


def estimated_bytes(settings: Settings, num_images: int) -> int:
    """About how many bytes `num_images` photographs need on disk."""
    values = sum(size * size * settings.channels for size in settings.sizes)
    pixel_bytes = values * _BYTES_PER_VALUE[settings.encoding]
    # LMDB fills pages of 4096 bytes: on average half of the last page of a picture is empty.
    lost_bytes = 2048 * len(settings.sizes)
    return int(num_images * (pixel_bytes + lost_bytes))
