"""What lies in a model file of a stranger, before it is known which program wrote it.

Nothing in it is executed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vdiff.disk.safetensors_header import is_safetensors, read_header
from vdiff.disk.strict_json import parse_object
from vdiff.disk.tensor_facts import FormatError, TensorFact
from vdiff.formats.opcodes import Table
from vdiff.formats.torch_file import read_pickle, read_zip

LARGEST_CONFIG = 2**20
"""Bytes of a configuration file in a folder."""

_BEGINNING = 512

Container = Literal["safetensors", "torch", "torchscript", "pickle", "folder", "unknown"]


@dataclass(frozen=True)
class Contents:
    """A file or a folder as its container tells of it.

    container: how the bytes are laid out. `pickle` is one without a zip file around it, as torch
    before 1.6 wrote them; its tensors are not looked for. `unknown` is a file that vdiff cannot
    read, for the reason in `trouble`.
    beginning: the first 512 bytes of a file.   tensors: the facts of all tensors; their numbers are
    not read.
    entries: the top level dict of a torch file or a pickle, where dicts inside it are `Table`s; the
    metadata of safetensors.
    names: functions and classes, other than tensors and dicts, that loading the file would import
    or call.
    """

    path: Path
    container: Container
    beginning: bytes = b""
    num_bytes: int = 0
    tensors: tuple[TensorFact, ...] = ()
    entries: Mapping[str, object] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    trouble: FormatError | None = None

    def config(self, name: str) -> dict[str, object] | None:
        """A JSON object in a folder; None if there is no file of this name.

        Errors: FormatError, OSError.
        """
        path = self.path / name
        if self.container != "folder" or not path.is_file():
            return None
        with path.open("rb") as file:
            content = file.read(LARGEST_CONFIG + 1)
        if len(content) > LARGEST_CONFIG:
            raise FormatError(f"has a `{path.name}` of more than {LARGEST_CONFIG} bytes")
        return parse_object(content, f"a `{path.name}`")


def contents_of(path: Path) -> Contents:
    """What is at `path`.   Errors: FormatError for a damaged file of a known container, OSError."""
    if path.is_dir():
        return Contents(path, "folder")
    if not path.exists():
        raise FormatError("does not exist", "check the path")
    if not path.is_file():
        raise FormatError("is not a file", "check the path")
    with path.open("rb") as file:
        beginning = file.read(_BEGINNING)
    num_bytes = path.stat().st_size
    is_zip = beginning.startswith(b"PK\x03\x04")
    is_named_safetensors = path.suffix == ".safetensors"
    if not is_safetensors(beginning[:16]) and is_named_safetensors and (is_zip or _is_pickle(path)):
        # People trust the suffix. Some loaders look at the content instead, and would unpickle it.
        kind = "pickle"
        if is_zip:
            kind = "zip file, as torch and numpy write them,"
        reason = (
            f"is a {kind} under the name of a safetensors file: loading it could run any program"
        )
        raise FormatError(reason, "do not load it; ask its maker for real safetensors")
    if is_safetensors(beginning[:16]) or is_named_safetensors:
        tensors, metadata = read_header(path)
        return Contents(path, "safetensors", beginning, num_bytes, tensors, metadata)
    try:
        if is_zip:
            return _torch_zip(path, beginning, num_bytes)
        return _pickle(path, beginning, num_bytes)
    except FormatError as err:
        # Kept, not raised: a format of another package may know the file.
        return Contents(path, "unknown", beginning, num_bytes, trouble=err)


def _torch_zip(path: Path, beginning: bytes, num_bytes: int) -> Contents:
    torch_file = read_zip(path)
    container: Container = "torch"
    if torch_file.has_code:
        container = "torchscript"
    entries: Mapping[str, object] = {}
    if isinstance(torch_file.root, Table):
        entries = torch_file.root.texts()
    tensors = torch_file.tensors
    return Contents(path, container, beginning, num_bytes, tensors, entries, torch_file.names)


def _pickle(path: Path, beginning: bytes, num_bytes: int) -> Contents:
    try:
        found = read_pickle(path)
    except FormatError as err:
        reason = "is not a model file that vdiff knows, or a damaged one"
        raise FormatError(
            reason, "name a .pt, .pth, .ckpt or .safetensors file, or a diffusers folder"
        ) from err
    entries: Mapping[str, object] = {}
    if isinstance(found.root, Table):
        entries = found.root.texts()
    return Contents(path, "pickle", beginning, num_bytes, entries=entries, names=found.names)


def _is_pickle(path: Path) -> bool:
    try:
        read_pickle(path)
    except FormatError:
        return False
    return True
