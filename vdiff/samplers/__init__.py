"""The kinds of sampler a recipe or a command can name."""

from vdiff.config import Registry

SAMPLERS = Registry(
    "sampler",
    {"ddim": "vdiff.samplers.ddim:DdimSection", "ancestral": "vdiff.samplers.ancestral:AncestralSection"},
    default="ddim",
    group="vdiff.samplers",
)
