"""What a folder says of a U-Net of denoising-diffusion-pytorch, and which of them vdiff computes.

Without torch.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vdiff.config import shapes_weights
from vdiff.errors import ModelFileError
from vdiff.networks.taken_in import TakenInSection

if TYPE_CHECKING:
    from vdiff.networks.lucidrains import LucidrainsUNet

MOST_LEVELS = 12
"""More than any picture needs; a stranger's file could ask for minutes of building otherwise."""
Width = Annotated[int, Field(ge=1, le=65536)]


class _Part(BaseModel):
    """A part of the configuration: every setting is said, and no other is known."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", strict=True)


class AttentionConfig(_Part):
    """The attention of one level.

    full: among all pixels; else linear attention.   head_dim: channels per head.
    """

    full: bool
    heads: Width
    head_dim: Width


class LucidrainsConfig(_Part):
    """Everything about such a network that the shapes of its weights do not have to tell again.

    widths: channels of the blocks of every level and, at the end, of the middle.
    dim: width of the sinusoid.
    time_width: of the time embedding.   last_width: channels before the last convolution.
    theta: longest period of the sinusoid over 2 pi.
    groups: of the blocks' group norms; None for norms by the root mean square.
    memory: learned keys and values of every attention.   attentions: of every level.
    halving: a pixel unshuffle with a 1x1 convolution, or a strided 4x4 convolution.
    norm: of attention, by the root mean square (`rms`) or by mean and variance (`layer`).
    divides_values: whether linear attention divides its values by the number of pixels.
    """

    channels: Width
    dim: Annotated[int, Field(ge=4, le=65536)]
    widths: Annotated[list[Width], Field(min_length=2, max_length=MOST_LEVELS + 1)]
    time_width: Width
    last_width: Width
    theta: Annotated[float, Field(gt=0, le=1e12)] = 10_000.0
    groups: Width | None = None
    memory: Annotated[int, Field(ge=0, le=65536)] = 4
    attentions: list[AttentionConfig]
    middle: AttentionConfig
    halving: Literal["unshuffle", "convolution"] = "unshuffle"
    norm: Literal["rms", "layer"] = "rms"
    divides_values: bool = False

    @classmethod
    def read(cls, config: object) -> Self:
        """The configuration in a parsed `config.json`, before anything is allocated.

        Errors: ModelFileError.
        """
        if not isinstance(config, Mapping):
            told = f"the network's configuration is a {type(config).__name__}"
            raise ModelFileError(told, "use another model file")
        try:
            return cls.model_validate(dict(config))
        except ValidationError as err:
            first = err.errors()[0]
            key = ".".join(map(str, first["loc"])) or "the network"
            raise _impossible(key, f"{str(first['input'])[:40]!r}: {first['msg']}") from err

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Refuse settings that do not fit each other."""
        if len(self.attentions) != self.num_levels:
            told = f"{len(self.attentions)} for {self.num_levels} levels"
            raise _impossible("attentions", told)
        if self.dim % 2:
            raise _impossible("dim", f"{self.dim}: sines and cosines come in pairs")
        for width in (*self.widths, self.last_width):
            if self.groups is not None and width % self.groups:
                raise _impossible("groups", f"{self.groups}, which does not divide {width}")
        return self

    @property
    def num_levels(self) -> int:
        """How many resolutions there are."""
        return len(self.widths) - 1


class LucidrainsSection(TakenInSection):
    """The U-Net of denoising-diffusion-pytorch.
    Such networks are imported, and students are copies of them.
    """

    kind: Literal["lucidrains"] = shapes_weights("lucidrains")
    """Which network this is."""

    @classmethod
    def restore(cls, config: Mapping[str, Any]) -> "LucidrainsUNet":
        """The network of a model folder, with any weights, from its parsed `config.json`."""
        from vdiff.networks.lucidrains import LucidrainsUNet

        return LucidrainsUNet(LucidrainsConfig.read(config))

    @classmethod
    def misfit(
        cls, config: Mapping[str, Any], shape: tuple[int, int, int], num_classes: int
    ) -> str | None:
        channels, height, width = shape
        read = LucidrainsConfig.read(config)
        if read.channels != channels or num_classes:
            return "channels"
        smallest = 2 ** (read.num_levels - 1)
        if height % smallest or width % smallest:
            return "widths"
        return None


def _impossible(key: str, why: str) -> ModelFileError:
    where = f"`{key}` in the network's config.json"
    return ModelFileError(f"`{key}` is {why}", "use an undamaged copy of the model", where)
