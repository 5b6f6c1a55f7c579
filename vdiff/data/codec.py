"""What stands between pictures and what the network sees. Read this to write one.

A new codec is one file with a section and a class, and a line in the table of `data/__init__.py`.
Whatever trains, draws or shows goes through the codec of its model. `PixelCodec` is the first: the
network sees the pixels themselves.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vdiff.config import KindSection, shapes_weights
from vdiff.data import CODECS
from vdiff.errors import UsageError
from vdiff.images.images import to_float, to_uint8

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, int, int]
"""(C, H, W)."""

PIXELS = "pixels"
"""The codec of networks that see the pixels themselves."""


class CodecSection(KindSection, ABC):
    """What names a codec. A kind of its own adds `kind: Literal["its name"]` and its options."""

    makes: ClassVar[tuple[str, str]] = ("build", "vdiff.data.codec:Codec")

    @abstractmethod
    def build(self) -> "Codec":
        """The codec with these options.

        Errors: DataError, ModelFileError for weights that it lacks.
        """


class Codec(ABC):
    """encode(pictures) -> x, decode(x) -> pictures. It is fixed: equal pictures always give equal
    x.

    A codec whose network sees every second pixel, and its section:

    >>> import torch
    >>> from vdiff.images.images import to_float, to_uint8
    >>> class Halved(Codec):
    ...     def shape(self, pictures):
    ...         channels, height, width = pictures
    ...         return channels, height // 2, width // 2
    ...     def encode(self, pictures):
    ...         return to_float(pictures[..., ::2, ::2])
    ...     def decode(self, x, made_by="the network"):
    ...         return to_uint8(x, made_by).repeat_interleave(2, -1).repeat_interleave(2, -2)
    >>> class HalvedSection(CodecSection):
    ...     kind: Literal["halved"] = shapes_weights("halved")
    ...     def build(self):
    ...         return Halved()
    >>> codec = HalvedSection().build()
    >>> pictures = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    >>> codec.encode(pictures).shape, codec.decode(codec.encode(pictures)).equal(pictures)
    (torch.Size([2, 3, 4, 4]), True)
    """

    @abstractmethod
    def shape(self, pictures: Shape) -> Shape:
        """(C, H, W) of the x of pictures of this shape.

        Errors: UsageError for pictures that it cannot take.
        """

    @abstractmethod
    def encode(self, pictures: "Tensor") -> "Tensor":
        """x, float32 [B, *shape], about in [-1, 1], on the pictures' device.

        pictures: uint8 [B, C, H, W].
        """

    @abstractmethod
    def decode(self, x: "Tensor", made_by: str = "the network") -> "Tensor":
        """Pictures, uint8 [B, C, H, W].   x: [B, *shape]; previews give it noisy ones too.

        made_by: the model's name, for the message.   Errors: DivergedError for NaN or Inf.
        """


class PixelSection(CodecSection):
    """The network sees the pixels, in [-1, 1]."""

    kind: Literal["pixels"] = shapes_weights("pixels")
    """Which codec."""

    def build(self) -> Codec:
        return PixelCodec()


class PixelCodec(Codec):
    """x = pixels / 127.5 - 1, and back, rounded; decode(encode(pictures)) is the pictures."""

    def shape(self, pictures: Shape) -> Shape:
        return pictures

    def encode(self, pictures: "Tensor") -> "Tensor":
        return to_float(pictures)

    def decode(self, x: "Tensor", made_by: str = "the network") -> "Tensor":
        return to_uint8(x, made_by)


def codec_of(said: str | Mapping[str, Any]) -> Codec:
    """The codec that a model's card or a recipe names:
    a kind, or a mapping with `kind` and options.

    Errors: UsageError for one that does not exist or does not take these options; those of its
    `build`.
    """
    options: dict[str, Any]
    if isinstance(said, str):
        options = {"kind": said}
    else:
        options = dict(said)
    # A card may come from a stranger: `kind` can be anything that JSON holds.
    kind = str(options.get("kind", ""))
    if kind not in CODECS:
        raise UsageError(
            CODECS.unknown(kind), "install the package that brings it, or take another model"
        )
    try:
        section = CODECS.section(kind).model_validate(options)
    except ValueError as err:
        problem = f"the codec `{kind}` does not take the options {options}"
        raise UsageError(problem, "take a model that this version of the codec made") from err
    return section.build()
