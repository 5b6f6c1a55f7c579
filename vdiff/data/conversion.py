"""Pictures converted in parallel and handed back in order, and a ledger of what has become of them."""

import json
import time
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from threading import Lock
from typing import TypeVar

from vdiff import images
from vdiff.data.sources import Picture, printable
from vdiff.data.store import StoreWriter, image_key

JOB, PART = "vdiff-job", "vdiff-part-"
_CHUNK_PICTURES, _CHUNK_BYTES = 16, 2**20
_COMMIT_SECONDS, _COMMIT_BYTES = 5.0, 64 * 2**20
_LARGE_PIXELS = _LARGE_BYTES = 2**24
_one_large = Lock()  # of pictures with hundreds of megabytes, only one is in memory at a time

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Settings:
    """How pictures are stored: square `sizes` in pixels, 1, 3 or 4 channels, file format, filter for resizing.

    quality: 1 to 100 for jpeg, None for the lossless formats.
    """

    sizes: tuple[int, ...]
    channels: int
    encoding: images.Encoding
    quality: int | None
    resampling: images.Resampling


@dataclass(frozen=True)
class Converted:
    """A picture's encoded bytes in each size, or the reason why there are none."""

    name: str
    data: dict[int, bytes]
    reason: str = ""


@dataclass
class Part:
    """What became of some files, one after the other.

    num_files: how many.   labels: of those that were stored.   crcs: of those, per size, eight hexadecimal digits each.
    """

    num_files: int = 0
    labels: list[int] = field(default_factory=list)
    crcs: dict[str, str] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def extend(self, other: "Part") -> None:
        """Append the files of another part."""
        self.num_files += other.num_files
        self.labels += other.labels
        self.skipped += [(name, reason) for name, reason in other.skipped]
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
        if converted.reason:
            self._part.extend(Part(1, skipped=[(converted.name, converted.reason)]))
        else:
            index = self.num_stored
            self._waiting |= {image_key(size, index): data for size, data in converted.data.items()}
            self._waiting_bytes += sum(map(len, converted.data.values()))
            crcs = {str(size): f"{zlib.crc32(data):08x}" for size, data in converted.data.items()}
            self._part.extend(Part(1, [label], crcs))
        if self._waiting_bytes > _COMMIT_BYTES or time.monotonic() - self._since > _COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Write what waits."""
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
        f"{zlib.crc32(writer.get(image_key(int(size), index)) or b''):08x}" == crcs[size][8 * index : 8 * index + 8]
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


def convert(pictures: Iterable[Picture], settings: Settings, workers: int) -> Generator[list[Converted]]:
    """Every picture in every size, in order, a few at a time; `workers` threads work ahead, but not far.

    Threads do: Pillow lets go of the interpreter while it decodes, resizes and encodes.
    """
    return in_order(partial(_convert_chunk, settings), _chunks(pictures), workers, _has_large)


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
            for item in items:
                pending.append(pool.submit(work, item))
                if is_large(item):
                    pending[-1].exception()
                if len(pending) >= 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


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


def _convert_chunk(settings: Settings, chunk: list[Picture]) -> list[Converted]:
    return [_convert(settings, picture) for picture in chunk]


def _convert(settings: Settings, picture: Picture) -> Converted:
    try:
        data = picture.read()
        with _one_large if images.count_pixels(data) > _LARGE_PIXELS else nullcontext():
            return Converted(printable(picture.file.name), _encoded(settings, data))
    except ValueError as err:
        return Converted(printable(picture.file.name), {}, printable(str(err)))


def _encoded(settings: Settings, data: bytes) -> dict[int, bytes]:
    """The picture in each size; ValueError if it cannot be read."""
    opened = images.open_picture(data, settings.channels)
    squares = {size: images.fit_square(opened, size, settings.resampling) for size in settings.sizes}
    quality = settings.quality or 100
    return {size: images.encode_picture(square, settings.encoding, quality) for size, square in squares.items()}
