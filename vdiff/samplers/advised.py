"""The sampler that a model is meant for, as its card names it."""

from collections.abc import Mapping
from typing import Any

from vdiff.errors import ModelFileError
from vdiff.samplers import SAMPLERS
from vdiff.samplers.sampler import SamplerSection


def advised(section: Mapping[str, Any], model: str) -> SamplerSection:
    """The sampler of a model card.   model: what messages call the model.

    Errors: ModelFileError for a sampler that this vdiff does not know, or options that it does not have.
    """
    kind = str(section.get("kind"))
    if kind not in SAMPLERS:
        fix = "install the package that brings this sampler, or name another one with --sampler"
        raise ModelFileError(f"`{model}`: {SAMPLERS.unknown(kind)}", fix)
    try:
        return SAMPLERS.section(kind).model_validate(section)
    except ValueError as err:
        problem = (
            f"`{model}` is meant for the sampler `{kind}` with options that it does not have here"
        )
        raise ModelFileError(
            problem, "get a version of it that fits, or name another one with --sampler"
        ) from err
