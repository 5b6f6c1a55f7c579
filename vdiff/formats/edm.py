"""Pickles of NVlabs/edm (`network-snapshot-*.pkl`), read without running anything in them."""

from collections.abc import Mapping
from typing import Any, ClassVar

from vdiff.errors import ModelFileError, UsageError
from vdiff.formats.adapter import ForeignModel, Format
from vdiff.formats.contents import Contents
from vdiff.formats.edm_frame import noise_range
from vdiff.formats.edm_layout import LICENCE, layout_of
from vdiff.formats.foreign_file import ForeignFile, warning
from vdiff.formats.persistent import Module, Stored, is_persistent, module_of, tensors_of

NETWORK = "ema"
"""The entry of a snapshot that is the averaged network."""


class EdmFormat(Format):
    """A `network-snapshot-*.pkl` of NVlabs/edm: DDPM++ and ADM, in the frames EDM, VP and iDDPM."""

    options: ClassVar[Mapping[str, str]] = {
        "sigma_min": "the least noise that its sampler visits; 0.002 unless it was changed",
        "sigma_max": "the most noise that its sampler visits; 80 unless it was changed",
    }

    @classmethod
    def recognises(cls, found: Contents) -> bool:
        return is_persistent(found)

    def describe(self, found: Contents) -> ForeignFile:
        """What its classes and their settings tell, and all tensors."""
        facts: dict[str, Any] = {"num_bytes": found.num_bytes}
        tensors: Mapping[str, Stored] = {}
        try:
            module = _network(found)
            tensors = tensors_of(module, found.path)
            facts["class"] = module.class_name
            layout = layout_of(module, found.path)
            facts |= layout.facts()
            facts["licence"] = LICENCE
        except ModelFileError as err:
            facts |= {"note": err.problem, "fix": err.fix}
        facts |= warning(found.names)
        listed = tuple(stored.fact for stored in tensors.values())
        return ForeignFile(found.path, "NVlabs pickle", listed, facts)

    def read(self, found: Contents, asked: Mapping[str, str]) -> ForeignModel:
        from vdiff.formats.edm_network import model_of

        module = _network(found)
        layout = layout_of(module, found.path)
        if layout.sigma_data is None and asked:
            problem = f"a network in the frame {layout.frame} has noise levels of its own"
            raise UsageError(problem, f"leave out `{min(asked)}`", "--assume")
        ends = noise_range(asked, layout.limits)
        return model_of(layout, tensors_of(module, found.path), ends, found.path)


def _network(found: Contents) -> Module:
    """The network of a snapshot.   Errors: ModelFileError, FormatError."""
    module = module_of(found.entries.get(NETWORK))
    if module is None:
        has = ", ".join(f"`{name}`" for name in list(found.entries)[:10]) or "nothing with a name"
        problem = f"`{found.path.name}` has no network under the name `{NETWORK}`; it has {has}"
        fix = "take a `network-snapshot-*.pkl` of NVlabs/edm; other NVlabs programs are not read"
        raise ModelFileError(problem, fix, found.path)
    return module
