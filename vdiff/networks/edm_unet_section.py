"""What a folder says of a U-Net of NVlabs/edm, and which of them vdiff computes.

Without torch.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vdiff.config import shapes_weights
from vdiff.errors import ModelFileError
from vdiff.networks.taken_in import TakenInSection

if TYPE_CHECKING:
    from vdiff.networks.edm_unet import EdmUNet

MOST_LEVELS = 12
MOST_BLOCKS = 64
"""More than any network has; a stranger's file could ask for minutes of building otherwise."""

GROUPS = 32
LEAST_PER_GROUP = 4
"""A group norm has 32 groups, but each of at least four channels."""

Width = Annotated[int, Field(ge=1, le=65536)]
Even = Annotated[int, Field(ge=4, le=65536, multiple_of=2)]


class EdmUNetConfig(BaseModel):
    """A U-Net of one of two families.

    family: `ddpm++` (there called SongUNet): the time is added, every sum of two paths is scaled by
    sqrt(1/2), classes join the sinusoid, one block of a level has attention on the way up. `adm`
    (there DhariwalUNet): the time scales and shifts, classes join the time embedding, all blocks of
    a level have attention.
    image_size: pixels at the full resolution.   first: channels after the first convolution.
    widths: channels of every level.   blocks: residual blocks per level on the way down.
    attends: whether a level has attention.   heads: of every level, 0 where it can have none.
    sinusoid, embedding: widths of the time.   num_classes: 0 without labels.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", strict=True)

    family: Literal["ddpm++", "adm"]
    image_size: Width
    channels: Width
    first: Width
    widths: Annotated[list[Width], Field(min_length=1, max_length=MOST_LEVELS)]
    blocks: Annotated[int, Field(ge=1, le=MOST_BLOCKS)]
    attends: list[bool]
    heads: list[Annotated[int, Field(ge=0, le=65536)]]
    sinusoid: Even
    embedding: Width
    num_classes: Annotated[int, Field(ge=0, le=2**24)] = 0

    @classmethod
    def read(cls, config: object) -> Self:
        """The configuration in a parsed `config.json`, before anything is allocated.

        Errors: ModelFileError.
        """
        try:
            return cls.model_validate(config)
        except ValidationError as err:
            first = err.errors()[0]
            key = ".".join(map(str, first["loc"])) or "the network"
            raise _impossible(key, f"{str(first['input'])[:40]!r}: {first['msg']}") from err

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Refuse settings that do not fit each other."""
        for key, listed in (("attends", self.attends), ("heads", self.heads)):
            if len(listed) != len(self.widths):
                raise _impossible(key, f"{len(listed)} for {len(self.widths)} levels")
        for width, heads in zip(self.widths, self.heads, strict=True):
            if heads and width % heads:
                raise _impossible("heads", f"{heads}, which does not divide {width}")
        if self.image_size % 2 ** (len(self.widths) - 1):
            raise _impossible("image_size", f"{self.image_size}, for {len(self.widths)} levels")
        for width in self._normed():
            if width % groups_of(width):
                raise _impossible("widths", f"{width}, which {groups_of(width)} groups do not fit")
        return self

    def _normed(self) -> list[int]:
        """Channels before every group norm."""
        kept = [self.first]
        before = self.first
        normed = [self.first]
        for level, width in enumerate(self.widths):
            kept += [before] * (level > 0) + [width] * self.blocks
            normed.append(width)
            before = width
        for width in reversed(self.widths):
            for _ in range(self.blocks + 1):
                normed.append(before + kept.pop())
                before = width
        return normed


def groups_of(width: int) -> int:
    """Groups of a norm over so many channels."""
    return max(1, min(GROUPS, width // LEAST_PER_GROUP))


class EdmUNetSection(TakenInSection):
    """A U-Net of NVlabs/edm. Such networks are imported, and students are copies of them."""

    kind: Literal["edm_unet"] = shapes_weights("edm_unet")
    """Which network this is."""

    @classmethod
    def restore(cls, config: Mapping[str, Any]) -> "EdmUNet":
        """The network of a model folder, with any weights, from its parsed `config.json`."""
        from vdiff.networks.edm_unet import EdmUNet

        return EdmUNet(EdmUNetConfig.read(config))

    @classmethod
    def misfit(
        cls, config: Mapping[str, Any], shape: tuple[int, int, int], num_classes: int
    ) -> str | None:
        channels, height, width = shape
        read = EdmUNetConfig.read(config)
        if read.channels != channels:
            return "channels"
        if read.num_classes != num_classes:
            return "num_classes"
        if (height, width) != (read.image_size, read.image_size):
            return "image_size"
        return None


def _impossible(key: str, why: str) -> ModelFileError:
    where = f"`{key}` in the network's config.json"
    return ModelFileError(f"`{key}` is {why}", "use an undamaged copy of the model", where)
