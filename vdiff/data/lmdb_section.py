"""What a recipe says of pictures in an image store."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from vdiff.choices import Encoding, Labels, Resampling
from vdiff.config import free_to_change, shapes_weights
from vdiff.data.section import DatasetSection
from vdiff.system.home import expanded

if TYPE_CHECKING:
    from vdiff.data.lmdb_images import LmdbImages


LabelsPath = Annotated[str, Field(pattern=r"\.(csv|json)$"), AfterValidator(expanded)]
"""Of a file of names and classes."""


class LmdbImagesSection(DatasetSection):
    """Pictures from an image store that `vdiff prepare` made, or that diffusion_distiller did."""

    kind: Literal["lmdb"] = shapes_weights("lmdb")
    """An LMDB of encoded pictures."""

    source: Path | None = free_to_change(None)
    """The folder, zip or tar file that `vdiff prepare` makes the store from."""

    path: Path = free_to_change()
    """The folder of the store. It may move: its content counts, not its place."""

    size: int = shapes_weights(ge=8, le=1024)
    """Height and width of the pictures in pixels; the store must hold this size."""

    channels: Literal[1, 3, 4] = shapes_weights(3)
    """1 grey, 3 colour, 4 colour with transparency."""

    flip: bool = shapes_weights(False)
    """Show half of the pictures mirrored left to right:
    more variety for faces, wrong for letters.
    """

    encoding: Encoding = free_to_change("png")
    """File format inside the store, used by `vdiff prepare`:
    png and webp are lossless, jpeg is small.
    """

    quality: int = free_to_change(100, ge=1, le=100)
    """JPEG quality from 1 to 100, used by `vdiff prepare`; the other formats ignore it."""

    resampling: Resampling = free_to_change("lanczos")
    """Filter that `vdiff prepare` resizes with:
    lanczos is sharpest, box averages, bicubic lies between.
    """

    depth: int = free_to_change(16, ge=8, le=16)
    """Bits that grey pictures of 16 bits use, for `vdiff prepare`:
    12 for many X-rays, whose white is 4095.
    """

    labels: Labels | LabelsPath = free_to_change("auto")
    """Where `vdiff prepare` takes classes from: auto (`dataset.json`, or folders if they hold all
    pictures), `folders` (the topmost ones; pictures outside are left out), `none`, or a .csv or
    .json file of names and classes.
    """

    workers: int | None = free_to_change(None, ge=0, le=64)
    """Processes that decode ahead; null: none if all pictures fit in 256 MiB of memory,
    else up to 4.
    """

    def open(self) -> "LmdbImages":
        """The pictures; DataError if there is no such store or it lacks this size."""
        from vdiff.data.lmdb_images import LmdbImages
        from vdiff.data.store import ImageStore

        return LmdbImages(ImageStore(self.path), self.size, self.channels, self.workers)
