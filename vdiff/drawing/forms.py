"""The forms that pictures are left in: a grid, a folder, npz, zip, a strip, a gif."""

import contextlib
import io
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vdiff.disk import whole_folder
from vdiff.disk.ours import is_archive
from vdiff.images.images import encode, grid, write_gif, write_png

STRIP_COLUMNS = 9
GIF_FRAMES = 48
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
def output(path: Path, facts: Mapping[str, str], labels: Tensor | None = None) -> Iterator[Output]:
    """The form that a name asks for: `.png` a grid, `.npz` arrays, `.zip` an archive of PNGs,
    else a folder of them.

    A file is there when everything went well, and not at all otherwise.
    Errors: MachineError; UsageError for a file that is there and that vdiff did not make.
    """
    whole_folder.make(path.parent)
    whole_folder.forget_leftovers(path.parent, path.name)
    form = _form(path, facts, labels)
    try:
        yield form
        form.close()
    except BaseException:
        form.abandon()
        raise


def _form(path: Path, facts: Mapping[str, str], labels: Tensor | None) -> Output:
    if path.suffix == ".npz":
        return _Arrays(path, facts, labels)
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
        self._path, self._beside, self._name = path, whole_folder.free_beside(path), _Names()
        # PNGs are compressed already
        self._zip = zipfile.ZipFile(self._beside, "x", zipfile.ZIP_STORED)
        self._zip.comment = "\n".join(f"{name}: {value}" for name, value in facts.items()).encode()[
            :65535
        ]

    def add(self, pictures: Tensor, seeds: Sequence[int]) -> None:
        for picture, seed in zip(pictures, seeds, strict=True):
            self._zip.writestr(zipfile.ZipInfo(self._name(seed)), encode(picture.numpy(), "png"))

    def close(self) -> None:
        self._zip.close()
        whole_folder.publish_file(self._beside, self._path, is_archive)

    def abandon(self) -> None:
        with contextlib.suppress(OSError):
            # else it would try when it is forgotten, and complain where nobody hears it
            self._zip.close()
        self._beside.unlink(missing_ok=True)


class _Arrays:
    """`images` uint8 [n, H, W, C], `seeds` int64 [n], `about` in JSON and,
    for models with classes, `labels` [n].
    """

    def __init__(self, path: Path, facts: Mapping[str, str], labels: Tensor | None) -> None:
        self._path, self._facts, self._labels = path, facts, labels
        self._parts: list[Tensor] = []
        self._seeds: list[int] = []

    def add(self, pictures: Tensor, seeds: Sequence[int]) -> None:
        self._parts.append(pictures.permute(0, 2, 3, 1))
        self._seeds.extend(seeds)

    def close(self) -> None:
        content = io.BytesIO()
        images, seeds = torch.cat(self._parts).numpy(), np.array(self._seeds, np.int64)
        arrays: dict[str, Any] = {
            "images": images,
            "seeds": seeds,
            "about": np.array(json.dumps(self._facts)),
        }
        if self._labels is not None:
            arrays["labels"] = self._labels.numpy()
        np.savez_compressed(content, **arrays)
        whole_folder.write_bytes(self._path, content.getvalue(), is_archive, is_flushed=False)

    def abandon(self) -> None: ...


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
