"""Networks that other programs train: an import brings one, and no recipe makes one anew."""

from typing import TYPE_CHECKING

from vdiff.errors import UsageError
from vdiff.networks.section import NetworkSection

if TYPE_CHECKING:
    from vdiff.networks.network import Network


class TakenInSection(NetworkSection):
    """A kind of network that is imported; students are copies of it."""

    def build(self, image_size: int, channels: int) -> "Network":
        """UsageError."""
        problem = f"vdiff trains no network of the kind `{self.kind}` from the start"
        fix = (
            "`vdiff import` takes in a trained one, and `vdiff distill` goes on from it; "
            "to train one, name a `network` such as `unet` in the recipe"
        )
        raise UsageError(problem, fix, "network.kind")

    def check(self, image_size: int, channels: int) -> None:
        """UsageError."""
        self.build(image_size, channels)
