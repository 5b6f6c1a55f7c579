"""Stores to damage: finished ones of ours, new and old, foreign ones,
and what a stopped `prepare` leaves behind.
"""

import hashlib
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from PIL import Image

from vdiff.data import conversion
from vdiff.data.prepare import PrepareCounts, prepare
from vdiff.data.store import ImageStore
from vdiff.errors import Stopped

FILE, SEAL = "data.mdb", "store.json"
"""The second mark of a store; that of older vdiffs has none."""

Content = dict[str, Any]


@dataclass(frozen=True)
class Specimen:
    """A store, and what reads from it when nothing is wrong.

    kind: `ours`, `old` (without the second mark), `foreign` or `partial`.   files: by name.
    how: for a partial one the arguments of `prepare` that go on with it.
    """

    name: str
    kind: str
    files: dict[str, bytes]
    content: Content
    how: dict[str, Any]


def read(path: Path) -> Content:
    """All that a training can know of a store."""
    opened = ImageStore(path)
    labels, metadata = opened.labels, opened.metadata
    pictures = [
        opened.read(index, size) for size in opened.sizes for index in range(opened.num_images)
    ]
    return {
        "pictures": [hashlib.sha256(picture).hexdigest() for picture in pictures],
        "sizes": list(opened.sizes),
        "labels": None if labels is None else labels.tolist(),
        "class_names": opened.class_names,
        "metadata": None if metadata is None else hashlib.sha256(metadata.to_json()).hexdigest(),
        "fingerprint": opened.fingerprint,
    }


def build(folder: Path) -> list[Specimen]:
    """Every kind of store, made in the empty `folder`, where the pictures stay for
    those that are not finished.
    """
    few, many = folder / "few", folder / "many"
    _pictures(few, 10, ())
    _pictures(many, 36, ("cat", "dog"))
    made = [
        _finished("one size", folder, few, sizes=[8]),
        _finished("two sizes, labels", folder, many, sizes=[8, 40]),
    ]
    made += [
        Specimen(
            f"old: {each.name}",
            "old",
            {n: d for n, d in each.files.items() if n != SEAL},
            each.content,
            {},
        )
        for each in made
    ]
    made.append(_foreign("foreign", folder / "foreign", 24, (16, 128)))
    made.append(_foreign("foreign, deep", folder / "foreign-deep", 700, (8,)))
    made.append(_partial("stopped", folder, many, 24, sizes=[8]))
    made.append(_partial("stopped, two sizes", folder, many, 30, sizes=[8, 40]))
    made.append(_partial("stopped, long free list", folder, many, 20, junk=700, sizes=[8]))
    return made


def _pictures(folder: Path, count: int, classes: tuple[str, ...]) -> None:
    for index in range(count):
        path = folder / (classes[index % len(classes)] if classes else "") / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (44, 42, 3), np.uint8)
        Image.fromarray(pixels).save(path)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _finished(name: str, folder: Path, pictures: Path, sizes: list[int]) -> Specimen:
    out = folder / f"store-{len(sizes)}"
    prepare(pictures, out, sizes=sizes, num_threads=1)
    return Specimen(name, "ours", _files(out), read(out), {})


def _foreign(name: str, path: Path, count: int, sizes: tuple[int, ...]) -> Specimen:
    """As rosinality and diffusion_distiller write it:
    a transaction for every few pictures, and `length` last.
    """
    path.mkdir()
    rng = np.random.default_rng(0)
    with lmdb.open(str(path), map_size=2**26, lock=False) as environment:
        for first in range(0, count, 8):
            with environment.begin(write=True) as transaction:
                for index in range(first, min(first + 8, count)):
                    for size in sizes:
                        file = io.BytesIO()
                        Image.fromarray(
                            rng.integers(0, 256, (size // 2, size // 2, 3), np.uint8)
                        ).save(file, "JPEG")
                        transaction.put(f"{size}-{index:05d}".encode(), file.getvalue())
        with environment.begin(write=True) as transaction:
            transaction.put(b"length", str(count).encode())
    return Specimen(name, "foreign", _files(path), read(path), {})


@contextmanager
def small_steps() -> Iterator[None]:
    """Every picture is converted alone and committed at once:
    as many pages as can be are freed again.
    """
    before = conversion._CHUNK_PICTURES, conversion._COMMIT_SECONDS
    conversion._CHUNK_PICTURES, conversion._COMMIT_SECONDS = 1, -1.0
    try:
        yield
    finally:
        conversion._CHUNK_PICTURES, conversion._COMMIT_SECONDS = before


def _partial(
    name: str, folder: Path, pictures: Path, stop: int, sizes: list[int], junk: int = 0
) -> Specimen:
    """What is left when `prepare` is stopped after `stop` pictures;
    junk: so many pages are free in one go.
    """

    def stopping(progress: PrepareCounts) -> None:
        if progress.done >= stop:
            raise Stopped(15, "stopped")

    whole, out = folder / f"whole-{name}", folder / f"partial-{name}"
    how: dict[str, Any] = {"source": pictures, "sizes": sizes, "num_threads": 1}
    prepare(out=whole, **how)
    with small_steps(), suppress(Stopped):
        prepare(out=out, on_progress=stopping, **how)
    unfinished = out.with_name(f"{out.name}.partial")
    with lmdb.open(str(unfinished), map_size=2**26, lock=False) as environment:
        for data in (bytes(3000), None) if junk else ():
            with environment.begin(write=True) as transaction:
                for index in range(junk):
                    key = f"x{index:05d}".encode()
                    transaction.delete(key) if data is None else transaction.put(key, data)
    if junk:  # LMDB does not write pages at the end that were freed again at once
        _fill_up(unfinished / FILE)
    files = _files(unfinished)
    shutil.rmtree(unfinished)
    return Specimen(name, "partial", files, read(whole), how)


def _fill_up(file: Path) -> None:
    data = file.read_bytes()
    last = max(int.from_bytes(data[page + 136 : page + 144], "little") for page in (0, 4096))
    file.write_bytes(data + bytes(max(0, 4096 * (last + 1) - len(data))))
