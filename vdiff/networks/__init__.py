"""The kinds of network a recipe can name."""

from typing import TYPE_CHECKING

from vdiff.config import Registry

if TYPE_CHECKING:
    from vdiff.networks.section import NetworkSection

NETWORKS: "Registry[NetworkSection]" = Registry(
    "network",
    {
        "unet": "vdiff.networks.unet_section:UNetSection",
        "imported": "vdiff.networks.imported:ImportedSection",
        "diffusers": "vdiff.networks.diffusers_section:DiffusersSection",
        "lucidrains": "vdiff.networks.lucidrains_section:LucidrainsSection",
        "edm": "vdiff.networks.edm_section:EdmSection",
        "edm_unet": "vdiff.networks.edm_unet_section:EdmUNetSection",
    },
    default="unet",
    group="vdiff.networks",
    contract="vdiff.networks.section:NetworkSection",
)
