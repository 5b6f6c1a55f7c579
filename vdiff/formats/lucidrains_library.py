"""What denoising-diffusion-pytorch computes with a file of its own, where it is installed."""

from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import cast

import torch
from torch import Tensor

from vdiff.formats.adapter import Outputs
from vdiff.formats.contents import Contents
from vdiff.formats.lucidrains_layout import Layout, layout_of, network_config, parsed
from vdiff.formats.weights import read_tensors

PACKAGE = "denoising_diffusion_pytorch"
DISTRIBUTION = "denoising-diffusion-pytorch"


def outputs(found: Contents, theta: float, z: Tensor, time: Tensor) -> Outputs | None:
    """The outputs of the program's own `Unet` with the weights of the file, [B, C or 2 C, H, W].

    theta: of the time's sines, which the file does not tell.
    None where the program is not installed, or is of another generation than the file.
    Errors: ModelFileError, FormatError, OSError.
    """
    layout = layout_of(found)
    # networks of version 1 are other networks under the same name
    if find_spec(PACKAGE) is None or layout.generation != "A":
        return None
    installed = version(DISTRIBUTION)
    arguments = _arguments(layout, theta)
    if parsed(installed)[:1] != (2,) or arguments is None:
        return None
    from denoising_diffusion_pytorch import Unet

    network = Unet(**arguments).eval()
    tensors = read_tensors(found, lambda name: name.startswith(layout.prefix))
    weights = {name.removeprefix(layout.prefix): each.float() for name, each in tensors.items()}
    network.load_state_dict(weights)
    with torch.no_grad():
        # a network with self-conditioning sees zeros where it is told of no picture
        output: Tensor = network(z, time)
    return Outputs(output, f"{DISTRIBUTION} {installed}")


def _arguments(layout: Layout, theta: float) -> dict[str, object] | None:
    """Of its constructor; None for a network that none of them makes."""
    config = network_config(layout, layout.version or "2.0", theta, None, None)
    dim = cast(int, config["dim"])
    init_dim, *widths = cast(list[int], config["widths"])
    if any(width % dim for width in widths) or config["halving"] != "unshuffle":
        return None
    attentions = cast(list[Mapping[str, object]], config["attentions"])
    return {
        "dim": dim,
        "init_dim": init_dim,
        "dim_mults": tuple(width // dim for width in widths),
        "channels": layout.channels,
        "self_condition": layout.has_self_condition,
        "learned_variance": layout.has_variance,
        "sinusoidal_pos_emb_theta": theta,
        "attn_dim_head": tuple(each["head_dim"] for each in attentions),
        "attn_heads": tuple(each["heads"] for each in attentions),
        "full_attn": tuple(each["full"] for each in attentions),
    }
