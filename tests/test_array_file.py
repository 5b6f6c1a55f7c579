"""Arrays that are kept: whole ones come back, anything else is as if it were not there."""

import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vdiff.disk import array_file

KEPT = {
    "images": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    "seconds": np.array(0.5),
    "about": np.array("this"),
}


def member(header: str, content: bytes = b"") -> bytes:
    """A .npy with this header, padded as numpy does it."""
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def zipped(content: bytes, name: str = "images.npy", kind: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as target:
        target.writestr(name, content)
    return file.getvalue()


def many_names() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        for number in range(3000):
            target.writestr(
                f"{number}.npy", member("{'descr': '|u1', 'fortran_order': False, 'shape': (0,), }")
            )
    return file.getvalue()


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("executed",)


def objects() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Bomb()], dtype=object), allow_pickle=True)
    return file.getvalue()


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "kept.npz").write_bytes(array_file.packed(KEPT))
    found = array_file.read(tmp_path / "kept.npz")
    assert found is not None
    assert {name: (array.dtype, array.tolist()) for name, array in found.items()} == {
        name: (array.dtype, array.tolist()) for name, array in KEPT.items()
    }
    assert array_file.read(tmp_path / "none.npz") is None


def test_no_flipped_bit_and_no_cut_gives_other_arrays(tmp_path: Path) -> None:
    data, path = array_file.packed(KEPT), tmp_path / "kept.npz"
    told = []
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        told.append(array_file.read(path))
        path.write_bytes(data[:place])
        assert array_file.read(path) is None
    for found in told:  # a bit of a date changes nothing, a bit of a name loses the array
        assert found is None or all(
            name not in KEPT or np.array_equal(KEPT[name], found[name]) for name in found
        )
    assert told.count(None) > len(data) * 0.6


@pytest.mark.parametrize(
    "data",
    [
        zipped(member("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000,), }")),
        zipped(member("{'descr': '|u1', 'fortran_order': False, 'shape': (10**12,), }")),
        zipped(
            member(
                "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", pickle.dumps([Bomb()])
            )
        ),
        zipped(member("{'descr': '|u1', 'fortran_order': False, 'shape': (-1,), }", b"1")),
        zipped(member("__import__('os').mkdir('executed')")),
        zipped(objects()),
        zipped(np.zeros(10**7).tobytes(), kind=zipfile.ZIP_DEFLATED),
        many_names(),
        pickle.dumps(Bomb()),
        objects(),
        b"",
    ],
    ids=[
        "huge",
        "power",
        "pickle",
        "negative",
        "code",
        "objects",
        "bomb",
        "names",
        "bare pickle",
        "npy",
        "empty",
    ],
)
def test_what_a_stranger_made_is_not_read(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kept.npz").write_bytes(data)
    assert array_file.read(Path("kept.npz")) is None
    assert not Path("executed").exists()


def test_a_link_and_a_pipe_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real.npz").write_bytes(array_file.packed(KEPT))
    (tmp_path / "link.npz").symlink_to("real.npz")
    os.mkfifo(tmp_path / "pipe.npz")
    assert array_file.read(tmp_path / "link.npz") is None
    assert array_file.read(tmp_path / "pipe.npz") is None


def test_no_more_memory_is_taken_than_the_file_has(tmp_path: Path) -> None:
    (tmp_path / "kept.npz").write_bytes(
        zipped(member("{'descr': '|u1', 'fortran_order': False, 'shape': (2000000000,), }"))
    )
    (tmp_path / "bomb.npz").write_bytes(zipped(bytes(2**28), kind=zipfile.ZIP_DEFLATED))
    program = """
import sys
from pathlib import Path
from vdiff.disk import array_file
def most():  # not of getrusage, which begins with the memory of the parent
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
before = most()
assert all(array_file.read(Path(name)) is None for name in sys.argv[1:])
print(most() - before)
"""
    names = [str(tmp_path / name) for name in ("kept.npz", "bomb.npz")]
    done = subprocess.run(
        [sys.executable, "-c", program, *names], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 50_000
