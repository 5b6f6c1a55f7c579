"""The forms that pictures are left in: a grid, a folder, npz, zip, a strip, a gif."""

import contextlib
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vdiff.disk import whole_folder
from vdiff.disk.ours import is_archive
from vdiff.images.images import ImageRow, encode, grid, write_gif, write_png, write_rows
from vdiff.system.printable import printable

STRIP_COLUMNS = 9
GIF_FRAMES = 48
MOST_IN_ROW = 16
"""Pictures of one class beside one another; more make further rows."""
_MOST_LETTERS = 24
_SMALL_PIXELS = 32
"""Pictures smaller than this are enlarged in grids, strips and gifs."""


class Output(Protocol):
    """Where pictures go, batch after batch."""

    def add(self, pictures: Tensor, seeds: Sequence[int]) -> None:
        """Take uint8 [b, C, H, W]."""

    def close(self) -> None:
        """Nothing follows: leave the file whole."""

    def abandon(self) -> None:
        """Nothing follows, and what is there is not worth keeping."""


@contextlib.contextmanager
def output(
    path: Path,
    count: int,
    facts: Mapping[str, str],
    labels: Tensor | None = None,
    rows: Sequence[str] = (),
) -> Iterator[Output]:
    """The form that a name asks for: `.png` a grid, `.npz` arrays, `.zip` an archive of PNGs,
    else a folder of them.

    count: how many pictures will come.
    rows: what stands beside the rows of a grid, each of which has as many of the pictures; none for
    a grid without words.
    A file is there when everything went well, and not at all otherwise. No form but the grid holds
    more than a batch in memory.
    Errors: MachineError; UsageError for a file that is there and that vdiff did not make.
    """
    whole_folder.make(path.parent)
    whole_folder.forget_leftovers(path.parent, path.name)
    form = _form(path, count, facts, labels, rows)
    try:
        yield form
        form.close()
    except BaseException:
        form.abandon()
        raise


def _form(
    path: Path,
    count: int,
    facts: Mapping[str, str],
    labels: Tensor | None,
    rows: Sequence[str],
) -> Output:
    if path.suffix == ".png" and rows:
        return _Rows(path, facts, rows)
    if path.suffix == ".npz":
        return _Arrays(path, count, facts, labels)
    forms: dict[str, Callable[[Path, Mapping[str, str]], Output]] = {
        ".png": _Grid,
        ".zip": _Archive,
    }
    return forms.get(path.suffix, _Folder)(path, facts)


class _Grid:
    def __init__(self, path: Path, facts: Mapping[str, str]) -> None:
        self._path, self._facts = path, facts
        self._parts: list[Tensor] = []

    def add(self, pictures: Tensor, seeds: Sequence[int]) -> None:
        self._parts.append(pictures)

    def close(self) -> None:
        pictures = torch.cat(self._parts)
        write_png(self._path, grid(pictures, scale=enlargement(pictures.shape[-1])), self._facts)

    def abandon(self) -> None: ...


class _Rows:
    """A grid with a row for each class, or several where it has many pictures."""

    def __init__(self, path: Path, facts: Mapping[str, str], names: Sequence[str]) -> None:
        self._path, self._facts, self._names = path, facts, names
        self._parts: list[Tensor] = []

    def add(self, pictures: Tensor, seeds: Sequence[int]) -> None:
        self._parts.append(pictures)

    def close(self) -> None:
        pictures = torch.cat(self._parts)
        rows: list[ImageRow] = []
        for name, of_class in zip(self._names, pictures.chunk(len(self._names)), strict=True):
            for start in range(0, len(of_class), MOST_IN_ROW):
                part = of_class[start : start + MOST_IN_ROW]
                label = _shortened(name) if start == 0 else ""
                # some air between classes, where they have several rows
                rows.append(ImageRow(label, part, gap=start == 0 and len(of_class) > MOST_IN_ROW))
        write_rows(self._path, rows, self._facts)

    def abandon(self) -> None: ...


def _shortened(name: str) -> str:
    """A name that leaves room for the pictures."""
    shown = printable(name)
    if len(shown) <= _MOST_LETTERS:
        return shown
    return f"{shown[: _MOST_LETTERS - 3]}..."


class _Folder:
    def __init__(self, path: Path, facts: Mapping[str, str]) -> None:
        self._path, self._facts, self._name = path, facts, _Names()
        self._is_new = not path.exists()
        path.mkdir(exist_ok=True)
        whole_folder.forget_leftovers(path)

    def add(self, pictures: Tensor, seeds: Sequence[int]) -> None:
        for picture, seed in zip(pictures, seeds, strict=True):
            write_png(
                self._path / self._name(seed), picture, {**self._facts, "vdiff.seeds": str(seed)}
            )

    def close(self) -> None: ...

    def abandon(self) -> None:
        if self._is_new:
            with contextlib.suppress(OSError):
                self._path.rmdir()  # what pictures it holds already are good ones, and stay


class _Archive:
    def __init__(self, path: Path, facts: Mapping[str, str]) -> None:
        self._zip, self._name = _ZipFile(path), _Names()
        about = "\n".join(f"{name}: {value}" for name, value in facts.items())
        self._zip.file.comment = about.encode()[:65535]

    def add(self, pictures: Tensor, seeds: Sequence[int]) -> None:
        with self._zip.refusals():
            for picture, seed in zip(pictures, seeds, strict=True):
                # PNGs are compressed already
                name = zipfile.ZipInfo(self._name(seed))
                self._zip.file.writestr(name, encode(picture.numpy(), "png"))

    def close(self) -> None:
        self._zip.publish()

    def abandon(self) -> None:
        self._zip.abandon()


class _Arrays:
    """`images` uint8 [n, H, W, C], `seeds` int64 [n], `about` in JSON and,
    for models with classes, `labels` [n]: the bytes of `numpy.savez_compressed`, written as the
    pictures come.

    count: n.
    """

    def __init__(
        self, path: Path, count: int, facts: Mapping[str, str], labels: Tensor | None
    ) -> None:
        self._count, self._facts, self._labels = count, facts, labels
        self._zip = _ZipFile(path)
        self._images: IO[bytes] | None = None
        self._seeds: list[int] = []

    def add(self, pictures: Tensor, seeds: Sequence[int]) -> None:
        part = pictures.permute(0, 2, 3, 1).contiguous().numpy()
        with self._zip.refusals():
            if self._images is None:
                self._images = self._zip.begin("images.npy")
                shape = (self._count, *part.shape[1:])
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(self._images, header)
            self._images.write(part.tobytes())
        self._seeds.extend(seeds)

    def close(self) -> None:
        assert len(self._seeds) == self._count
        arrays: dict[str, Any] = {
            "seeds": np.array(self._seeds, np.int64),
            "about": np.array(json.dumps(self._facts)),
        }
        if self._labels is not None:
            arrays["labels"] = self._labels.numpy()
        with self._zip.refusals():
            if self._images is not None:
                self._images.close()
            for name, array in arrays.items():
                with self._zip.begin(f"{name}.npy") as member:
                    np.lib.format.write_array(member, array)
        self._zip.publish()

    def abandon(self) -> None:
        if self._images is not None:
            with contextlib.suppress(OSError):
                self._images.close()
        self._zip.abandon()


class _ZipFile:
    """A zip that is written beside its place, and gets its name when it is whole."""

    def __init__(self, path: Path) -> None:
        self._path, self._beside = path, whole_folder.free_beside(path)
        self.file = zipfile.ZipFile(self._beside, "x", zipfile.ZIP_STORED)

    def begin(self, name: str) -> IO[bytes]:
        """A compressed member, to be written and closed before the next one."""
        member = zipfile.ZipInfo(name)
        member.compress_type = zipfile.ZIP_DEFLATED
        return self.file.open(member, "w", force_zip64=True)

    def refusals(self) -> contextlib.AbstractContextManager[None]:
        """Within it, errors of the disk are MachineError."""
        return whole_folder.refusals(self._path)

    def publish(self) -> None:
        with self.refusals():
            self.file.close()
            whole_folder.publish_file(self._beside, self._path, is_archive)

    def abandon(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            # else it would try when it is forgotten, and complain where nobody hears it
            self.file.close()
        self._beside.unlink(missing_ok=True)


class _Names:
    """File names by seed; a seed that comes again, for another class, gets a number."""

    def __init__(self) -> None:
        self._seen: Counter[int] = Counter()

    def __call__(self, seed: int) -> str:
        self._seen[seed] += 1
        again = f"-{self._seen[seed]}" if self._seen[seed] > 1 else ""
        return f"{seed:06d}{again}.png"


def write_strip(path: Path, way: Tensor, facts: Mapping[str, str]) -> None:
    """A row per picture, from noise on the left to the picture on the right. way:
    uint8 [F, n, C, H, W].
    """
    pictures = way.transpose(0, 1).flatten(0, 1)
    write_png(path, grid(pictures, columns=len(way), scale=enlargement(way.shape[-1])), facts)


def write_film(path: Path, way: Tensor) -> None:
    """A GIF in which a grid of pictures comes out of the noise and stays a while. way:
    uint8 [F, n, C, H, W].
    """
    frames = torch.stack([grid(pictures, scale=enlargement(way.shape[-1])) for pictures in way])
    write_gif(path, torch.cat([frames, frames[-1:].expand(15, -1, -1, -1)]))


def enlargement(size: int) -> int:
    """How many times small pictures are enlarged to be seen."""
    return max(1, _SMALL_PIXELS // size)
