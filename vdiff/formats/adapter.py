"""What a format of other programs' models is. Read this to add one.

A format says which files are its own (`recognises`) and what `vdiff inspect` tells of them (`describe`). It may also
make a model of vdiff from such a file (`read`), and such a file from a model (`write`). The container of the bytes has
been read before, and nothing in it was run: a format gets `Contents`.

A new one is one file with a class, and a line in the table of `formats/__init__.py` or an entry point `vdiff.formats`
of another package.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from vdiff.errors import ModelFileError
from vdiff.formats.contents import Contents
from vdiff.formats.facts import ForeignFile

if TYPE_CHECKING:
    # torch takes seconds to import, and a file can be described without it.
    from vdiff.diffusion.denoiser import Denoiser


@dataclass(frozen=True)
class ForeignModel:
    """A model that comes from somebody else's file, or goes into one.

    network: its kind in the table of networks.   diffusion: that section as a recipe has it.   shape: (C, H, W).
    num_classes: 0 without labels.   num_steps: the sampler steps it is meant for.
    is_distilled: whether it was trained at the times i / num_steps only.
    assumed: what the file does not tell and was assumed, a sentence each.
    """

    denoiser: "Denoiser"
    network: str
    diffusion: Mapping[str, object]
    shape: tuple[int, int, int]
    num_classes: int
    num_steps: int
    is_distilled: bool = False
    assumed: tuple[str, ...] = ()


class Format(ABC):
    """How one program keeps its models."""

    options: ClassVar[Mapping[str, str]] = {}
    """What `read` may be told because the file does not say it: name -> its meaning, a sentence for users."""

    @classmethod
    @abstractmethod
    def recognises(cls, found: Contents) -> bool:
        """Whether the file or folder is of this format. All formats may be asked, so be quick.

        Errors: FormatError, OSError.
        """

    @abstractmethod
    def describe(self, found: Contents) -> ForeignFile:
        """What the file holds, in words and numbers that JSON can hold.   Errors: FormatError, OSError."""

    def read(self, found: Contents, asked: Mapping[str, str]) -> ForeignModel:
        """The model.   asked: values for some of `options`.

        Errors: ModelFileError, for one that vdiff cannot compute exactly too; FormatError, OSError.
        """
        problem = f"`{found.path}` can be described, but vdiff cannot read models of this format"
        raise ModelFileError(problem, "convert it to a format that it reads", found.path)

    def write(self, model: ForeignModel, path: Path) -> None:
        """Put the model at `path`, where nothing is.

        Errors: ModelFileError for one that the format cannot hold exactly, with the reason; OSError.
        """
        raise ModelFileError(
            "vdiff cannot write models of this format", "choose another format", path
        )
