"""What a recipe says of its pictures: the contract of the section `data`.

It imports no numpy, as checking a recipe must be quick. `dataset.py` has the contract of the
pictures themselves.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from vdiff.config import KindSection

if TYPE_CHECKING:
    from vdiff.data.dataset import Images


class DatasetSection(KindSection, ABC):
    """What a recipe says of its pictures. A kind of its own adds `kind: Literal["its name"]` and
    its options.

    size: height and width in pixels.   channels: 1, 3 or 4.
    flip: whether half of the pictures are shown mirrored. Each kind states these three itself, as
    it states what it allows.
    """

    needed_fields: ClassVar[tuple[str, ...]] = ("kind", "size", "channels", "flip")
    makes: ClassVar[tuple[str, str]] = ("open", "vdiff.data.dataset:Images")

    # For the type checker only: each kind states these fields itself, as it states what it allows.
    if TYPE_CHECKING:
        size: int
        channels: int
        flip: bool

    @abstractmethod
    def open(self) -> "Images":
        """The pictures.   Errors: DataError if they are missing or not of this size."""
