"""Archives with gigabytes of headers, or with a million files,
cost neither the process nor the memory.
"""

import lzma
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.archives import add_link, as_tar, png, tar_block, zip_bytes

SECONDS = 180.0
GIB = 2**30
MEASURE = """
import re, resource, sys
from pathlib import Path
from vdiff.data.prepare import prepare
from vdiff.data.sources import open_source
from vdiff.errors import VdiffError
def of_this_process(what):
    return int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (of_this_process("VmSize") + 500 * 10**6,) * 2)
before = of_this_process("VmRSS")
source = Path(sys.argv[1])
try:
    print(len(open_source(source).files))
except VdiffError as err:
    print(err.exit_code, err.problem)
print(of_this_process("VmHWM"), of_this_process("VmHWM") - before)
"""


def outcome(archive: Path) -> tuple[str, int]:
    """What opening the archive gives in a process that may not grow by 500 MB,
    and by how much it has grown.
    """
    arguments = [sys.executable, "-c", MEASURE, str(archive)]
    ran = subprocess.run(arguments, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    said, numbers = ran.stdout.splitlines()
    most, grown = map(int, numbers.split())
    assert most < 500 * 10**6
    return said, grown


def sparse(path: Path, *pieces: bytes | int) -> Path:
    """A file of these pieces; a number is so many zeros, which need no space on the disk."""
    with path.open("wb") as file:
        for piece in pieces:
            file.seek(piece, 1) if isinstance(piece, int) else file.write(piece)
        file.truncate(file.tell())
    return path


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g", b"X"])
def test_a_name_or_comment_of_gigabytes_is_refused_by_its_size(kind: bytes, tmp_path: Path) -> None:
    size = 3 * GIB
    path = sparse(
        tmp_path / "a.tar",
        tar_block(b"name", size, kind),
        size,
        tar_block(b"a.png", 4),
        b"junk" + bytes(1532),
    )
    said, grown = outcome(path)
    assert said == (
        f"3 the archive `{path}` cannot be read: it is damaged at byte 0: "
        f"a name or a comment of {size:,} bytes"
    )
    assert grown < 20 * 10**6


def test_many_large_headers_are_refused_by_their_sum(tmp_path: Path) -> None:
    member = (tar_block(b"pax", 2**20, b"x"), 2**20, tar_block(b"a.png", 4), b"junk" + bytes(508))
    said, grown = outcome(sparse(tmp_path / "a.tar", *member * 3000, bytes(1024)))
    assert "headers of more than 268,435,456 bytes for" in said
    assert grown < 40 * 10**6


def test_headers_that_follow_one_another_without_end_are_refused(tmp_path: Path) -> None:
    """`tarfile` calls itself for each."""
    headers = (tar_block(b"pax", 2**20, b"x"), 2**20, tar_block(b"long", 2**20, b"L"), 2**20) * 3000
    said, grown = outcome(sparse(tmp_path / "a.tar", *headers))
    assert "headers of more than" in said
    assert grown < 40 * 10**6


def test_the_map_of_a_sparse_file_is_not_kept(tmp_path: Path) -> None:
    head = bytearray(tar_block(b"a.png", 0, b"S"))
    head[482] = 1
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    block = b"0" * 504 + b"\1" + bytes(7)
    said, grown = outcome(sparse(tmp_path / "a.tar", bytes(head), block * (300 * 2**11)))
    assert "headers of more than" in said
    assert grown < 40 * 10**6


def large_list(path: Path, count: int, more: int) -> Path:
    """A zip file of so many pictures, with two holes of `more` bytes behind
    each entry of its list.
    """
    data, place = png(), 0
    crc, pieces, index = zlib.crc32(data), list[bytes | int](), list[bytes | int]()
    for number in range(count):
        name = b"%08d.png" % number
        pieces.append(
            struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0, crc, len(data), len(data), 12, 0)
            + name
            + data
        )
        index.append(struct.pack("<4s4B4HL2L5H2L", (
            b"PK\1\2"
        ), 20, 3, 20, 0, 0, 0, 0, 0, crc, len(data), len(data),
                                 12, more, more, 0, 0, 0, place) + name)  # fmt: skip
        index += [2 * more] if more else []
        place += 42 + len(data)
    size = count * (46 + 12 + 2 * more)
    end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, place)
    end += struct.pack("<4sLQL", b"PK\6\7", 0, place + size, 1)
    end += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2**16 - 1, 2**16 - 1, 2**32 - 1, 2**32 - 1, 0)
    return sparse(path, *pieces, *index, end)


def test_comments_and_extra_fields_of_gigabytes_in_a_zip_are_passed_over(tmp_path: Path) -> None:
    said, grown = outcome(large_list(tmp_path / "a.zip", 25_000, 65_000))
    assert (tmp_path / "a.zip").stat().st_size > 3 * GIB
    assert said == "25000"
    assert grown < 40 * 10**6


def many_tar(path: Path, count: int) -> Path:
    data = png().ljust(512, b"\0")
    pieces = [tar_block(b"%08d.png" % number, 512) + data for number in range(count)]
    path.write_bytes(zlib.compress(b"".join(pieces) + bytes(1024), 1, 31))
    return path


def many_zip(path: Path, count: int) -> Path:
    return large_list(path, count, 0)


@pytest.mark.parametrize("make", [many_tar, many_zip])
def test_a_file_of_an_archive_costs_about_two_hundred_bytes(
    make: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    """So a million do not need 500 MB. zipfile and tarfile need a kilobyte or two for each."""
    few = outcome(make(tmp_path / "few", 1000))[1]
    said, many = outcome(make(tmp_path / "many", 41_000))
    assert said == "41000"
    assert (many - few) / 40_000 < 300


def test_more_files_than_an_archive_of_its_size_can_have_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vdiff.data.sources import archive, open_source
    from vdiff.errors import DataError

    monkeypatch.setattr(archive, "_FEW", 1000)
    for path in (many_tar(tmp_path / "a.tgz", 999), many_zip(tmp_path / "a.zip", 999)):
        assert len(open_source(path).files) == 999
    (tmp_path / "b.tgz").write_bytes(zlib.compress(tar_block(b"a.png", 1) * 2 * 10**5, 9, 31))
    tiny = tar_block(b"a.png", 1) + b"x".ljust(512, b"\0")
    (tmp_path / "b.tgz").write_bytes(zlib.compress(tiny * 10_000, 9, 31))
    (tmp_path / "b.zip").write_bytes(zip_bytes([(b"a.png", b"")] * 1001))
    for name in ("b.tgz", "b.zip"):
        with pytest.raises(
            DataError, match="more files, or longer names, than can be in an archive of this size"
        ):
            open_source(tmp_path / name)
    long = zip_bytes([(b"x" * 5000 + b".png", png())])
    (tmp_path / "c.zip").write_bytes(long)
    with pytest.raises(DataError, match="longer names"):
        open_source(tmp_path / "c.zip")


def test_a_dictionary_of_gigabytes_is_refused(tmp_path: Path) -> None:
    data = as_tar({"a.png": png()}, tmp_path / "plain.tar").read_bytes()
    packed = bytearray(lzma.compress(data))
    # the header of a block, whose next byte is the size of the dictionary
    assert packed[12:16] == b"\2\0\x21\1"
    packed[16] = 39  # 3 GiB
    packed[20:24] = struct.pack("<L", zlib.crc32(packed[12:20]))
    (tmp_path / "a.tar").write_bytes(packed)
    said, grown = outcome(tmp_path / "a.tar")
    assert said.startswith("3 ")
    assert "Memory usage limit" in said
    assert grown < 20 * 10**6


def test_zeros_without_end_behind_an_archive_are_not_read_to_their_end(tmp_path: Path) -> None:
    path = as_tar({"a.png": png()}, tmp_path / "a.tar")
    with path.open("r+b") as file:
        file.truncate(10**13)
    assert outcome(path)[0] == "1"


def test_links_that_multiply_the_files_of_an_archive_are_refused(tmp_path: Path) -> None:
    path = as_tar({f"d/{index}.png": b"x" for index in range(1020)}, tmp_path / "a.tar")
    with tarfile.open(path, "a") as archive:
        for index in range(1020):
            link = tarfile.TarInfo(f"l{index}")
            link.type, link.linkname = tarfile.SYMTYPE, "d"
            archive.addfile(link)
    said, _ = outcome(path)
    assert "its links lead to more than 1,000,000 files" in said
    add_link(path, "one/more", "x" * 100_000)
