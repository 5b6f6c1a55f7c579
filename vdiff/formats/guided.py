"""Weights of OpenAI's guided-diffusion and improved-diffusion (`.pt`),
which hold nothing but the network's tensors.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vdiff.disk.tensor_facts import FormatError
from vdiff.formats.adapter import ForeignModel, Format
from vdiff.formats.contents import Contents
from vdiff.formats.foreign_file import ForeignFile, warning
from vdiff.formats.guided_keys import Layout, kind_of, layout_of, refusal
from vdiff.formats.guided_settings import OPTIONS, completed, readings

if TYPE_CHECKING:
    from torch import Tensor


class GuidedFormat(Format):
    """OpenAI's guided-diffusion and improved-diffusion:
    `.pt` files with the weights of a U-Net alone.
    """

    options = OPTIONS

    def __init__(self) -> None:
        self._taken: tuple[Contents, dict[str, Tensor]] | None = None

    @classmethod
    def recognises(cls, found: Contents) -> bool:
        return kind_of(found) is not None

    def describe(self, found: Contents) -> ForeignFile:
        """What is read off the shapes; heads, their order and the noise process leave no trace."""
        kind = kind_of(found)
        facts: dict[str, Any] = {"num_bytes": found.num_bytes}
        problem = refusal(found)
        if problem is not None:
            facts |= {"note": problem.problem, "fix": problem.fix}
        else:
            layout = _layout(found)
            facts |= layout.facts()
            given = completed(found.path, layout, {})
            if "preset" in given:
                facts["preset"] = given["preset"]
        return ForeignFile(found.path, f"{kind}", found.tensors, facts | warning(found.names))

    def candidates(self, found: Contents, asked: Mapping[str, str]) -> Sequence[Mapping[str, str]]:
        _check(found)
        layout = _layout(found)
        return readings(layout, completed(found.path, layout, asked))

    def read(self, found: Contents, asked: Mapping[str, str]) -> ForeignModel:
        from vdiff.formats.guided_network import model_of
        from vdiff.formats.weights import read_tensors

        _check(found)
        layout = _layout(found)
        given = readings(layout, completed(found.path, layout, asked))[0]
        # a file is read in many ways, one after the other, where it leaves much open
        if self._taken is None or self._taken[0] is not found:
            self._taken = (found, read_tensors(found))
        return model_of(layout, self._taken[1], given, found.path)


def _check(found: Contents) -> None:
    problem = refusal(found)
    if problem is not None:
        raise problem


def _layout(found: Contents) -> Layout:
    try:
        return layout_of({fact.name: fact.shape for fact in found.tensors})
    except KeyError as err:
        reason = f"lacks the tensor `{err.args[0]}`, without which its network cannot be told"
        raise FormatError(reason, "take an undamaged copy") from err
