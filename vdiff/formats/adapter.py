"""What a format of other programs' models is. Read this to add one.

A format says which files are its own (`recognises`) and what `vdiff inspect` tells of them
(`describe`). It may also make a model of vdiff from one (`read`, for `vdiff import`) and the other
way round (`write`, for `vdiff export`). Which container the bytes lie in, and that nothing in it is
run, is settled before: a format gets `Contents`, and takes the values of tensors from
`formats.weights`.

Where a file is silent on something that changes what the network computes, the format names what it
may be (`candidates`), and the import asks the user's pictures which of them is right.

A new one is one file with a class, and a line in the table of `formats/__init__.py` or an entry
point `vdiff.formats` of another package.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from vdiff.errors import ModelFileError
from vdiff.formats.contents import Contents
from vdiff.formats.foreign_file import ForeignFile

if TYPE_CHECKING:
    # torch takes seconds to import, and a file can be described without it.
    from torch import Tensor

    from vdiff.diffusion.denoiser import Denoiser


@dataclass(frozen=True)
class ForeignModel:
    """A model that comes from somebody else's file, or goes into one.

    network: its kind in the table of networks.   diffusion: that section as a recipe has it.
    shape: (C, H, W) of its pictures.   num_classes: 0 without labels.
    num_steps: the sampler steps it is meant for.
    is_distilled: whether it knows the times i / num_steps only.
    assumed: what the file does not tell and was taken for given, a sentence each.
    sampler: the section of the sampler that it is meant for; None for DDIM.
    own_sampler: how its program draws with another network than this one, a sentence, so that
    pictures drawn by it are not those of vdiff; None where it does not.
    codec: between its pictures and what the network sees, a kind or a section.
    licence: that of the weights, where the format settles it.
    facts: what a card should keep of the source and vdiff does not use, for JSON.
    null_class: whether the network knows a class more, the one after the last of `num_classes`,
    that stands for no class.
    guidance: what it has inside, as a model card says it; None for nothing.
    """

    denoiser: "Denoiser"
    network: str
    diffusion: Mapping[str, object]
    shape: tuple[int, int, int]
    num_classes: int
    num_steps: int
    is_distilled: bool = False
    assumed: tuple[str, ...] = ()
    sampler: Mapping[str, object] | None = None
    own_sampler: str | None = None
    codec: str | Mapping[str, object] = "pixels"
    licence: str | None = None
    facts: Mapping[str, object] = field(default_factory=dict)
    null_class: bool = False
    guidance: Mapping[str, Any] | None = None


class Outputs(NamedTuple):
    """What another program computes.

    output: [B, C or 2 C, H, W].   by: its name and version, for people.
    """

    output: "Tensor"
    by: str


class Format(ABC):
    """How one program keeps its models."""

    options: ClassVar[Mapping[str, str]] = {}
    """What `read` may be told because the file does not say it:
    name -> its meaning, a sentence for users.
    """

    write_options: ClassVar[Mapping[str, str]] = {}
    """What `write` may be asked for: name -> what it means, a sentence for users."""

    suffix: ClassVar[str] = ""
    """Of the files that `write` makes, as `.onnx`; empty for a folder."""

    @classmethod
    @abstractmethod
    def recognises(cls, found: Contents) -> bool:
        """Whether the file or folder is of this format. All formats may be asked, so be quick.

        Errors: FormatError, OSError.
        """

    @abstractmethod
    def describe(self, found: Contents) -> ForeignFile:
        """What the file holds, in words and numbers that JSON can hold.

        Errors: FormatError, OSError.
        """

    def candidates(self, found: Contents, asked: Mapping[str, str]) -> Sequence[Mapping[str, str]]:
        """What `read` could be told where the file is silent and the user is, too;
        the likeliest first.

        asked: what the user said, which is in every candidate. One candidate alone: the file and
        the user tell all.
        Errors: as `read`.
        """
        return [asked]

    def read(self, found: Contents, asked: Mapping[str, str]) -> ForeignModel:
        """The model.   asked: values for some of `options`.

        Errors: ModelFileError, for one that vdiff cannot compute exactly too; FormatError, OSError.
        """
        problem = f"`{found.path}` can be described, but vdiff cannot read models of this format"
        raise ModelFileError(problem, "convert it to a format that it reads", found.path)

    def outputs(
        self, found: Contents, z: "Tensor", time: "Tensor", label: "Tensor | None"
    ) -> Outputs | None:
        """What the program that the model is of computes with it, if it is installed;
        an import is compared with that.

        z: [B, C, H, W].   time: [B], what the network is fed.
        label: int64 [B], None without classes.
        None where the program is not installed, or nothing of the kind exists.
        """
        return None

    def write(self, model: ForeignModel, path: Path, asked: Mapping[str, str]) -> None:
        """Put the model at `path`, where nothing is. Afterwards it is compared: by `outputs`, else
        by `read`.

        asked: values for some of `write_options`.

        Errors: ModelFileError for one that the format cannot hold exactly, with the reason;
        OSError.
        """
        raise ModelFileError(
            "vdiff cannot write models of this format", "choose another format", path
        )

    def to_read_back(self, model: ForeignModel) -> Mapping[str, str]:
        """What `read` must be told of a file that `write` made of this model."""
        return {}

    def tolerance(self, asked: Mapping[str, str]) -> float | None:
        """Largest difference of outputs that `write` may cause,
        relative to outputs of about 1; None: as rounding does.

        asked: as for `write`; in half precision more is lost.
        """
        return None
