"""Does a damaged or hostile archive ever cost vdiff more than a message? Seeded mutations of zip
and tar files.

    python benchmarks/fuzz_archives.py --count 5000 --seed 0

Each case takes one of the archives of the corpus, changes it at some places (fields of headers,
with their checksums made right again, records of pax, packed bytes, cut-off ends, blocks that are
doubled or zeroed), opens it and reads every picture, in a child process that may grow by 400 MB and
has 10 seconds. Bad is: a crash, a hang, that much memory, an error that is no message to the user,
pictures that are missing without a word, a picture that was never in it.
"""

import argparse
import bz2
import io
import lzma
import math
import os
import random
import re
import resource
import signal
import struct
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vdiff.data.sources import open_source
from vdiff.errors import VdiffError
from vdiff.images import images

NUM_PICTURES, PIXELS = 8, 6
SECONDS, GROWTH = 10, 400 * 10**6
INTERESTING = (0, 1, 2, 4, 8, 0x20, 0x2E, 0x2F, 0x5C, 0x7F, 0x80, 0xFF)
GOOD = (
    "all pictures",
    "fewer, and told",
    "fewer, as Python's tarfile finds",
    "refused with a message",
)


@dataclass(frozen=True)
class Sample:
    """An archive of the corpus.

    pack: what is done to it after a mutation.   is_tar: whether it has tar's blocks.
    """

    name: str
    data: bytes
    pack: Callable[[bytes], bytes]
    is_tar: bool


def pictures() -> dict[str, bytes]:
    """Small files of random pixels in two class folders."""
    found = {}
    for index in range(NUM_PICTURES):
        pixels = np.random.default_rng(index).integers(0, 256, (PIXELS, PIXELS, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        found[f"{'ab'[index % 2]}/{index}.png"] = file.getvalue()
    return found


def zips() -> dict[str, bytes]:
    """Zip files of every kind that zipfile writes."""
    kinds = {
        "stored": zipfile.ZIP_STORED,
        "deflated": zipfile.ZIP_DEFLATED,
        "bzip2": zipfile.ZIP_BZIP2,
    }
    found = {name: zipped(method) for name, method in {**kinds, "lzma": zipfile.ZIP_LZMA}.items()}
    found["zip64"] = zipped(zipfile.ZIP_DEFLATED, force_zip64=True)
    found["streamed"] = zipped(zipfile.ZIP_DEFLATED, is_streamed=True)
    found["comment"] = zipped(zipfile.ZIP_STORED, comment=b"PK\5\6 is not here " * 9)
    found["behind"] = b"#!/bin/sh\nexit\n" * 9 + zipped(zipfile.ZIP_STORED)
    found["utf-8"] = zipped(zipfile.ZIP_STORED, folder="ü")
    return found


class Pipe(io.BytesIO):
    """A file that cannot be sought in, so that sizes follow the data."""

    def seekable(self) -> bool:
        return False

    def seek(self, *unused: Any) -> int:
        raise OSError("not seekable")

    def tell(self) -> int:
        raise OSError("not seekable")


def zipped(
    method: int,
    folder: str = "",
    comment: bytes = b"",
    force_zip64: bool = False,
    is_streamed: bool = False,
) -> bytes:
    """A zip file of the pictures."""
    file = Pipe() if is_streamed else io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.comment = comment
        for name, data in pictures().items():
            with archive.open(
                zipfile.ZipInfo(folder + name), "w", force_zip64=force_zip64
            ) as member:
                member.write(data)
    return file.getvalue()


def tars() -> dict[str, bytes]:
    """Tar files of every format, with long names, pax records and links; not compressed yet."""
    formats = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
    found = {}
    for name, form in formats.items():
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=form) as archive:
            for index, (path, data) in enumerate(pictures().items()):
                long = "" if form == tarfile.USTAR_FORMAT else "x" * 120
                member = tarfile.TarInfo(path.replace("/", f"{long}/"))
                member.size, member.mtime = (
                    len(data),
                    index + (0.5 if form == tarfile.PAX_FORMAT else 0),
                )
                archive.addfile(member, io.BytesIO(data))
        found[name] = file.getvalue()
    return found


def corpus() -> list[Sample]:
    """All archives that are mutated."""

    def same(data: bytes) -> bytes:
        return data

    packs: dict[str, Callable[[bytes], bytes]] = {
        "plain": same,
        "gz": lambda data: zlib.compress(data, 1, 31),
        "bz2": lambda data: bz2.compress(data, 1),
        "xz": lambda data: lzma.compress(data, preset=0),
    }
    found = [Sample(f"zip {name}", data, same, False) for name, data in zips().items()]
    for name, data in tars().items():
        found += [Sample(f"tar {name} {how}", data, pack, True) for how, pack in packs.items()]
        found += [
            Sample(f"tar {name} {how} packed", pack(data), same, False)
            for how, pack in packs.items()
            if how != "plain"
        ]
    return found


def mutated(sample: Sample, rng: random.Random) -> tuple[bytes, int]:
    """The archive with one to four changes, and how many pictures can still be missed.

    A tar file whose blocks have lost both the header and the data of a member is one that never had
    it.
    """
    data = bytearray(sample.data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        change = rng.choice(
            (flip, flip, set_byte, set_number, set_number, cut, zero, double, remove, swap, junk)
        )
        place = (
            interesting_place(data, sample.is_tar, rng)
            if rng.random() < 0.8
            else rng.randrange(max(1, len(data)))
        )
        change(data, min(place, max(0, len(data) - 1)), rng)
    if sample.is_tar and rng.random() < 0.8:
        mend_checksums(data)
    if not sample.is_tar:
        return sample.pack(bytes(data)), NUM_PICTURES
    left = sum(data.startswith(b"\x89PNG", place) for place in range(0, len(data), 512))
    return sample.pack(bytes(data)), min(left, NUM_PICTURES)


def interesting_place(data: bytearray, is_tar: bool, rng: random.Random) -> int:
    """A byte of a header."""
    if is_tar:
        heads = [
            place
            for place in range(0, len(data) - 511, 512)
            if data[place + 257 : place + 262] == b"ustar"
        ]
        start = rng.choice(heads or [0])
        field = rng.choice(
            (
                (0, 100),
                (124, 12),
                (124, 12),
                (156, 1),
                (156, 1),
                (157, 100),
                (257, 8),
                (345, 155),
                (512, 40),
            )
        )
        return start + field[0] + rng.randrange(field[1])
    kinds = (b"PK\5\6", b"PK\1\2", b"PK\1\2", b"PK\3\4", b"PK\6\6", b"PK\6\7")
    heads = [match.start() for match in re.finditer(re.escape(rng.choice(kinds)), data)]
    return rng.choice(heads or [0]) + rng.randrange(60)


def flip(data: bytearray, place: int, rng: random.Random) -> None:
    """One bit."""
    if data:
        data[place] ^= 1 << rng.randrange(8)


def set_byte(data: bytearray, place: int, rng: random.Random) -> None:
    """One byte."""
    if data:
        data[place] = rng.choice(INTERESTING)


def set_number(data: bytearray, place: int, rng: random.Random) -> None:
    """A number of two, four or eight bytes, or of octal digits."""
    number = rng.choice(
        (
            0,
            1,
            2**15,
            2**16 - 1,
            2**31,
            2**32 - 1,
            2**32,
            2**63 - 1,
            2**64 - 1,
            len(data),
            rng.randrange(999),
        )
    )
    form, size = rng.choice((("<H", 2), ("<L", 4), ("<Q", 8), ("octal", 12), ("256", 12)))
    if form == "octal":
        new = b"%011o\0" % (number % 2**33)
    elif form == "256":
        new = rng.choice((b"\x80", b"\xff")) + (number % 2**64).to_bytes(11)
    else:
        new = struct.pack(form, number % 2 ** (8 * size))
    data[place : place + size] = new[: len(data) - place]


def cut(data: bytearray, place: int, rng: random.Random) -> None:
    """The end."""
    del data[
        rng.choice(
            (place, rng.randrange(len(data) + 1), max(0, len(data) - rng.randrange(1, 64)))
        ) :
    ]


def zero(data: bytearray, place: int, rng: random.Random) -> None:
    """Some bytes, or a block."""
    size = rng.choice((1, 4, 16, 512))
    place = place // 512 * 512 if size == 512 else place
    data[place : place + size] = bytes(len(data[place : place + size]))


def double(data: bytearray, place: int, rng: random.Random) -> None:
    """Some bytes, or some blocks, come twice."""
    size = rng.choice((1, 4, 46, 512, 1024))
    place = place // 512 * 512 if size >= 512 else place
    data[place:place] = data[place : place + size]


def remove(data: bytearray, place: int, rng: random.Random) -> None:
    """Some bytes, or some blocks."""
    size = rng.choice((1, 4, 46, 512, 1024))
    place = place // 512 * 512 if size >= 512 else place
    del data[place : place + size]


def swap(data: bytearray, place: int, rng: random.Random) -> None:
    """Two pieces."""
    size = rng.choice((4, 64, 512))
    other = rng.randrange(max(1, len(data) - size))
    place = min(place, max(0, len(data) - size))
    data[place : place + size], data[other : other + size] = (
        data[other : other + size],
        data[place : place + size],
    )


def junk(data: bytearray, place: int, rng: random.Random) -> None:
    """Random bytes in between, or at the end."""
    place = rng.choice((place, len(data)))
    data[place:place] = rng.randbytes(rng.choice((1, 22, 512, 5000)))


def mend_checksums(data: bytearray) -> None:
    """Make the checksums of tar's headers right again, so that the changes count."""
    for place in range(0, len(data) - 511, 512):
        if data[place + 257 : place + 262] == b"ustar":
            data[place + 148 : place + 156] = b" " * 8
            data[place + 148 : place + 156] = b"%06o\0 " % sum(data[place : place + 512])


def outcome(path: Path, known: set[bytes], wanted: int) -> str:
    """What becomes of an archive: one of GOOD, or what is bad.

    wanted: how many pictures are in it.
    """
    try:
        source: Any = open_source(path)
        taken = unreadable = 0
        for picture in source.pictures(0):
            try:
                pixels = images.decode(picture.read(), 3)
            except ValueError:
                unreadable += 1
                continue
            taken += 1
            if pixels.tobytes() not in known:
                return "a picture that was never in it"
        if taken + unreadable != len(source.files):
            return "fewer than listed, and no word"
    except VdiffError as err:
        return "refused with a message" if err.exit_code in (3, 6) else f"exit code {err.exit_code}"
    except MemoryError:
        return "too much memory"
    except Exception as err:
        return f"bug in vdiff: {type(err).__name__}"
    if taken >= wanted:
        return "all pictures"
    told = unreadable + len(getattr(source, "left_out", [])) + len(getattr(source, "notes", []))
    if taken + told >= wanted or getattr(source, "notes", []):
        return "fewer, and told"
    return (
        "fewer, as Python's tarfile finds"
        if taken + told >= members(path)
        else "fewer, and no word"
    )


def members(path: Path) -> float:
    """How many files another reader finds in a tar file:
    a header may say that a file holds the ones behind it.
    """
    try:
        with tarfile.open(path) as archive:
            return sum(not member.isdir() for member in archive)
    except tarfile.TarError:
        return math.inf


def memory(what: str) -> int:
    """VmRSS, VmHWM or VmSize of this process in bytes."""
    found = re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def work(
    cases: range, seed: int, samples: list[Sample], known: set[bytes], folder: Path, pipe: int
) -> None:
    """In a child process: one line of the pipe for each case, until something ends it."""
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + 2 * GROWTH, resource.RLIM_INFINITY))
    before = memory("VmRSS")
    for case in cases:
        rng = random.Random(f"{seed} {case}")
        path = folder / "archive"
        data, wanted = mutated(rng.choice(samples), rng)
        path.write_bytes(data)
        signal.alarm(SECONDS)
        found = outcome(path, known, wanted)
        signal.alarm(0)
        if memory("VmHWM") - before > GROWTH:
            found = "too much memory"
        os.write(pipe, f"{found}\n".encode())
        if found == "too much memory":
            return


def campaign(count: int, seed: int, only: int | None = None) -> list[str]:
    """The outcome of each case."""
    samples = corpus()
    known = {images.decode(data, 3).tobytes() for data in pictures().values()}
    found: list[str] = []
    cases = range(count) if only is None else range(only, only + 1)
    with tempfile.TemporaryDirectory() as folder:
        while len(found) < len(cases):
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(reading)
                work(cases[len(found) :], seed, samples, known, Path(folder), writing)
                os._exit(0)
            os.close(writing)
            with os.fdopen(reading) as pipe:
                found += pipe.read().splitlines()
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if code == -signal.SIGALRM:
                found.append(f"longer than {SECONDS} seconds")
            elif code:
                found.append(f"crash: exit code {code}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this case alone")
    parser.add_argument("--keep", type=Path, help="write the archive of --only here")
    given = parser.parse_args()
    if given.keep:
        rng = random.Random(f"{given.seed} {given.only}")
        given.keep.write_bytes(mutated(rng.choice(corpus()), rng)[0])
    started = time.monotonic()
    found = campaign(given.count, given.seed, given.only)
    for what, number in sorted(
        Counter(found).items(), key=lambda item: (item[0] not in GOOD, -item[1])
    ):
        bad = (
            []
            if what in GOOD
            else [str(case) for case, each in enumerate(found) if each == what][:8]
        )
        print(f"{number:7,}  {what}" + (f"   (cases {', '.join(bad)})" if bad else ""))
    seconds = time.monotonic() - started
    print(
        f"{len(found):7,}  in all, of {len(corpus())} archives, seed {given.seed}, {seconds:.0f} s"
    )
    return int(any(each not in GOOD for each in found))


if __name__ == "__main__":
    sys.exit(main())
