"""One image store under construction: begun or gone on with, filled, given its side files and closed."""

import hashlib
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from vdiff import __version__, images
from vdiff.data.conversion import JOB, MIN_DEPTH, PART, Ledger, Settings, convert, is_sound
from vdiff.data.metadata import Metadata
from vdiff.data.opened import FILE, check_pages
from vdiff.data.patience import has_memory
from vdiff.data.publishing import NOTES, PREVIEW, SKIPPED, STORE, clear, writing
from vdiff.data.seal import write_seal
from vdiff.data.sources import Source
from vdiff.data.store import LENGTH, METADATA, StoreWriter, image_key, is_store
from vdiff.errors import DataError, PausedError, Stopped
from vdiff.whole_folder import clean

_PREVIEW_PIXELS = 2048
_PREVIEW_BYTES = 2**26
"""What decoding a record of the largest size takes."""
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
    said: why what an earlier start had left was not gone on with.
    """

    source: Source
    settings: Settings
    folder: Path
    max_bad: float
    workers: int
    said: list[str] = field(default_factory=list)

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
                metadata = self._metadata(ledger)
                ledger.close({METADATA: metadata.to_json(), LENGTH: str(ledger.num_stored).encode()})
                done = Done(resumed_at, self._hints(ledger))
        self._seal(metadata)
        return done

    def has_progress(self) -> bool:
        """Whether the folder holds pictures that the next `run` need not store again."""
        with self._writer() as writer:
            return bool(writer.records(PART))

    def _writer(self) -> StoreWriter:
        expected = estimated_bytes(self.settings, len(self.source.files))
        with writing(self.folder):
            for name in (".preview.png.*", ".skipped.tsv.*"):  # half of it, of a process that was killed
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
                self.said.append(f"what an earlier start left in `{self.folder}` cannot be gone on with: {reason}")
            clear(self.folder)
        writer = StoreWriter(self.folder, expected)
        writer.commit({JOB: self._name()})
        return writer

    def _objection(self, writer: StoreWriter) -> str:
        """Why what an earlier start has stored cannot be gone on with; empty if it can."""
        text, name = writer.get(METADATA), writer.get(JOB)
        try:
            if text:  # it was finished, but not published
                metadata = Metadata.from_json(text)
                is_this = made_from(metadata, self.source, self.settings)
                crcs, count = {str(size): crcs for size, crcs in metadata.crcs.items()}, metadata.count
            else:
                stored = Ledger(writer).stored
                is_this = name == self._name()
                crcs, count = stored.crcs, len(stored.labels)
        except ValueError as err:
            return f"what it says of itself is damaged: {err}"
        if not is_this:
            return "it was begun from other pictures or with other settings"
        return "" if is_sound(writer, crcs, count) else "a picture in it is not what was written"

    def _seal(self, metadata: Metadata) -> None:
        write_seal(self.folder, metadata, (self.folder / FILE).stat().st_size, check_pages(self.folder))

    def _name(self) -> bytes:
        document = json.dumps([self.source.fingerprint, asdict(self.settings)])
        return hashlib.sha256(document.encode()).hexdigest().encode()

    def _store_all(self, ledger: Ledger, on_progress: Callable[[Progress], None]) -> None:
        labels, total = self.source.labels(), len(self.source.files)
        pictures = self.source.pictures(ledger.num_files)
        on_progress(Progress(ledger.num_stored, ledger.num_files - ledger.num_stored, total))
        with closing(convert(pictures, self.settings, self.workers)) as chunks:
            try:
                for chunk in chunks:
                    for converted in chunk:
                        ledger.add(converted, labels[ledger.num_files])
                    self._refuse_too_many(ledger)
                    on_progress(Progress(ledger.num_stored, ledger.num_files - ledger.num_stored, total))
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
            raise DataError("the pictures changed while they were read", "type the command again", self.source.path)

    def _metadata(self, ledger: Ledger) -> Metadata:
        class_names = self.source.class_names
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
        for name, rows in ((SKIPPED, ledger.skipped), (NOTES, ledger.stored.notes)):
            if rows:
                with writing(self.folder):
                    text = "".join(f"{name}\t{reason}\n" for name, reason in rows)
                    (self.folder / name).write_text(text, encoding="utf-8")

    def _hints(self, ledger: Ledger) -> list[str]:
        """That pictures of 16 bits are nearly black, and what to type."""
        largest, num_deep = ledger.stored.largest, ledger.stored.num_deep
        if not num_deep or largest >= _DARK * 2**self.settings.depth:
            return []
        bits = max(MIN_DEPTH, largest.bit_length())
        what = f"no value of the {num_deep:,} grey pictures of 16 bits is above {largest:,}, so they are nearly black"
        return [f"{what}: if they use only {bits} of their bits, prepare them with `--depth {bits} --force`"]

    def _write_preview(self, writer: StoreWriter, count: int) -> None:
        """Up to 64 pictures from all over the store, in its largest size, on at most 2048 x 2048 pixels."""
        import torch

        size = max(self.settings.sizes)
        columns = min(8, max(1, _PREVIEW_PIXELS // size))
        chosen = np.linspace(0, count - 1, min(count, columns**2)).astype(int).tolist()
        stored = [writer.get(image_key(size, index)) or b"" for index in chosen]
        pictures = np.stack([_decoded(data, self.settings.channels) for data in stored])
        page = images.grid(torch.from_numpy(pictures), scale=max(1, 64 // size))
        (self.folder / PREVIEW).unlink(missing_ok=True)  # of an earlier start; versions before 0.2 did not sign theirs
        images.write_png(self.folder / PREVIEW, page)


def _decoded(record: bytes, channels: int) -> images.Pixels:
    """A picture that was just stored; MemoryError where a decoder calls it damaged because it has no memory."""
    try:
        return images.decode(record, channels)
    except ValueError as err:
        if not has_memory(_PREVIEW_BYTES):
            raise MemoryError from err
        raise


def made_from(metadata: Metadata, source: Source, settings: Settings) -> bool:
    """Whether a store with this metadata was made from these files with these settings."""
    made = {name: getattr(metadata, name) for name in asdict(settings)}
    return metadata.source == source.fingerprint and {**made, "sizes": tuple(metadata.sizes)} == asdict(settings)


def estimated_bytes(settings: Settings, num_images: int) -> int:
    """About how much `num_images` photographs need on disk."""
    values = sum(size * size * settings.channels for size in settings.sizes)
    return int(num_images * (values * _BYTES_PER_VALUE[settings.encoding] + 2048 * len(settings.sizes)))
