"""What lies in a model file of a stranger, before anybody says whose it is. Nothing in it is executed or believed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vdiff.disk.safetensors_header import is_safetensors, read_header
from vdiff.disk.strict_json import parse_object
from vdiff.disk.tensor_facts import FormatError, TensorFact
from vdiff.formats.opcodes import Table
from vdiff.formats.torch_file import legacy_names, read_zip

LARGEST_CONFIG = 2**20
"""Bytes of a configuration file in a folder."""

_BEGINNING = 512

Container = Literal["safetensors", "torch", "torchscript", "pickle", "folder", "unknown"]


@dataclass(frozen=True)
class Contents:
    """A file or a folder as its container tells of it.

    container: how the bytes are laid out; `pickle` is a bare one, as torch before 1.6 wrote them, whose tensors are not
    found; `unknown` is a file that vdiff cannot read, for the reason in `trouble`.
    beginning: the first 512 bytes of a file.   tensors: all there are, none of them read.
    entries: of a torch file the uppermost table, of which a `Table` is a table inside; of safetensors the metadata.
    names: what loading the file would import or call beyond tensors and tables.
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
        """A JSON object in a folder; None if there is no file of this name.   Errors: FormatError, OSError."""
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
    if not path.is_file():
        raise FormatError("is not a file" if path.exists() else "does not exist", "check the path")
    with path.open("rb") as file:
        beginning = file.read(_BEGINNING)
    num_bytes = path.stat().st_size
    is_zip = beginning.startswith(b"PK\x03\x04")
    is_named_safetensors = path.suffix == ".safetensors"
    if not is_safetensors(beginning[:16]) and is_named_safetensors and (is_zip or _is_pickle(path)):
        reason = (
            "is a pickle under the name of a safetensors file: loading it could run any program"
        )
        raise FormatError(reason, "do not load it; ask its maker for real safetensors")
    if is_safetensors(beginning[:16]) or is_named_safetensors:
        tensors, metadata = read_header(path)
        return Contents(path, "safetensors", beginning, num_bytes, tensors, metadata)
    try:
        return (
            _torch_zip(path, beginning, num_bytes)
            if is_zip
            else _pickle(path, beginning, num_bytes)
        )
    except FormatError as err:
        return Contents(path, "unknown", beginning, num_bytes, trouble=err)


def _torch_zip(path: Path, beginning: bytes, num_bytes: int) -> Contents:
    found = read_zip(path)
    container: Container = "torchscript" if found.has_code else "torch"
    entries = found.root.texts() if isinstance(found.root, Table) else {}
    return Contents(path, container, beginning, num_bytes, found.tensors, entries, found.names)


def _pickle(path: Path, beginning: bytes, num_bytes: int) -> Contents:
    try:
        names = legacy_names(path)
    except FormatError as err:
        reason = "is not a model file that vdiff knows, or a damaged one"
        raise FormatError(
            reason, "name a .pt, .pth, .ckpt or .safetensors file, or a diffusers folder"
        ) from err
    return Contents(path, "pickle", beginning, num_bytes, names=names)


def _is_pickle(path: Path) -> bool:
    try:
        legacy_names(path)
    except FormatError:
        return False
    return True
