"""What a network is, and what a recipe says of one. Read this to bring your own.

A new network is one file with a section and a class, and a line in the table of `networks/__init__.py` or an entry
point `vdiff.networks` of another package. vdiff trains it, saves its weights by name and makes it again from `config`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vdiff.config import KindSection
from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.errors import MachineError


class Network(nn.Module, ABC):
    """network(z, time, condition, dropout_keys) -> v, x or eps, as the recipe's `predicts` says.

    Its weights are its `state_dict`: what must be saved lies in parameters or buffers. Parts that repeat may be
    `Repeated` (see `networks/repeated.py`): then `checkpoint_activations` and `shard` work block by block.
    """

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Plain values, for `config.json`, from which the section's `restore` makes the same network."""

    def diffusers(self) -> dict[str, Any] | None:
        """The settings of the class in diffusers that computes the same with the same names of weights.

        `_class_name` names the class. They become `config.json` in the place of `config`, and `restore` takes them too.
        None unless diffusers really has the class: it would load anything else with random weights, and no error.
        """
        return None

    @abstractmethod
    def forward(
        self, z: Tensor, time: Tensor, condition: Condition = NOTHING, dropout_keys: Tensor | None = None
    ) -> Tensor:
        """Say what is in the noisy images.

        z: [B, C, H, W].   time: float [B], the index on the base grid, fractions allowed; see `Schedule.time_input`.
        condition: of the B images.   dropout_keys: int64 [B] in training, for random numbers that depend on the image
        alone (see `networks/dropout.py`); None: no dropout.   Returns [B, C, H, W] in the dtype of z.
        """


class NetworkSection(KindSection, ABC):
    """What a recipe says of a network. A kind of its own adds `kind: Literal["its name"]` and its options.

    A kind whose recipes may name classes has a field `num_classes`; any other is told of none.
    """

    @abstractmethod
    def build(self, image_size: int, channels: int) -> Network:
        """The network for images of `image_size` x `image_size` pixels, with fresh weights from torch's generator.

        Errors: UsageError, as `check`.
        """

    @classmethod
    @abstractmethod
    def restore(cls, config: Mapping[str, Any]) -> Network:
        """The network of a model folder, with any weights, from its `config.json`; it may come from a stranger.

        Errors: ModelFileError, UsageError for a configuration that this cannot be.
        """

    @classmethod
    def misfit(cls, config: Mapping[str, Any], shape: tuple[int, int, int], num_classes: int) -> str | None:
        """The first setting that is not made for pictures of this shape (C, H, W) and so many classes; None for none.

        config: one that `restore` has taken.   num_classes: 0 for none.
        A kind whose configuration says nothing of its pictures leaves this as it is.
        """
        return None

    def check(self, image_size: int, channels: int) -> None:
        """UsageError if `build` could not make a network for such images; nothing is allocated."""

    @property
    def told_classes(self) -> int:
        """How many classes the network is told of, 0 for none."""
        return dict(self).get("num_classes") or 0


def as_network(module: nn.Module) -> Network:
    """The module, which must be a `Network`.   Errors: MachineError for what somebody's `build` made instead."""
    if not isinstance(module, Network):
        problem = f"`{type(module).__name__}` is no network: `config` and more of the contract are missing"
        raise MachineError(problem, "derive it from `vdiff.networks.network.Network`")
    return module
