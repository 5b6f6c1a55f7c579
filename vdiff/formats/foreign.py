"""What a model file or folder of another program holds, for `vdiff inspect`. Nothing in it is
executed.

vdiff's own formats are asked first, then those of other packages. A file that no format recognises
is described by its container.
"""

from dataclasses import replace
from pathlib import Path

from vdiff.disk.tensor_facts import FormatError, TensorFact
from vdiff.errors import MachineError, ModelFileError
from vdiff.formats import FORMATS
from vdiff.formats.contents import Contents, contents_of
from vdiff.formats.diffusers import DiffusersFormat
from vdiff.formats.foreign_file import ForeignFile, warning

__all__ = ["ForeignFile", "TensorFact", "describe"]

KINDS = {
    "safetensors": "safetensors weights",
    "torch": "pytorch checkpoint",
    "torchscript": "torchscript program",
}
"""What a file is called that no format recognises, by its container."""


def describe(path: Path) -> ForeignFile:
    """What the file or diffusers folder at `path` holds;
    ModelFileError if it is damaged, unsafe or unknown.
    """
    unusable: list[str] = []
    try:
        contents = contents_of(path)
        name = format_of(contents, unusable)
        if name is not None:
            described = FORMATS.find(name)().describe(contents)
        else:
            described = _unknown(contents)
    except FormatError as err:
        problem = "".join([f"`{path.name}` {err.reason}", *(f"\n  {text}" for text in unusable)])
        raise ModelFileError(problem, err.fix, path) from err
    except OSError as err:
        raise ModelFileError(
            f"`{path.name}` cannot be read: {err.strerror}", "check the path", path
        ) from err
    if unusable:
        return replace(described, facts={**described.facts, "warnings": unusable})
    return described


def format_of(found: Contents, unusable: list[str]) -> str | None:
    """The name of the first format that recognises it.

    For each that cannot be loaded, the reason is added to `unusable`.
    """
    for name in FORMATS:
        try:
            kind = FORMATS.find(name)
        except MachineError as err:
            # A broken package must not keep the others from describing the file.
            reason = err.problem
            if err.where:
                reason += f": {err.where}"
            unusable.append(reason)
            continue
        if kind.recognises(found):
            return name
    return None


def _unknown(found: Contents) -> ForeignFile:
    if found.trouble is not None:
        raise found.trouble
    if found.container == "folder":
        return DiffusersFormat().describe(found)
    facts = {"num_bytes": found.num_bytes, **warning(found.names)}
    if found.container == "pickle":
        advice = (
            "where you trust its maker: `torch.save(torch.load(file, weights_only=True), new_file)`"
        )
        facts = {
            "num_bytes": found.num_bytes,
            "note": "a bare pickle: not read",
            "fix": advice,
            **warning(found.names),
        }
        return ForeignFile(found.path, "legacy pickle", (), facts)
    if found.container == "safetensors" and found.entries:
        facts["metadata"] = dict(found.entries)
    return ForeignFile(found.path, KINDS[found.container], found.tensors, facts)
