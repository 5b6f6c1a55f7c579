"""The kinds of sampler a recipe or a command can name."""

from typing import TYPE_CHECKING

from vdiff.config import Registry

if TYPE_CHECKING:
    from vdiff.samplers.sampler import SamplerSection

SAMPLERS: "Registry[SamplerSection]" = Registry(
    "sampler",
    {
        "ddim": "vdiff.samplers.ddim:DdimSection",
        "ancestral": "vdiff.samplers.ancestral:AncestralSection",
        "dpmpp": "vdiff.samplers.dpmpp:DpmppSection",
        "unipc": "vdiff.samplers.unipc:UniPcSection",
        "ipndm": "vdiff.samplers.ipndm:IpndmSection",
        "heun": "vdiff.samplers.heun:HeunSection",
    },
    default="ddim",
    group="vdiff.samplers",
    contract="vdiff.samplers.sampler:SamplerSection",
)
