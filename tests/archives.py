"""Archives to test with: tars and zips that no program writes, byte by byte."""

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.conftest import noise_picture

Pack = Callable[[Mapping[str, bytes], Path], Path]


def png(seed: int = 0, size: int = 8) -> bytes:
    """A file of random pixels."""
    file = io.BytesIO()
    noise_picture(size, size, seed).save(file, "PNG")
    return file.getvalue()


def as_folder(files: Mapping[str, bytes], path: Path) -> Path:
    """A folder with these files."""
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def as_zip(files: Mapping[str, bytes], path: Path, method: int = zipfile.ZIP_STORED) -> Path:
    """A zip file with these names, as they are, and contents."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            member = zipfile.ZipInfo("x")
            member.filename, member.compress_type = name, method
            archive.writestr(member, data)
    return path


def as_tar(files: Mapping[str, bytes], path: Path, mode: str = "w") -> Path:
    """A tar file; `mode` as `tarfile.open` has it."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def add_link(path: Path, name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> None:
    """Append a link to a tar file."""
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo(name)
        link.type, link.linkname = kind, target
        archive.addfile(link)


def tar_block(name: bytes, size: int, kind: bytes = b"0") -> bytes:
    """The header of a member, with its checksum."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[124:136] = b"0000644\0", b"%011o\0" % size
    block[156:157], block[257:265] = kind, b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def zip_bytes(
    members: list[tuple[bytes, bytes]], comment: bytes = b"", extra: bytes = b"", flags: int = 0
) -> bytes:
    """A zip file of stored members; with each, in the list at the end,
    an extra field and a comment.
    """
    body, index = bytearray(), bytearray()
    for name, data in members:
        crc, size = zlib.crc32(data), len(data)
        index += struct.pack("<4s4B4HL2L5H2L", (
            b"PK\1\2"
        ), 20, 3, 20, 0, flags, 0, 0, 0, crc, size, size,
                             len(name), len(extra), len(comment), 0, 0, 0, len(body))  # fmt: skip
        index += name + extra + comment
        body += (
            struct.pack("<4s5H3L2H", b"PK\3\4", 20, flags, 0, 0, 0, crc, size, size, len(name), 0)
            + name
            + data
        )
    count = min(len(members), 2**16 - 1)
    return bytes(
        body
        + index
        + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(index), len(body), 0)
    )
