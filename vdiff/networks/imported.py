"""The network of a run whose base was imported:
it is in the model folder, and no recipe makes it anew.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from vdiff.config import shapes_weights
from vdiff.errors import ModelFileError, UsageError
from vdiff.networks.section import NetworkSection

if TYPE_CHECKING:
    from vdiff.networks.network import Network


class ImportedSection(NetworkSection):
    """No network to train from the start: the base of the run was imported,
    and students are copies of it.
    """

    kind: Literal["imported"] = shapes_weights("imported")
    """Which network this is."""

    def build(self, image_size: int, channels: int) -> "Network":
        problem = (
            "the base of this run was imported, so there is no network to train from the start"
        )
        fix = "`vdiff distill` goes on from it; to train one, name its `network` in the recipe"
        raise UsageError(problem, fix, "network.kind")

    @classmethod
    def restore(cls, config: Mapping[str, Any]) -> "Network":
        problem = "a model folder names the kind of its network, and `imported` is none"
        raise ModelFileError(problem, "take another folder")
