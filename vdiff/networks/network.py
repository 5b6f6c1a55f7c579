"""What a network is, and what a recipe says of one. Read this to bring your own.

A new network is one file with a section and a class, and a line in the table of
`networks/__init__.py` or an entry point `vdiff.networks` of another package. vdiff trains it, saves
its weights by name and makes it again from `config`.
"""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from vdiff.diffusion.condition import NOTHING, Condition
from vdiff.errors import MachineError, UsageError
from vdiff.networks.section import NetworkSection as NetworkSection


class Network(nn.Module, ABC):
    """network(z, time, condition, dropout_keys) -> v, x or eps, as the recipe's `predicts` says.

    Its weights are its `state_dict`: what must be saved lies in parameters or buffers. Parts that
    repeat may be `Repeated` (see `networks/repeated.py`): then `checkpoint_activations` and `shard`
    work block by block.
    """

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Plain values, for `config.json`, from which the section's `restore`
        makes the same network.
        """

    def diffusers(self) -> dict[str, Any] | None:
        """The settings of the class in diffusers that computes the same with
        the same names of weights.

        `_class_name` names the class. They become `config.json` in the place of `config`, and
        `restore` takes them too. None unless diffusers really has the class: it would load anything
        else with random weights, and no error.
        """
        return None

    @property
    def takes_guidance(self) -> bool:
        """Whether it is told g, the strength of guidance, in `condition.guidance`."""
        return False

    def with_guidance_input(self) -> "Network":
        """The same network, which takes g too: with these weights and new ones, from torch's
        generator, that leave what it gives as it is, bit for bit, for every g.

        It has torch's plain layers; see `networks/fast.py`.
        Errors: UsageError for a kind that has no such input.
        """
        problem = f"a `{type(self).__name__}` has no input for guidance"
        raise UsageError(
            problem,
            "name one g, as in --set distill.guidance=1.5; or take a model of the kind `unet`",
            "distill.guidance",
        )

    def with_fixed_guidance(self, guidance: float) -> "Network":
        """What a network that takes g computes for this one, as a network that takes none.

        It has torch's plain layers.   Only for one that `takes_guidance`.
        """
        raise NotImplementedError("a network that takes no guidance has none to fix")

    def check_guidance(self, condition: Condition) -> None:
        """ValueError where g is missing, or told and not expected."""
        if self.takes_guidance and condition.guidance is None:
            raise ValueError("this network needs a `guidance` [B]")
        if condition.guidance is not None and not self.takes_guidance:
            raise ValueError("this network takes no `guidance`")

    @abstractmethod
    def forward(
        self,
        z: Tensor,
        time: Tensor,
        condition: Condition = NOTHING,
        dropout_keys: Tensor | None = None,
    ) -> Tensor:
        """Say what is in the noisy images.

        z: [B, C, H, W].   time: float [B], the index on the base grid, fractions allowed; see
        `Schedule.time_input`.
        condition: of the B images.   dropout_keys: int64 [B] in training, for random numbers that
        depend on the image alone (see `networks/dropout.py`); None: no dropout.
        Returns [B, C, H, W] in the dtype of z.
        """


def as_network(module: nn.Module) -> Network:
    """The module, which must be a `Network`.

    Errors: MachineError for what somebody's `build` made instead.
    """
    if not isinstance(module, Network):
        problem = (
            f"`{type(module).__name__}` is no network: "
            "`config` and more of the contract are missing"
        )
        raise MachineError(problem, "derive it from `vdiff.networks.network.Network`")
    return module
