"""Damaged pictures by the thousand through `vdiff prepare`:
none may crash it, keep it busy or fill the memory.

    python benchmarks/fuzz_pictures.py [--count 5000] [--seed 0] [--keep FOLDER]

The seeds are small pictures of every format, mode and compression that Pillow writes, made on the
spot. A case is one of them with one to four changes: bits, bytes, numbers in headers, pieces cut
out, doubled or swapped, chunks of PNG with their checksums made good, tags of TIFF, the end cut
off. The same seed and number give the same case. Bad
outcomes: the process dies, an error that is a bug, more than 10 seconds, more than 500 MB, a record
that does not decode, a line on the terminal. Cases with a bad outcome are written to the folder
that `--keep` names.
"""

import argparse
import io
import json
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageCms

SECONDS, MEGABYTES = 10.0, 500
BATCH = 250
_EXTREMES = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x10000,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
)
_SUFFIXES = {"JPEG": "jpg", "TIFF": "tif", "JPEG2000": "jp2", "PPM": "ppm"}

Seed = tuple[str, bytes]
Mutation = Callable[[random.Random, bytearray], bytearray]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        _convert_all(given.child)
        return 0
    _captured_stderr()  # libtiff tells what it cannot write
    seeds, began = list(_seeds()), time.monotonic()
    print(f"{len(seeds)} seeds, {given.count} cases, seed {given.seed}", flush=True)
    outcomes: Counter[str] = Counter()
    bad: list[str] = []
    slowest, largest = 0.0, 0.0
    for start in range(0, given.count, BATCH):
        cases = [
            _case(seeds, given.seed, index)
            for index in range(start, min(start + BATCH, given.count))
        ]
        for (name, data), found in zip(cases, _tried(cases), strict=True):
            outcomes[found["outcome"]] += 1
            slowest, largest = max(slowest, found["seconds"]), max(largest, found["megabytes"])
            if found["bad"]:
                bad.append(f"{name}: {found['bad']}")
                print(f"bad: {bad[-1]}", flush=True)
                if given.keep:
                    given.keep.mkdir(parents=True, exist_ok=True)
                    (given.keep / name).write_bytes(data)
    for outcome, number in outcomes.most_common():
        print(f"{number:6} {outcome}")
    took = time.monotonic() - began
    print(
        f"{len(bad)} bad outcomes; slowest {slowest:.1f} s, most memory {largest:.0f} MB; "
        f"{took:.0f} s in all"
    )
    return int(bool(bad))


# ---- cases


def _seeds() -> Iterator[Seed]:
    """(suffix, bytes) of small pictures."""
    red, green = (
        Image.linear_gradient("L").resize((24, 17)),
        Image.radial_gradient("L").resize((24, 17)),
    )
    colours = Image.merge(
        "RGB", (red, green, Image.frombytes("L", (24, 17), random.Random(0).randbytes(24 * 17)))
    )
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    modes = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "I;16", "F")
    options: dict[str, list[dict[str, Any]]] = {
        "PNG": [{}, {"transparency": 3}, {"icc_profile": profile, "exif": exif}],
        "JPEG": [
            {},
            {"progressive": True},
            {"icc_profile": profile, "exif": exif, "comment": b"hello"},
        ],
        "WEBP": [
            {},
            {"lossless": True},
            {"icc_profile": profile, "exif": exif},
            {"save_all": True},
        ],
        "GIF": [{}, {"transparency": 0}, {"save_all": True}],
        "TIFF": [
            {"compression": kind}
            for kind in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
        ]
        + [{"compression": "group4"}, {"icc_profile": profile, "exif": exif}],
        "BMP": [{}],
        "PPM": [{}],
        "JPEG2000": [{}, {"irreversible": True}],
        "AVIF": [{"speed": 10}, {"icc_profile": profile, "exif": exif, "speed": 10}],
    }
    for kind, choices in options.items():
        for mode in modes:
            picture = (
                colours.convert("L").convert(mode)
                if mode in ("I;16", "LA")
                else colours.convert(mode)
            )
            for chosen in choices:
                more = (
                    {"append_images": [picture.rotate(90), picture]} if "save_all" in chosen else {}
                )
                file = io.BytesIO()
                try:
                    picture.save(file, kind, **chosen, **more)
                except Exception:  # there is no such file
                    continue
                yield _SUFFIXES.get(kind, kind.lower()), file.getvalue()


def _case(seeds: list[Seed], seed: int, index: int) -> Seed:
    """The name and the content of a file."""
    rng = random.Random(f"{seed} {index}")
    suffix, original = rng.choice(seeds)
    data = bytearray(original)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        mutations = [*_MUTATIONS, *_OF_FORMAT.get(suffix, [])]
        data = rng.choice(mutations)(rng, data) or data
    if rng.random() < 0.05:
        data += rng.choice(seeds)[1]
    return f"{index:06}.{suffix}", bytes(data)


def _flip(rng: random.Random, data: bytearray) -> bytearray:
    for _ in range(rng.choice((1, 1, 2, 8, 40))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _number(rng: random.Random, data: bytearray) -> bytearray:
    """A number of 1, 2 or 4 bytes, most often near the beginning."""
    size = rng.choice((1, 2, 4))
    place = rng.randrange(min(len(data), rng.choice((32, 128, 10**6))))
    value = rng.choice((*_EXTREMES, rng.getrandbits(32))) & (1 << 8 * size) - 1
    data[place : place + size] = value.to_bytes(size, rng.choice(("little", "big")))
    return data


def _cut(rng: random.Random, data: bytearray) -> bytearray:
    return data[: rng.randrange(1, len(data) + 1)]


def _remove(rng: random.Random, data: bytearray) -> bytearray:
    place = rng.randrange(len(data))
    return data[:place] + data[place + rng.choice((1, 2, 4, 16, 100)) :] or data


def _double(rng: random.Random, data: bytearray) -> bytearray:
    first = rng.randrange(len(data))
    last = min(len(data), first + rng.choice((1, 4, 30, 300)))
    place = rng.randrange(len(data))
    return data[:place] + data[first:last] * rng.choice((1, 2, 50)) + data[place:]


def _noise(rng: random.Random, data: bytearray) -> bytearray:
    place = rng.randrange(len(data))
    size = rng.choice((4, 16, 64))
    data[place : place + size] = rng.choice((rng.randbytes(size), bytes(size), b"\xff" * size))
    return data


def _png_chunk(rng: random.Random, data: bytearray) -> bytearray:
    """Change, remove, double or move a chunk, and let its checksum be right."""
    chunks, place = [], 8
    while place + 12 <= len(data):
        size = int.from_bytes(data[place : place + 4])
        chunks.append(
            (bytes(data[place + 4 : place + 8]), bytes(data[place + 8 : place + 8 + size]))
        )
        place += 12 + size
    if not chunks:
        return data
    index = rng.randrange(len(chunks))
    kind, content = chunks[index]
    what = rng.randrange(6)
    if what == 0:
        del chunks[index]
    elif what == 1:
        chunks.insert(rng.randrange(len(chunks)), chunks[index])
    elif what == 2:
        new = rng.choice(
            (
                b"tRNS",
                b"PLTE",
                b"iCCP",
                b"gAMA",
                b"acTL",
                b"fcTL",
                b"zTXt",
                b"iTXt",
                b"eXIf",
                b"sBIT",
                b"pHYs",
            )
        )
        chunks.insert(rng.randrange(len(chunks)), (new, rng.randbytes(rng.choice((0, 1, 6, 30)))))
    elif what == 3 and kind == b"IDAT":
        chunks[index] = (kind, zlib.compress(rng.randbytes(rng.choice((0, 10, 5000)))))
    elif content:
        changed = _number(rng, bytearray(content))
        chunks[index] = (kind, bytes(changed))
    packed = b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return data[:8] + packed


def _tiff_tag(rng: random.Random, data: bytearray) -> bytearray:
    """Change the number, the type, the count or the value of a tag."""
    order: Any = "little" if data[:2] == b"II" else "big"
    start = int.from_bytes(data[4:8], order)
    if start + 2 > len(data):
        return data
    count = int.from_bytes(data[start : start + 2], order)
    place = start + 2 + 12 * rng.randrange(max(1, min(count, 40)))
    field, size = rng.choice(((0, 2), (2, 2), (4, 4), (8, 2), (8, 4), (8, 4)))
    value = rng.choice(
        (*_EXTREMES, *range(20), 257, 258, 262, 273, 279, 340, 341, rng.getrandbits(32))
    )
    data[place + field : place + field + size] = (value & (1 << 8 * size) - 1).to_bytes(size, order)
    return data


def _jpeg_segment(rng: random.Random, data: bytearray) -> bytearray:
    """Change a number in a segment before the pixels, or remove or double it."""
    segments, place = [], 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4])
        segments.append((place, end))
        place = end
    if not segments:
        return data
    first, last = rng.choice(segments)
    what = rng.randrange(4)
    if what == 0:
        return data[:first] + data[last:]
    if what == 1:
        return data[:last] + data[first:last] + data[last:]
    place = rng.randrange(first + 1, max(first + 2, min(last, len(data))))
    data[place : place + 2] = (rng.choice(_EXTREMES) & 0xFFFF).to_bytes(2)
    return data


_MUTATIONS: list[Mutation] = [_flip, _number, _number, _number, _cut, _remove, _double, _noise]
_OF_FORMAT: dict[str, list[Mutation]] = {
    "png": [_png_chunk] * 6,
    "tif": [_tiff_tag] * 8,
    "jpg": [_jpeg_segment] * 4,
}


# ---- trying them


def _tried(cases: list[Seed]) -> list[dict[str, Any]]:
    """What became of each, in a process of its own;
    after one that ends it, another goes on with the next case.
    """
    found: list[dict[str, Any]] = []
    while len(found) < len(cases):
        with tempfile.TemporaryDirectory() as place:
            for name, data in cases[len(found) :]:
                (Path(place) / name).write_bytes(data)
            command = [sys.executable, __file__, "--child", place]
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            reason = ""
            try:
                out, err = child.communicate(timeout=120 + SECONDS * 3)
            except subprocess.TimeoutExpired:
                child.kill()
                out, err = child.communicate()
                reason = "still running"
        lines = out.decode().splitlines()
        found += [json.loads(line) for line in lines]
        if len(found) < len(cases):
            last = err.decode(errors="replace").strip().splitlines()[-1:]
            reason = reason or f"exit {child.returncode}: {' '.join(last)}"
            found.append(
                {"outcome": "ended the process", "bad": reason, "seconds": 0.0, "megabytes": 0.0}
            )
    return found


def _convert_all(folder: Path) -> None:
    """One line of JSON for each file of the folder, in the order of their names."""
    from vdiff.data import conversion
    from vdiff.data.sources import open_source
    from vdiff.images import images

    conversion._CHUNK_PICTURES = 1
    noise = _captured_stderr()
    pictures = open_source(folder).pictures(0)
    for picture in pictures:
        index = int(Path(picture.file.name).stem)
        channels = (1, 3, 4)[index % 3]
        encoding: images.Encoding = ("png", "webp", "jpeg")[
            index // 3 % (2 if channels == 4 else 3)
        ]
        settings = conversion.Settings((16,), channels, encoding, 90, "lanczos")
        began = time.monotonic()
        _forget_peak()
        ((converted,),) = conversion.convert([picture], settings, 1)
        seconds, megabytes = time.monotonic() - began, _peak()
        found: dict[str, object] = {"seconds": seconds, "megabytes": megabytes, "bad": ""}
        if seconds > SECONDS:
            found["bad"] = f"{seconds:.0f} seconds"
        elif megabytes > MEGABYTES:
            found["bad"] = f"{megabytes:.0f} MB"
        if converted.data:
            found["outcome"] = "taken with a note" if getattr(converted, "notes", None) else "taken"
            if images.decode(converted.data[16], channels).shape != (channels, 16, 16):
                found["bad"] = "its record has another size"
        else:
            found["outcome"] = "skipped: " + re.sub(r"[-\d][\d,.]*", "N", converted.reason)[:70]
        if said := noise():
            found["bad"] = f"said {said[:100]!r}"
        print(json.dumps(found), flush=True)


def _captured_stderr() -> Callable[[], bytes]:
    """From now on what anybody writes to the standard error stream is kept;
    a function that gives what is new of it.
    """
    import os

    file = tempfile.TemporaryFile()  # noqa: SIM115
    before = os.dup(2)
    os.dup2(file.fileno(), 2)
    sys.excepthook = lambda kind, err, trace: (
        os.write(before, f"{kind.__name__}: {err}".encode()) and None
    )

    def new() -> bytes:
        said = os.pread(file.fileno(), 10**6, 0)
        file.truncate(0)
        os.lseek(2, 0, os.SEEK_SET)
        return said

    return new


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    """Megabytes that this process had at most since `_forget_peak`."""
    text = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(text[1]) / 1024 if text else 0.0


if __name__ == "__main__":
    sys.exit(main())
