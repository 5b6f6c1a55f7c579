"""Which sampler draws with a model: the one that somebody names,
else the one that the model is meant for.
"""

from collections.abc import Mapping
from typing import Any

from vdiff.errors import ModelFileError
from vdiff.samplers import SAMPLERS
from vdiff.samplers.sampler import SamplerSection


def sampler_for(
    named: SamplerSection | None,
    advice: Mapping[str, Any] | None,
    model: str,
    *,
    is_solvable: bool,
) -> SamplerSection:
    """The sampler that draws with a model, wherever it is drawn with.

    named: by a recipe, which wins; None where it names none. A solver wins for models alone that it
    can draw with: a run's recipe names it for the base, and the students draw as they are meant to.
    is_solvable: whether it can with this one, see `ModelCard.is_solvable`.
    advice: the sampler of the model's card, or of the objective that it learns by; None for the
    default, DDIM.
    model: what messages call the model.

    Errors: ModelFileError for advice that this vdiff does not know, or options that it does not
    have.
    """
    if named is not None and (is_solvable or not named.build().needs_denoiser):
        return named
    if advice is None:
        return SAMPLERS.section(SAMPLERS.default).model_validate({"kind": SAMPLERS.default})
    return advised(advice, model)


def advised(section: Mapping[str, Any], model: str) -> SamplerSection:
    """The sampler of a model card.   model: what messages call the model.

    Errors: ModelFileError for a sampler that this vdiff does not know, or options that it does not
    have.
    """
    kind = str(section.get("kind"))
    other = "name another one with --sampler, or with `sample.sampler` in the recipe"
    if kind not in SAMPLERS:
        fix = f"install the package that brings this sampler, or {other}"
        raise ModelFileError(f"`{model}`: {SAMPLERS.unknown(kind)}", fix)
    try:
        return SAMPLERS.section(kind).model_validate(section)
    except ValueError as err:
        problem = (
            f"`{model}` is meant for the sampler `{kind}` with options that it does not have here"
        )
        raise ModelFileError(problem, f"get a version of it that fits, or {other}") from err
