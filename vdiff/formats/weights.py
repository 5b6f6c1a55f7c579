"""The values of the tensors in a stranger's file. Nothing in the file is executed, and only what is
asked for is read.

What `Contents` tells of a file was found without unpickling it. Here a file of torch is opened by
torch's own reader of weights, which builds tensors and tables and nothing else, and only after the
names in it were found harmless.
"""

import errno
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vdiff.errors import ModelFileError
from vdiff.formats.contents import Contents, contents_of
from vdiff.formats.persistent import Stored

Shapes = Mapping[str, tuple[int, ...]]

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
"""Types of number of stored tensors that are read."""

_FIX = "copy it again from where it came from, or ask its maker"


def read_tensors(
    found: Contents, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, Tensor]:
    """The tensors of a file by the names that `found.tensors` has, each with memory of its own.

    wanted: whether a name is to be read; the others cost nothing.
    Errors: ModelFileError for a file that would run something, or whose contents are not what its
    head says.
    """
    names = [fact.name for fact in found.tensors if wanted(fact.name)]
    if found.container == "safetensors":
        return _from_safetensors(found, names)
    if found.container == "torch":
        return _from_torch(found, names)
    problem = f"`{found.path.name}` is no file of tensors that vdiff reads ({found.container})"
    raise ModelFileError(problem, "save its weights as .safetensors or with torch.save", found.path)


def tensors_in(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    """As `read_tensors`, of the file at `path`.

    Errors: also FormatError for a damaged file, OSError.
    """
    found = contents_of(path)
    if found.trouble is not None:
        raise found.trouble
    return read_tensors(found, wanted)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """A safetensors file.

    Errors: OSError, also where safetensors has an error of its own for it.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    told = None if metadata is None else dict(metadata)
    try:
        save_file(whole, path, metadata=told)
    except SafetensorError as err:
        found = re.search(r"os error (\d+)", str(err))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, str(err), str(path)) from err
    # safetensors lets nobody else read it
    path.chmod(path.parent.stat().st_mode & 0o666)


def read_stored(path: Path, places: Mapping[str, Stored]) -> dict[str, Tensor]:
    """Tensors whose places in a file are known, each with memory of its own.

    Errors: ModelFileError for a file that changed meanwhile; OSError.
    """
    tensors = {}
    with path.open("rb") as file:
        for name, place in places.items():
            dtype = DTYPES[place.fact.dtype]
            file.seek(place.start)
            content = bytearray(file.read(place.size))
            if len(content) < place.size:
                raise ModelFileError(f"`{path}` ends inside `{name}`", _FIX, path)
            if place.size == 0:
                tensors[name] = torch.empty(place.fact.shape, dtype=dtype)
                continue
            view = torch.frombuffer(content, dtype=dtype).as_strided(
                place.fact.shape, place.strides
            )
            tensors[name] = view.clone(memory_format=torch.contiguous_format)
    return tensors


def without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin with `prefix`, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def take_exactly(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """ModelFileError that names every tensor that is missing, left over or of another shape.

    tensors: of the file, by the names that the network has.   expected: of the network.
    """
    fit_exactly(_shapes(tensors), _shapes(expected), path)


def fit_exactly(found: Shapes, expected: Shapes, path: Path) -> None:
    """As `take_exactly`, of shapes: before anything is read or allocated."""
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    wrong = [
        f"`{name}` is {list(found[name])} and should be {list(expected[name])}"
        for name in sorted(expected.keys() & found.keys())
        if found[name] != expected[name]
    ]
    told = []
    if missing:
        told.append(f"lacks {_listed(missing)}")
    if extra:
        told.append(f"has {_listed(extra)} too")
    if wrong:
        told.append("; ".join(wrong))
    if told:
        problem = f"`{path.name}` does not fit the network that it describes: it {'; '.join(told)}"
        raise ModelFileError(problem, "take an undamaged copy, or tell what it really is", path)


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _from_safetensors(found: Contents, names: list[str]) -> dict[str, Tensor]:
    try:
        with safe_open(found.path, framework="pt") as file:
            return {name: file.get_tensor(name).clone() for name in names}
    except (SafetensorError, OSError, ValueError) as err:
        raise ModelFileError(f"`{found.path}` cannot be read: {err}", _FIX, found.path) from err


def _from_torch(found: Contents, names: list[str]) -> dict[str, Tensor]:
    if found.names:
        first = found.names[0]
        problem = f"loading `{found.path.name}` would run `{first}`, so it is not loaded"
        fix = "ask its maker for safetensors, or for weights alone"
        raise ModelFileError(problem, fix, found.path)
    try:
        # mmap: what is not asked for, such as an optimizer's state, is never read from the disk
        root = torch.load(found.path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError, KeyError) as err:
        told = str(err).partition("\n")[0][:200]
        raise ModelFileError(f"`{found.path}` cannot be read: {told}", _FIX, found.path) from err
    tensors: dict[str, Tensor] = {}
    wanted = set(names)
    _walk(root, "", wanted, tensors)
    if wanted - tensors.keys():
        name = min(wanted - tensors.keys())
        raise ModelFileError(f"`{found.path}` has no tensor `{name}` to read", _FIX, found.path)
    return tensors


def _walk(value: object, name: str, wanted: set[str], tensors: dict[str, Tensor]) -> None:
    """The tensors in tables and lists, named `a.b.0` as `torch_file` names them."""
    if isinstance(value, Tensor):
        if name in wanted:
            # views into one large storage get memory of their own, each once
            tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
        return
    pairs: list[tuple[object, object]] = []
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, list | tuple):
        pairs = list(enumerate(value))
    for key, part in pairs:
        if isinstance(part, Tensor | Mapping | list | tuple):
            _walk(part, f"{name}.{key}" if name else str(key), wanted, tensors)


__all__ = [
    "DTYPES",
    "fit_exactly",
    "read_stored",
    "read_tensors",
    "take_exactly",
    "tensors_in",
    "without_prefix",
    "write_tensors",
]
