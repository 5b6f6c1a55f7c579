"""The kinds of network a recipe can name."""

from typing import TYPE_CHECKING

from vdiff.config import Registry

if TYPE_CHECKING:
    from vdiff.networks.network import NetworkSection

NETWORKS: "Registry[NetworkSection]" = Registry(
    "network",
    {"unet": "vdiff.networks.unet:UNetSection"},
    default="unet",
    group="vdiff.networks",
    contract="vdiff.networks.network:NetworkSection",
)
