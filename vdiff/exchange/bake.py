"""A model that takes guidance as an input, made into an ordinary one for one strength of it."""

from copy import deepcopy
from dataclasses import replace

import torch
from torch import nn

from vdiff.diffusion import inside
from vdiff.diffusion.condition import with_guidance
from vdiff.errors import ModelFileError, UsageError
from vdiff.exchange import proof
from vdiff.formats.adapter import ForeignModel
from vdiff.model_folder.card import ModelCard
from vdiff.model_folder.checkpoint import Checkpoint
from vdiff.networks.fast import fast_on
from vdiff.networks.network import as_network

TOLERANCE = 1e-6
"""Largest difference of outputs of about 1, computed in float64:
the one number that is rounded is the bias that takes g in.
"""


def check(card: ModelCard, guidance: float | None) -> None:
    """UsageError for a model that cannot be exported for this guidance; None: nobody named one."""
    held = card.guidance
    taken = inside.range_of(held)
    if taken is not None:
        low, high = taken
        if guidance is not None and low <= guidance <= high:
            return
        example = inside.usual(held)
        problem = (
            f"`{card.name}` takes guidance from {low:g} to {high:g} as an input, which no format "
            "has a place for"
        )
        if guidance is not None:
            problem = f"`{card.name}` learned guidance from {low:g} to {high:g}, not {guidance:g}"
        fix = f"name one that goes into the weights, as in --guidance {example:g}"
        raise UsageError(problem, fix, "--guidance")
    if guidance is None or (held is not None and held.get("value") == guidance):
        return
    if held is not None:
        problem = f"`{card.name}` has its guidance already ({inside.told(held)})"
        raise UsageError(problem, "leave out --guidance", "--guidance")
    raise UsageError(
        f"`{card.name}` has no guidance inside that could go into the weights",
        "leave out --guidance; `--set distill.guidance=[1,4]` of `vdiff distill` makes students "
        "that have it",
        "--guidance",
    )


def baked(loaded: Checkpoint, guidance: float) -> Checkpoint:
    """The model with this g in its weights, as `check` lets it; another one is given back as it is.

    Its card tells of the guidance, and has the files of the model that it was made of.
    """
    held = loaded.card.guidance
    if held is None or inside.range_of(held) is None:
        return loaded
    network = as_network(loaded.denoiser.network).with_fixed_guidance(guidance)
    network.eval().requires_grad_(False)
    fast_on(network, "cpu")
    card = replace(loaded.card, guidance=inside.of_wanted(guidance, held.get("interval")))
    return replace(loaded, card=card, denoiser=replace(loaded.denoiser, network=network))


def of_one(model: ForeignModel, card: ModelCard, guidance: float) -> ForeignModel:
    """The baked model, without the picture and the numbers of another g.

    card: of the model that it was made of.
    """
    if guidance == (inside.usual(card.guidance) or guidance):
        return model
    return replace(model, facts={**model.facts, "picture": None, "numbers": []})


def prove(before: ForeignModel, after: ForeignModel, guidance: float) -> str:
    """A sentence on how far the baked model is from the one that is told g.

    Errors: ModelFileError for a difference over `TOLERANCE`.
    """
    z, time, condition = proof.inputs(before)
    z = z.double()
    told = with_guidance(condition, guidance, len(z))
    with torch.no_grad():
        wanted = exact(before.denoiser.network)(z, time, told)
        found = exact(after.denoiser.network)(z, time, condition)
    size = max(1.0, float(wanted.square().mean().sqrt()))
    difference = float((found - wanted).abs().max()) / size
    if not difference <= TOLERANCE:
        problem = f"with guidance {guidance:g} in its weights the network gives other outputs"
        where = f"they differ by {difference:.2g}, and {TOLERANCE:.0e} is allowed"
        raise ModelFileError(problem, "report this: it is a fault of vdiff", where)
    return (
        f"guidance {guidance:g} in the weights or told as an input: outputs of about 1 differ by "
        f"{difference:.1e}"
    )


def exact(network: nn.Module) -> nn.Module:
    """A copy in float64, of torch's plain layers."""
    return fast_on(deepcopy(network), "meta").double()
