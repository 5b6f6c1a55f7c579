"""Files that mean harm: pickles that run code, safetensors that lie, recipes that explode,
broken pictures.
"""

import io
import json
import pickle
import random
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

from PIL import Image

Header = dict[str, Any]


class _Runs:
    """Unpickling it makes a file."""

    def __init__(self, canary: Path) -> None:
        self._program = f"open({str(canary)!r}, 'w').close()"

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (self._program,)


def raw_pickle(canary: Path) -> bytes:
    """A bare pickle that makes the canary when it is loaded."""
    return pickle.dumps({"state_dict": _Runs(canary)})


def torch_zip(canary: Path) -> bytes:
    """The same as torch.save writes files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", raw_pickle(canary))
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def numpy_pickle(canary: Path) -> bytes:
    """The same as numpy writes arrays of objects."""
    head = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + raw_pickle(canary)


PICKLES = {"a bare pickle": raw_pickle, "a torch file": torch_zip, "a numpy file": numpy_pickle}


def lying_safetensors(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A safetensors file whose header lies, made from a good one; and how it lies."""
    (length,) = struct.unpack_from("<Q", content)
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = rng.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    begin, end = entry["data_offsets"]
    lies: dict[str, Any] = {
        "a header of 2^63 bytes": struct.pack("<Q", 2**63) + content[8:],
        "a header longer than the file": struct.pack("<Q", len(content) * 2) + content[8:],
        "a header of 90 MB that is not there": struct.pack("<Q", 90 * 2**20) + content[8:],
        "an empty header": struct.pack("<Q", 2) + b"{}",
        "no JSON": struct.pack("<Q", 8) + b"nonsense" + data,
        "deep nesting": _packed(b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}", data),
        "a tensor twice": _packed(
            json.dumps(header)[:-1].encode()
            + b', "'
            + name.encode()
            + b'": '
            + json.dumps(entry).encode()
            + b"}",
            data,
        ),
        "a shape of 2^40": {**header, name: {**entry, "shape": [2**40]}},
        "a shape that overflows": {**header, name: {**entry, "shape": [2**32, 2**32, 4]}},
        "a negative shape": {**header, name: {**entry, "shape": [-1]}},
        "offsets beyond the file": {
            **header,
            name: {**entry, "data_offsets": [begin + 2**40, end + 2**40]},
        },
        "offsets that go backwards": {**header, name: {**entry, "data_offsets": [end, begin]}},
        "offsets that overlap": {
            **header,
            name: {**entry, "data_offsets": [max(begin - 4, 0), end - 4]},
        },
        "an unknown type": {**header, name: {**entry, "dtype": "X99"}},
        "whole numbers": {**header, name: {**entry, "dtype": "I32"}},
        "a tensor missing": {key: value for key, value in header.items() if key != name},
        "another name": {
            (key if key != name else "unknown"): value for key, value in header.items()
        },
        "a flat shape": {**header, name: {**entry, "shape": [1, *entry["shape"]]}},
    }
    what = rng.choice(sorted(lies))
    lie = lies[what]
    return what, lie if isinstance(lie, bytes) else _packed(json.dumps(lie).encode(), data)


def _packed(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def hostile_recipe(text: str, canary: Path, rng: random.Random) -> tuple[str, bytes, bool]:
    """A recipe that no one should read to the end:
    how, its bytes, and whether a message can name a line.
    """
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 30)
    )
    command = f"open('{canary}', 'w').close()"
    kinds: dict[str, tuple[str | bytes, bool]] = {
        "an alias bomb": (bomb + text, True),
        "a tag that runs code": (
            f'name: !!python/object/apply:builtins.exec ["{command}"]\n' + text.partition("\n")[2],
            True,
        ),
        "a tag for a module": (text + "more: !!python/module:antigravity\n", True),
        "an unknown tag": (text.replace("seed: 0", "seed: !secret 0"), True),
        "a key twice": (text + "seed: 1\n", True),
        "a merge key": (text + "base: &b {x: 1}\nmore: {<<: *b}\n", True),
        "NUL": (text.replace("seed", "se\x00ed"), True),
        "an escape sequence": (text.replace("digits", "dig\x1b[31mits"), True),
        "deep nesting": (text + "more: " + "[" * 3000 + "]" * 3000 + "\n", True),
        "a megabyte": (text + "# " + "x" * 2**20 + "\n", False),
        "bytes that are not UTF-8": (text.encode() + b"more: \xff\xfe\n", False),
        "an unknown key": (text.replace("batch_size", "bacth_size"), True),
        "infinity": (text.replace("2.0e-3", ".inf"), True),
        "a number of 10,000 digits": (text.replace("seed: 0", "seed: " + "9" * 10_000), True),
        "a path for a name": (text.replace("name: digits", "name: ../../escape"), True),
        "two documents": (text + "---\n" + text, True),
        "a list": ("- 1\n- 2\n", True),
        "text": ("just a sentence", True),
    }
    what = rng.choice(sorted(kinds))
    content, has_place = kinds[what]
    return what, content if isinstance(content, bytes) else content.encode(), has_place


def bomb_png(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG of a few bytes that says it is enormous."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 100_000)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        map(_chunk, (b"IHDR", b"IDAT", b"IEND"), (header, data, b""))
    )


def text_bomb_png() -> bytes:
    """A PNG with a text that decompresses to 1 GB."""
    packer = zlib.compressobj(9)
    text = b"".join(packer.compress(b"\0" * 2**20) for _ in range(1024)) + packer.flush()
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    chunks = {
        b"IHDR": header,
        b"zTXt": b"bomb\0\0" + text,
        b"IDAT": zlib.compress(b"\0" * 72),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, chunks, chunks.values()))


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def picture(
    kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (12, 12), **more: Any
) -> bytes:
    """A small good picture."""
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind, **more)
    return file.getvalue()


def broken_pictures() -> dict[str, bytes]:
    """Pictures that cannot be used, each under a harmless name."""
    good = picture()
    return {
        "bomb.png": bomb_png(),
        "text.png": text_bomb_png(),
        "bomb.gif": b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\0" * 100,
        "empty.png": b"",
        "cut.png": good[: len(good) // 2],
        "head.png": good[:20],
        "page.jpg": b"<html>not found</html>",
        "script.png": (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(canary) (w) file closefile\n"
        ),
        "noise.webp": b"RIFF\x10\0\0\0WEBPVP8 " + b"\xff" * 64,
        "thin.png": picture(size=(2_000_000, 1)),
    }


def odd_pictures() -> dict[str, bytes]:
    """Pictures that are unusual, and good."""
    frames = [Image.new("P", (9, 9), number) for number in range(3)]
    moving = io.BytesIO()
    frames[0].save(moving, "GIF", save_all=True, append_images=frames[1:])
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "print.jpg": picture("JPEG", "CMYK"),
        "deep.png": picture("PNG", "I;16"),
        "moving.gif": moving.getvalue(),
        "turned.jpg": picture("JPEG", "RGB", (12, 20), exif=turned),
        "mislabelled.png": picture("JPEG"),
        "clear.png": picture("PNG", "RGBA"),
        "palette.png": picture("PNG", "P"),
        "bits.png": picture("PNG", "1"),
    }


OUTSIDE = ("../../canary.png", "/tmp/canary.png", "..\\..\\canary.png", "a/../../../canary.png")
"""Names that an archive must not be unpacked under."""


def zip_that_climbs(path: Path) -> None:
    """A zip whose members lie outside."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in OUTSIDE:
            archive.writestr(name, picture())
        archive.writestr("good/1.png", picture())
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "../precious/letter.txt")


def tar_that_climbs(path: Path) -> None:
    """A tar whose members lie outside, are links or are devices."""
    with tarfile.open(path, "w") as archive:
        for name in (*OUTSIDE, "good/1.png"):
            member = tarfile.TarInfo(name)
            member.size = len(picture())
            archive.addfile(member, io.BytesIO(picture()))
        for name, kind in (
            ("link.png", tarfile.SYMTYPE),
            ("hard.png", tarfile.LNKTYPE),
            ("device.png", tarfile.CHRTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "../precious/letter.txt"
            archive.addfile(member)


def zip_bomb(path: Path) -> None:
    """A zip of 1 MB whose one member is a gigabyte."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("bomb.png", "w", force_zip64=True) as member,
    ):
        for _ in range(1024):
            member.write(b"\0" * 2**20)
