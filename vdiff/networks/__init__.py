"""The kinds of network a recipe can name."""

from vdiff.config import Registry

NETWORKS = Registry("network", {"unet": "vdiff.networks.unet:UNetSection"}, default="unet", group="vdiff.networks")
