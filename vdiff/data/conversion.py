"""Pictures are converted in parallel and handed back in order.

A ledger records what has become of them.
"""

import json
import time
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from threading import Lock

from vdiff.data.in_order import in_order
from vdiff.data.patience import has_memory, patiently
from vdiff.data.sources import Picture
from vdiff.data.sources.picture import UNREAD
from vdiff.data.store import StoreWriter, image_key
from vdiff.images import decoding, images
from vdiff.system.printable import printable

# Keys of an unfinished store.
JOB = "vdiff-job"
PART = "vdiff-part-"

MIN_DEPTH = 8
MAX_DEPTH = 16

# What a thread takes at a time: one picture each would cost more in handing over than in work.
_CHUNK_PICTURES = 16
_CHUNK_BYTES = 2**20

# A kill loses at most this much work. A commit waits for the disk, so it is not made for each
# picture.
_COMMIT_SECONDS = 5.0
_COMMIT_BYTES = 64 * 2**20

_LARGE_PIXELS = 2**24
_LARGE_BYTES = 2**24
_BYTES_PER_PIXEL = 8
_BYTES_AROUND = 2**25
"""What a picture of 4 channels takes while it is converted,
and everything else that is needed with it.
"""

# Of pictures that take hundreds of megabytes, only one is in memory at a time.
_one_large = Lock()


@dataclass(frozen=True)
class Settings:
    """How pictures are stored: square `sizes` in pixels, 1, 3 or 4 channels, file format,
    filter for resizing.

    quality: 1 to 100 for jpeg, None for the lossless formats.
    depth: bits that grey pictures of 16 bits use.
    """

    sizes: tuple[int, ...]
    channels: int
    encoding: images.Encoding
    quality: int | None
    resampling: images.Resampling
    depth: int = MAX_DEPTH


@dataclass(frozen=True)
class Converted:
    """A picture's encoded bytes in each size; or, where there are none, the reason.

    notes: what was not as it should be.   largest: the largest value of a grey picture of 16 bits
    that does not state how many of them it uses; None for any other.   mark: as `Picture.mark`.
    """

    name: str
    data: dict[int, bytes]
    reason: str = ""
    notes: list[str] = field(default_factory=list)
    largest: int | None = None
    mark: str = UNREAD


@dataclass
class Part:
    """What became of some files, one after the other.

    num_files: how many.   labels: of the files that were stored.
    crcs: their CRC-32 in each size, eight hexadecimal digits each.
    skipped: names of the other files, with the reason.
    notes: names of stored files, with what was not as it should be.
    num_deep: how many stored files are grey pictures of 16 bits that do not state how many of them
    they use.   largest: the largest value in those.
    marks: of all files, eight letters each.
    """

    num_files: int = 0
    labels: list[int] = field(default_factory=list)
    crcs: dict[str, str] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    num_deep: int = 0
    largest: int = 0
    marks: str = ""

    def extend(self, other: "Part") -> None:
        """Append the files of another part."""
        self.num_files += other.num_files
        self.labels += other.labels
        self.skipped += [(name, reason) for name, reason in other.skipped]
        self.notes += [(name, note) for name, note in other.notes]
        self.marks += other.marks
        self.num_deep += other.num_deep
        self.largest = max(self.largest, other.largest)
        for size, crcs in other.crcs.items():
            self.crcs[size] = self.crcs.get(size, "") + crcs


class Ledger:
    """What has been stored, and what waits to be.

    One commit writes pictures together with the part that lists them.
    """

    def __init__(self, writer: StoreWriter) -> None:
        self._writer = writer
        self.stored = Part()
        for text in writer.records(PART).values():
            self.stored.extend(_unsealed(text))
        self._begin()

    @property
    def num_files(self) -> int:
        """How many files were dealt with."""
        return self.stored.num_files + self._part.num_files

    @property
    def num_stored(self) -> int:
        """How many of them are pictures now."""
        return len(self.stored.labels) + len(self._part.labels)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """The name of each other file and the reason."""
        return self.stored.skipped + self._part.skipped

    def add(self, converted: Converted, label: int) -> None:
        """Take one more file; commit if much has come together."""
        if converted.data:
            self._add_stored(converted, label)
        else:
            skipped = [(converted.name, converted.reason)]
            self._part.extend(Part(num_files=1, skipped=skipped, marks=converted.mark))
        if self._waiting_bytes > _COMMIT_BYTES or time.monotonic() - self._since > _COMMIT_SECONDS:
            self.commit()

    def _add_stored(self, converted: Converted, label: int) -> None:
        index = self.num_stored
        for size, data in converted.data.items():
            self._waiting[image_key(size, index)] = data
            self._waiting_bytes += len(data)
        part = Part(
            num_files=1,
            labels=[label],
            crcs={str(size): f"{zlib.crc32(data):08x}" for size, data in converted.data.items()},
            notes=[(converted.name, note) for note in converted.notes],
            num_deep=int(converted.largest is not None),
            largest=converted.largest or 0,
            marks=converted.mark,
        )
        self._part.extend(part)

    def commit(self) -> None:
        """Write what waits, if anything does."""
        if not self._part.num_files:
            return
        # Ten digits: the keys stand in the order in which the parts were written.
        key = f"{PART}{self.stored.num_files:010d}"
        # One transaction: after a kill, the store holds both the pictures and their part, or
        # neither.
        self._writer.commit({**self._waiting, key: _sealed(self._part)})
        self.stored.extend(self._part)
        self._begin()

    def close(self, records: Mapping[str, bytes]) -> None:
        """Replace the parts, and the name of the job, by the records of a finished store."""
        # None deletes a record. In one transaction: a store is never without either.
        parts = dict.fromkeys([JOB, *self._writer.records(PART)])
        self._writer.commit({**parts, **records})

    def _begin(self) -> None:
        self._part = Part()
        self._waiting: dict[str, bytes] = {}
        self._waiting_bytes = 0
        self._since = time.monotonic()


def is_sound(writer: StoreWriter, crcs: Mapping[str, str], count: int) -> bool:
    """Whether every picture that an earlier start has stored is still what was written.

    crcs: for each size eight hexadecimal digits per picture.   count: how many pictures there are.
    """
    for size, crcs_of_size in crcs.items():
        for index in range(count):
            record = writer.get(image_key(int(size), index)) or b""
            if f"{zlib.crc32(record):08x}" != crcs_of_size[8 * index : 8 * index + 8]:
                return False
    return True


def _sealed(part: Part) -> bytes:
    # One flipped bit in a part could be a wrong label, which nobody would notice.
    text = json.dumps(asdict(part)).encode()
    return b"%08x%b" % (zlib.crc32(text), text)


def _unsealed(record: bytes) -> Part:
    """The part that `_sealed` made a record of; ValueError if it is not what was written."""
    seal = record[:8]
    text = record[8:]
    if seal != b"%08x" % zlib.crc32(text):
        raise ValueError("its checksum differs")
    return Part(**json.loads(text))


def convert(
    pictures: Iterable[Picture], settings: Settings, num_threads: int
) -> Generator[list[Converted]]:
    """Every picture in every size, in order, a few at a time.

    `num_threads` threads work a little ahead.
    """
    # Threads, not processes: Pillow releases the interpreter's lock while it decodes, resizes and
    # encodes.
    return in_order(partial(_convert_chunk, settings), _chunks(pictures), num_threads, _has_large)


def have_marks(pictures: Iterable[Picture], marks: str, num_threads: int) -> bool:
    """Whether the pictures have these marks, in this order; `num_threads` threads read them."""
    place = 0
    for chunk_marks in in_order(_marks_of_chunk, _chunks(pictures), num_threads, _has_large):
        if marks[place : place + len(chunk_marks)] != chunk_marks:
            return False
        place += len(chunk_marks)
    return place == len(marks)


def _chunks(pictures: Iterable[Picture]) -> Iterator[list[Picture]]:
    chunk: list[Picture] = []
    for picture in pictures:
        chunk.append(picture)
        num_bytes = sum(taken.file.num_bytes for taken in chunk)
        if len(chunk) == _CHUNK_PICTURES or num_bytes > _CHUNK_BYTES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _has_large(chunk: list[Picture]) -> bool:
    return any(picture.file.num_bytes > _LARGE_BYTES for picture in chunk)


def _marks_of_chunk(chunk: list[Picture]) -> str:
    for picture in chunk:
        # What is no picture has a mark too, of as much as was read of it.
        with suppress(ValueError):
            patiently(picture.read, printable(picture.file.name), [])
    return "".join(picture.mark for picture in chunk)


def _convert_chunk(settings: Settings, chunk: list[Picture]) -> list[Converted]:
    return [_convert(settings, picture) for picture in chunk]


def _convert(settings: Settings, picture: Picture) -> Converted:
    """PausedError if the machine refuses to read the picture, or has no memory for it."""
    name = printable(picture.file.name)
    notes: list[str] = []
    try:
        data = patiently(picture.read, name, notes)
        converted = patiently(partial(_converted, settings, name, data), name, notes)
    except ValueError as err:
        return Converted(name, {}, printable(str(err)) or type(err).__name__, mark=picture.mark)
    return replace(converted, notes=notes + converted.notes, mark=picture.mark)


def _converted(settings: Settings, name: str, data: bytes) -> Converted:
    """The picture in these bytes.

    Errors: ValueError if there is none, MemoryError if memory ran out.
    """
    num_pixels = images.count_pixels(data)
    # The number may be a lie: no picture may have more than MAX_PIXELS.
    needed = _BYTES_PER_PIXEL * min(num_pixels, images.MAX_PIXELS) + _BYTES_AROUND
    turn: AbstractContextManager[object] = nullcontext()
    if num_pixels > _LARGE_PIXELS:
        turn = _one_large
    reason = ""
    # Without memory, some decoders say that the file is damaged; and a damaged file may ask for
    # more memory than there is. So a file is called bad only if it fails twice, with enough memory
    # for it after both times.
    for _ in range(2):
        try:
            with turn:
                return _encoded(settings, name, data)
        except decoding.DamagedError as err:
            reason = str(err)
        except MemoryError:
            reason = "it takes more memory than a picture of its size should"
        # Not in the handlers: their traceback keeps the picture in memory.
        if not has_memory(needed):
            raise MemoryError
    raise ValueError(reason)


def _encoded(settings: Settings, name: str, data: bytes) -> Converted:
    opened = decoding.open_picture(data, settings.channels, settings.depth)
    mode = images.MODES[settings.channels]
    quality = settings.quality or 100
    encoded = {}
    for size in settings.sizes:
        square = images.fit_square(opened.picture, size, settings.resampling).convert(mode)
        try:
            encoded[size] = images.encode_picture(square, settings.encoding, quality)
        except (OSError, ValueError) as err:
            # Any pixels can be encoded, so only memory can be missing.
            raise MemoryError(str(err)) from err
    notes = [printable(note) for note in opened.notes]
    return Converted(name, encoded, notes=notes, largest=opened.largest)
