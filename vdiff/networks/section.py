"""What a recipe says of a network: the contract.

Without torch; `network.py` has the contract of the network itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from vdiff.config import KindSection
from vdiff.errors import UsageError

if TYPE_CHECKING:
    from vdiff.networks.network import Network


class NetworkSection(KindSection, ABC):
    """What a recipe says of a network. A kind of its own adds `kind: Literal["its name"]` and its
    options.

    A kind whose recipes may name classes has a field `num_classes`; any other is told of none.

    may_take_guidance: whether its networks can be made to take guidance as an input, with
    `Network.with_guidance_input`.
    """

    may_take_guidance: ClassVar[bool] = False

    makes: ClassVar[tuple[str, str]] = ("build", "vdiff.networks.network:Network")

    @abstractmethod
    def build(self, image_size: int, channels: int) -> "Network":
        """The network for images of `image_size` x `image_size` pixels,
        with fresh weights from torch's generator.

        Errors: UsageError, as `check`.
        """

    @classmethod
    @abstractmethod
    def restore(cls, config: Mapping[str, Any]) -> "Network":
        """The network of a model folder, with any weights, from its `config.json`;
        it may come from a stranger.

        Errors: ModelFileError, UsageError for a configuration that this cannot be.
        """

    @classmethod
    def misfit(
        cls, config: Mapping[str, Any], shape: tuple[int, int, int], num_classes: int
    ) -> str | None:
        """The first setting that is not made for pictures of this shape (C, H, W) and so many
        classes; None for none.

        config: one that `restore` has taken.   num_classes: 0 for none.
        A kind whose configuration says nothing of its pictures leaves this as it is.
        """
        return None

    def check(self, image_size: int, channels: int) -> None:
        """UsageError if `build` could not make a network for such images; nothing is allocated."""

    def with_null_class(self) -> Self:
        """What makes the same network with one class more, the last one, which stands for no class.

        Errors: UsageError for a network that is told no classes.
        """
        if self.told_classes == 0:
            raise UsageError(
                f"a network of the kind `{self.kind}` is told no classes: none can be left out",
                "set `network.num_classes`, or leave `train.label_drop` at 0",
                "train.label_drop",
            )
        return self.model_copy(update={"num_classes": self.told_classes + 1})

    @property
    def told_classes(self) -> int:
        """How many classes the network is told of, 0 for none."""
        return dict(self).get("num_classes") or 0
