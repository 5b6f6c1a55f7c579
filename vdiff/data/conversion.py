"""Pictures converted in parallel and handed back in order, and a ledger of what has become of them."""

import json
import time
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from threading import Lock
from typing import TypeVar

from vdiff.data.patience import has_memory, patiently
from vdiff.data.sources import Picture
from vdiff.data.sources.picture import UNREAD
from vdiff.data.store import StoreWriter, image_key
from vdiff.errors import PausedError
from vdiff.images import decoding, images
from vdiff.system.printable import printable
from vdiff.system.threads import check_room

JOB, PART = "vdiff-job", "vdiff-part-"
MIN_DEPTH, MAX_DEPTH = 8, 16
_CHUNK_PICTURES, _CHUNK_BYTES = 16, 2**20
_COMMIT_SECONDS, _COMMIT_BYTES = 5.0, 64 * 2**20
_LARGE_PIXELS = _LARGE_BYTES = 2**24
_BYTES_PER_PIXEL, _BYTES_AROUND = 8, 2**25
"""What a picture of 4 channels takes while it is converted, and everything else that is needed with it."""
_one_large = Lock()  # of pictures with hundreds of megabytes, only one is in memory at a time

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Settings:
    """How pictures are stored: square `sizes` in pixels, 1, 3 or 4 channels, file format, filter for resizing.

    quality: 1 to 100 for jpeg, None for the lossless formats.   depth: bits that grey pictures of 16 bits use.
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

    notes: what was not as it should be.   largest: value of a grey picture of 16 bits, see `decoding.Opened`.
    mark: as `Picture.mark`.
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

    num_files: how many.   labels: of those that were stored.   crcs: of those, per size, eight hexadecimal digits each.
    notes: names of stored ones with what was not as it should be.   num_deep, largest: how many of them are grey
    pictures of 16 bits that do not state how many they use, and the largest value in them.
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
    """What has been stored, and what waits to be: a commit writes pictures and the part that tells of them at once."""

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
        if not converted.data:
            self._part.extend(
                Part(1, skipped=[(converted.name, converted.reason)], marks=converted.mark)
            )
        else:
            index = self.num_stored
            self._waiting |= {image_key(size, index): data for size, data in converted.data.items()}
            self._waiting_bytes += sum(map(len, converted.data.values()))
            crcs = {str(size): f"{zlib.crc32(data):08x}" for size, data in converted.data.items()}
            notes = [(converted.name, note) for note in converted.notes]
            is_deep = converted.largest is not None
            largest = converted.largest or 0
            self._part.extend(
                Part(1, [label], crcs, [], notes, int(is_deep), largest, converted.mark)
            )
        if self._waiting_bytes > _COMMIT_BYTES or time.monotonic() - self._since > _COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Write what waits, if anything does."""
        if not self._part.num_files:
            return
        key = f"{PART}{self.stored.num_files:010d}"
        self._writer.commit({**self._waiting, key: _sealed(self._part)})
        self.stored.extend(self._part)
        self._begin()

    def close(self, records: Mapping[str, bytes]) -> None:
        """Replace the parts, and the name of the job, by the records of a finished store."""
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
    return all(
        f"{zlib.crc32(writer.get(image_key(int(size), index)) or b''):08x}"
        == crcs[size][8 * index : 8 * index + 8]
        for size in crcs
        for index in range(count)
    )


def _sealed(part: Part) -> bytes:
    text = json.dumps(asdict(part)).encode()
    return b"%08x%b" % (zlib.crc32(text), text)


def _unsealed(record: bytes) -> Part:
    """The part that `_sealed` made a record of; ValueError if it is not what was written."""
    seal, text = record[:8], record[8:]
    if seal != b"%08x" % zlib.crc32(text):
        raise ValueError("its checksum differs")
    return Part(**json.loads(text))


def convert(
    pictures: Iterable[Picture], settings: Settings, workers: int
) -> Generator[list[Converted]]:
    """Every picture in every size, in order, a few at a time; `workers` threads work ahead, but not far.

    Threads do: Pillow lets go of the interpreter while it decodes, resizes and encodes.
    """
    return in_order(partial(_convert_chunk, settings), _chunks(pictures), workers, _has_large)


def have_marks(pictures: Iterable[Picture], marks: str, workers: int) -> bool:
    """Whether the pictures, one after the other, are those that had these marks; `workers` threads read them."""
    place = 0
    for found in in_order(_marks_of_chunk, _chunks(pictures), workers, _has_large):
        if marks[place : place + len(found)] != found:
            return False
        place += len(found)
    return place == len(marks)


def in_order(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    is_large: Callable[[Item], bool] = lambda item: False,
) -> Generator[Result]:
    """`map(work, items)` in threads, with at most two items per thread under way; after a large one, nothing is taken.

    is_large: whether an item must be done before the next one is taken.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for count, item in enumerate(items):
                pending.append(_submitted(pool, partial(work, item), starts_thread=count < workers))
                if is_large(item):
                    pending[-1].exception()
                if len(pending) >= 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _submitted(
    pool: ThreadPoolExecutor, work: Callable[[], Result], starts_thread: bool
) -> "Future[Result]":
    try:
        if starts_thread:
            check_room()
        return pool.submit(work)
    except (RuntimeError, MemoryError) as err:  # Python has no other word for it
        if "can't start new thread" not in str(err):
            raise
        fix = "use fewer `--workers`, or allow more threads and memory; the same command then goes on from here"
        raise PausedError("no further thread can be started", fix) from err


def _chunks(pictures: Iterable[Picture]) -> Iterator[list[Picture]]:
    chunk: list[Picture] = []
    for picture in pictures:
        chunk.append(picture)
        if len(chunk) == _CHUNK_PICTURES or sum(one.file.num_bytes for one in chunk) > _CHUNK_BYTES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _has_large(chunk: list[Picture]) -> bool:
    return any(picture.file.num_bytes > _LARGE_BYTES for picture in chunk)


def _marks_of_chunk(chunk: list[Picture]) -> str:
    for picture in chunk:
        with suppress(ValueError):
            patiently(picture.read, printable(picture.file.name), [])
    return "".join(picture.mark for picture in chunk)


def _convert_chunk(settings: Settings, chunk: list[Picture]) -> list[Converted]:
    return [_convert(settings, picture) for picture in chunk]


def _convert(settings: Settings, picture: Picture) -> Converted:
    """PausedError if the machine refuses to read the picture, or has no memory for it."""
    name, notes = printable(picture.file.name), list[str]()
    try:
        data = patiently(picture.read, name, notes)
        done = patiently(partial(_converted, settings, name, data), name, notes)
    except ValueError as err:
        return Converted(name, {}, printable(str(err)) or type(err).__name__, mark=picture.mark)
    return replace(done, notes=notes + done.notes, mark=picture.mark)


def _converted(settings: Settings, name: str, data: bytes) -> Converted:
    """ValueError with the reason if there is no picture in the file, MemoryError if memory ran out.

    Without memory some decoders say that the file is damaged, and a damaged file may ask for more memory than there
    is. So it is called bad only when it has failed twice and there was enough memory for it after both times.
    """
    num_pixels = images.count_pixels(data)
    needed = _BYTES_PER_PIXEL * min(num_pixels, images.MAX_PIXELS) + _BYTES_AROUND
    reason = ""
    for _ in range(2):
        try:
            with _one_large if num_pixels > _LARGE_PIXELS else nullcontext():
                return _encoded(settings, name, data)
        except decoding.DamagedError as err:
            reason = str(err)
        except MemoryError:
            reason = "it takes more memory than a picture of its size should"
        # Out of the handlers, which keep in memory what was there.
        if not has_memory(needed):
            raise MemoryError
    raise ValueError(reason)


def _encoded(settings: Settings, name: str, data: bytes) -> Converted:
    opened = decoding.open_picture(data, settings.channels, settings.depth)
    mode, quality = images.MODES[settings.channels], settings.quality or 100
    encoded = {}
    for size in settings.sizes:
        square = images.fit_square(opened.picture, size, settings.resampling).convert(mode)
        try:
            encoded[size] = images.encode_picture(square, settings.encoding, quality)
        except (
            OSError,
            ValueError,
        ) as err:  # any pixels can be encoded: what can be missing is memory
            raise MemoryError(str(err)) from err
    return Converted(
        name, encoded, notes=[printable(note) for note in opened.notes], largest=opened.largest
    )
