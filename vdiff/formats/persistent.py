"""Networks in the pickles of NVlabs' programs: what they are made of, found without running any of
it.

Such a pickle asks that the source text of a module, which it brings along, is run. That text is
never looked at. Beside it stand the names of the classes, what they were made with, and their
tensors; the numbers of each lie in a row of bytes that torch wrote for itself.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from vdiff.disk.tensor_facts import ITEM_BITS, FormatError, TensorFact, printable
from vdiff.formats.contents import Contents
from vdiff.formats.opcodes import Made, Name, Stretch, Table, follow
from vdiff.formats.torch_file import (
    DEEPEST,
    LEGACY_MARK,
    MOST_TENSORS,
    kept_storage,
    placed_tensor,
)

MAKER = "torch_utils.persistence._reconstruct_persistent_obj"
"""What makes an object of source text."""

STORAGE_MAKER = "torch.storage._load_from_bytes"

LONGEST_HEAD = 4096
"""Bytes before the numbers of a storage; torch writes about 500."""


@dataclass(frozen=True)
class Stored:
    """A tensor and the bytes of a file that it lies in.

    start, size: of those bytes.   strides: in numbers of its type, from the first of them.
    """

    fact: TensorFact
    start: int
    size: int
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Module:
    """A layer or a network of such a pickle.

    settings: what it was made with, by name.   positional: whether more was said, without names.
    own: its tensors, as the pickle describes them.
    """

    class_name: str
    settings: Mapping[str, Any]
    positional: bool
    own: Mapping[str, Made]
    parts: "Mapping[str, Module]"


def is_persistent(found: Contents) -> bool:
    """Whether a file is a pickle that asks for its own source text to be run."""
    return found.container == "pickle" and MAKER in found.names


def module_of(value: object) -> Module | None:
    """The network that a value of a pickle stands for; None if it stands for none.

    Errors: FormatError.
    """
    return _Walk().module(value, 0)


def tensors_of(module: Module, path: Path) -> dict[str, Stored]:
    """All tensors of a network by their names, as its `state_dict` would have them.

    path: of the file.   Errors: FormatError for tensors that do not lie in it.
    """
    found = {}
    with path.open("rb") as file:
        for name, made in _made(module, ""):
            stored = _stored(file, made, name)
            if stored is not None:
                found[name] = stored
    return found


class _Walk:
    """The modules of a network.   left: how many more of them, and of what they hold, there may be.

    A part that several share is counted as often as it is met.
    """

    def __init__(self) -> None:
        self.left = MOST_TENSORS

    def module(self, value: object, depth: int) -> Module | None:
        """See `module_of`."""
        self.left -= 1
        if depth > DEEPEST or self.left < 0:
            raise FormatError(f"nests its networks more than {DEEPEST} deep, or has endless many")
        if not isinstance(value, Made):
            return None
        class_name, state = _described(value)
        if state is None:
            return None
        inside = _table(state.get("_modules"))
        held = ("_parameters", "_buffers", "_init_kwargs")
        self.left -= sum(len(_table(state.get(kind))) for kind in held) + len(inside)
        parts = {}
        for name, part in inside.items():
            module = self.module(part, depth + 1)
            if module is not None:
                parts[name] = module
        own: dict[str, Made] = {}
        for kind in ("_parameters", "_buffers"):
            tensors = _table(state.get(kind)).items()
            own |= {name: tensor for name, tensor in tensors if isinstance(tensor, Made)}
        settings = _table(state.get("_init_kwargs"))
        positional = state.get("_init_args", ())
        return Module(class_name, settings, bool(positional), own, parts)


def _described(made: Made) -> tuple[str, Mapping[str, Any] | None]:
    """Class and attributes of an object, of source text or of a package; no attributes: no
    network.
    """
    if made.maker == Name(MAKER):
        is_one = isinstance(made.args, tuple) and len(made.args) == 1
        told = _table(made.args[0]) if is_one else {}
        name, state = told.get("class_name"), told.get("state")
    else:
        name, state = _class_of(made), made.state
    attributes = _table(state)
    if not isinstance(name, str) or "_modules" not in attributes:
        return "", None
    return printable(name, 100), attributes


def _class_of(made: Made) -> str:
    maker = made.maker
    # what copies an object is given its class
    if isinstance(made.args, tuple) and made.args and isinstance(made.args[0], Name):
        maker = made.args[0]
    return maker.full.rpartition(".")[2] if isinstance(maker, Name) else ""


def _table(value: object) -> dict[str, Any]:
    return value.texts() if isinstance(value, Table) else {}


def _made(module: Module, prefix: str) -> Iterator[tuple[str, Made]]:
    for name, made in module.own.items():
        yield f"{prefix}{name}", made
    for name, part in module.parts.items():
        yield from _made(part, f"{prefix}{name}.")


def _stored(file: IO[bytes], made: Made, name: str) -> Stored | None:
    """Where a tensor lies; None if `made` is none."""
    starts = []

    def storage_of(storage: object) -> tuple[str, int]:
        dtype, num_bytes, start = _storage(file, storage)
        starts.append(start)
        return dtype, num_bytes

    placed = placed_tensor(made, name, storage_of)
    if placed is None:
        return None
    fact = placed.fact
    bits = ITEM_BITS[fact.dtype]
    if bits % 8:
        raise FormatError(f"stores `{name}` in a type that PyTorch did not have, `{fact.dtype}`")
    reach = 0
    if fact.num_elements:
        reach = 1 + sum(
            (size - 1) * stride for size, stride in zip(fact.shape, placed.strides, strict=True)
        )
    if reach < fact.num_elements:
        # a kilobyte could stand for gigabytes
        raise FormatError(f"stores numbers of `{name}` in one another's place")
    start = starts[0] + placed.offset * bits // 8
    return Stored(fact, start, reach * bits // 8, placed.strides)


def _storage(file: IO[bytes], storage: object) -> tuple[str, int, int]:
    """(type of number, size in bytes, place in the file) of what torch wrote for itself:
    its mark, a version, facts about the machine, the storage, its name; then how many numbers, and
    the numbers.
    """
    stretch = _row_of_bytes(storage)
    file.seek(stretch.start)
    head = io.BytesIO(file.read(min(stretch.size, LONGEST_HEAD)))
    mark, version, machine, kept, names = [follow(head).value for _ in range(5)]
    if mark != LEGACY_MARK or version != 1001 or not isinstance(machine, Table):
        raise FormatError("holds a storage that PyTorch did not write")
    if machine.texts().get("little_endian") is not True:
        raise FormatError("holds numbers whose highest byte comes first")
    dtype, name, num_bytes = kept_storage(kept)
    counted = head.read(8)
    start = head.tell()
    item = ITEM_BITS[dtype] // 8
    is_one = isinstance(names, list) and names == [name] and len(counted) == 8
    if not is_one or int.from_bytes(counted, "little") * item != num_bytes:
        raise FormatError("holds a storage that PyTorch did not write")
    if start + num_bytes > stretch.size:
        raise FormatError("is damaged: a storage has fewer bytes than it says")
    return dtype, num_bytes, stretch.start + start


def _row_of_bytes(storage: object) -> Stretch:
    if isinstance(storage, Made) and storage.maker == Name(STORAGE_MAKER):
        args = storage.args
        if isinstance(args, tuple) and len(args) == 1 and isinstance(args[0], Stretch):
            return args[0]
    raise FormatError("names a storage in a way that PyTorch does not")
