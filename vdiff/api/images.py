"""Images that were drawn or read: as numbers, as one grid, as files,
and as what a notebook shows.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from vdiff.api.paths import path_of
from vdiff.drawing import forms
from vdiff.drawing.drawing import ranges
from vdiff.errors import UsageError
from vdiff.images import images

_FILES = (".png", ".npz", ".zip")


@dataclass(frozen=True, eq=False, repr=False)
class ImageBatch:
    """Images of one shape. In a notebook they show themselves as a grid.

    `model.sample`, `model.show` and `store.show` make them; `len(batch)`, `batch[3]` and
    `batch[:8]` work.

    uint8: the images as files hold them, uint8 [N, C, H, W] from 0 to 255, on the CPU.
    float: the same before rounding, float32 [N, C, H, W] on the CPU. Black is -1 and white is 1. A
    drawn image is not
    clamped: what the network overshoots is still there.
    seeds: one per image; of images from a store, their places in it.
    labels: the class of each image, None where the model or store has no classes.
    about: where they come from, as the text of a saved PNG has it; empty for images from a store.
    """

    uint8: Tensor
    float: Tensor
    seeds: tuple[int, ...]
    labels: Tensor | None = None
    about: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.uint8)

    def __getitem__(self, places: int | slice) -> "ImageBatch":
        """Some of the images, as a batch; one index gives a batch of one.   Errors: IndexError."""
        if isinstance(places, int):
            start = range(len(self))[places]
            places = slice(start, start + 1)
        seeds = self.seeds[places]
        about = {**self.about, "vdiff.seeds": ranges(seeds)} if self.about else {}
        labels = None if self.labels is None else self.labels[places]
        return ImageBatch(self.uint8[places], self.float[places], seeds, labels, about)

    def grid(self, columns: int | None = None) -> Tensor:
        """All images side by side on white, uint8 [C, H', W'], as `vdiff sample` leaves them.

        columns: None for about as many as rows. Images of fewer than 32 pixels are enlarged.
        Errors: UsageError for no images, or for less than one column.
        """
        if not len(self):
            raise UsageError("there are no images in this batch", "take at least one")
        if columns is not None and columns < 1:
            raise UsageError(f"a grid cannot have {columns} columns", "ask for 1 or more")
        return images.grid(self.uint8, columns, scale=forms.enlargement(self.uint8.shape[-1]))

    def save(self, path: str | os.PathLike[str], force: bool = False) -> Path:
        """Write the images whole or not at all, with `about` in them; gives the path.

        path: `grid.png`, arrays in `file.npz`, PNGs in `file.zip`, or a folder of PNGs.
        force: replace what vdiff left there; nothing else is ever replaced.
        Errors: UsageError for another name, for no images, and for what is there already;
        MachineError.
        """
        place = path_of(path)
        is_folder = place.suffix == ""
        if not is_folder and place.suffix not in _FILES:
            fix = "end it in .png (a grid), .npz or .zip, or name a folder"
            raise UsageError(f"`{place.name}` names no form that images can be left in", fix, place)
        if not len(self):
            raise UsageError("there are no images in this batch", "take at least one")
        is_empty_folder = is_folder and place.is_dir() and not any(place.iterdir())
        if os.path.lexists(place) and not is_empty_folder and not force:
            fix = "`save(path, force=True)` replaces what vdiff made; or name another place"
            raise UsageError(f"`{place}` is there already", fix, place)
        with forms.output(place, len(self), self.about, self.labels) as output:
            output.add(self.uint8, self.seeds)
        return place

    def __repr__(self) -> str:
        size = list(self.uint8.shape[1:])
        return f"ImageBatch({len(self)} images {size}, seeds {ranges(self.seeds)})"

    def _repr_png_(self) -> bytes:
        return images.encode(self.grid().numpy(), "png")


def batch_from_uint8(
    uint8: Tensor, seeds: Sequence[int], labels: Tensor | None = None
) -> ImageBatch:
    """Images that were read: uint8 [N, C, H, W]."""
    return ImageBatch(uint8, images.to_float(uint8), tuple(seeds), labels)
