"""PyTorch's .pt, .pth, .ckpt and .bin files, described from their pickles and zip records without
unpickling them.
"""

import io
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from vdiff.disk.tensor_facts import (
    ITEM_BITS,
    FormatError,
    TensorFact,
    is_size,
    printable,
    tensor_fact,
)
from vdiff.formats.opcodes import Followed, Kept, Made, Name, Table, follow

LARGEST_READ = 64 * 2**20
"""Most bytes of a pickle, and of a zip file's list of records.
The pickle of 1,000 tensors takes 0.2 MiB.
"""

DEEPEST = 32
"""How deep dicts and lists may lie in each other; optimizer states in a checkpoint are 4 deep."""

MOST_TENSORS = 200_000

LEGACY_MARK = 0x1950A86A20F9469CFC6C
"""The number that begins the files of PyTorch before 1.6."""

STORAGES = {
    "BoolStorage": "bool", "ByteStorage": "uint8", "CharStorage": "int8", "ShortStorage": "int16",
    "IntStorage": "int32", "LongStorage": "int64", "HalfStorage": "float16", "BFloat16Storage": (
        "bfloat16"
    ),
    "FloatStorage": "float32", "DoubleStorage": "float64", "UntypedStorage": "uint8",
    "ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128",
}  # fmt: skip
"""torch's storage classes -> the type of number in them."""

_TENSORS = {f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3")}
_PARAMETERS = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
# Names in every checkpoint of PyTorch: only other ones are told to users.
_HARMLESS = {
    *_TENSORS,
    *_PARAMETERS,
    *(f"torch.{name}" for name in STORAGES),
    *(f"torch.{name}" for name in ITEM_BITS),
    *("torch.Size", "torch.device", "torch.storage.UntypedStorage"),
    *("collections.OrderedDict", "torch.serialization._get_layout"),
}


@dataclass(frozen=True)
class TorchFile:
    """What a zip file of PyTorch holds.

    root: the value of its pickle.   names: functions and classes, other than tensors and dicts,
    that loading it would import or call.   has_code: whether it holds a TorchScript program.
    """

    root: Any
    tensors: tuple[TensorFact, ...]
    names: tuple[str, ...]
    has_code: bool


def read_zip(path: Path) -> TorchFile:
    """The tensors and names in a file of PyTorch 1.6 or later;
    FormatError if it is not one or is damaged.
    """
    try:
        with _Sips(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
            records = _records(archive, path.stat().st_size)
            folder = _folder(records)
            followed = follow(io.BytesIO(_content(archive, records[f"{folder}/data.pkl"])))
    except _BAD_ZIP as err:
        raise FormatError(f"is a damaged zip file: {printable(str(err))}") from err
    sizes = {name.removeprefix(f"{folder}/data/"): info.file_size for name, info in records.items()}
    # Cut short while they are found: shared parts could otherwise give tensors without end.
    tensors = tuple(islice(_walk(followed.value, "", sizes, set()), MOST_TENSORS + 1))
    if len(tensors) > MOST_TENSORS:
        raise FormatError(f"names more than {MOST_TENSORS} tensors")
    has_code = any(name.startswith(f"{folder}/code/") for name in records)
    return TorchFile(followed.value, tensors, _suspects(followed), has_code)


# All that `zipfile` was seen to raise for damaged files.
_BAD_ZIP = (
    zipfile.BadZipFile,
    ValueError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    OverflowError,
)


@dataclass(frozen=True)
class BarePickle:
    """A pickle without a zip file around it. Rows of bytes in it are `Stretch`es.

    names: functions and classes, other than tensors and dicts, that loading it would import or
    call.
    """

    root: Any
    names: tuple[str, ...]


def read_pickle(path: Path) -> BarePickle:
    """A bare pickle, or PyTorch's older stream of pickles;
    FormatError if it is neither.
    """
    with _Frugal(io.FileIO(path)) as file:
        pickles = [follow(file, passes_over=True)]
        mark = pickles[0].value
        if type(mark) is int and mark == LEGACY_MARK:
            # A stream holds four pickles: the mark, a version, facts about the machine, the object.
            pickles += [follow(file, passes_over=True) for _ in range(3)]
    # A dict as a set that keeps the order.
    names = dict.fromkeys(name for followed in pickles for name in _suspects(followed))
    return BarePickle(pickles[-1].value, tuple(names))


class _Sips(io.BufferedReader):
    """A file of which never more than LARGEST_READ bytes are read at once.

    `zipfile` reads as many bytes as a zip file says that its list has: a hostile one would fill the
    memory.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = LARGEST_READ
        if size > LARGEST_READ:
            raise FormatError(f"asks for {size} bytes at once")
        return super().read(size)


class _Frugal(_Sips):
    """A file of which never more than LARGEST_READ bytes are read in all: the rest of a pickle is
    weights, and they are passed over.
    """

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__(raw)
        self._left = LARGEST_READ

    def read(self, size: int | None = -1, /) -> bytes:
        return self._counted(super().read(size))

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._counted(super().readline(LARGEST_READ))

    def _counted(self, content: bytes) -> bytes:
        self._left -= len(content)
        if self._left < 0:
            raise FormatError(
                f"holds a pickle of more than {LARGEST_READ} bytes beside its tensors"
            )
        return content


def _records(archive: zipfile.ZipFile, num_bytes: int) -> dict[str, zipfile.ZipInfo]:
    infos = archive.infolist()
    records = {info.filename: info for info in infos}
    # PyTorch might load another of the two than the one that was looked at.
    if len(records) < len(infos):
        raise FormatError("is a zip file that holds one name twice")
    if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in infos):
        raise FormatError("is a zip file with compressed or encrypted records; PyTorch writes none")
    # Nothing is compressed, so more bytes than the file has mean records that overlap.
    if sum(info.file_size for info in infos) > num_bytes:
        raise FormatError("is a zip file whose records claim more bytes than it has")
    return records


def _folder(records: Mapping[str, zipfile.ZipInfo]) -> str:
    pickles = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise FormatError(
            "is a zip file, but not one of PyTorch", "name a .pt, .pth, .ckpt or .safetensors file"
        )
    return pickles[0].partition("/")[0]


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > LARGEST_READ:
        raise FormatError(
            f"holds a pickle of {info.file_size} bytes; "
            "it should hold tensors as records of their own"
        )
    with archive.open(info) as member:
        # In pieces: its packed size is another claim, which `zipfile` would otherwise read at once.
        return b"".join(iter(partial(member.read, 2**20), b""))


def _suspects(followed: Followed) -> tuple[str, ...]:
    """The names that users should know of."""
    return tuple(printable(name) for name in followed.names if name not in _HARMLESS)


def _walk(
    value: Any, name: str, sizes: Mapping[str, int], seen: set[int], depth: int = 0
) -> Iterator[TensorFact]:
    """The tensors in tables, lists and tuples, named `a.b.0`."""
    if depth > DEEPEST:
        raise FormatError(f"nests its contents more than {DEEPEST} deep")
    if isinstance(value, Made):
        placed = placed_tensor(value, name, partial(_storage, sizes=sizes))
        if placed is not None:
            yield placed.fact
    # Each container is entered once: one that holds itself has no end, and 30 lists that each hold
    # the next one twice have a billion ends.
    if not isinstance(value, Table | list | tuple) or id(value) in seen:
        return
    seen.add(id(value))
    for key, part in _values(value):
        if isinstance(part, Made | Table | list | tuple):
            part_name = f"{name}.{key}"
            if not name:
                part_name = key
            yield from _walk(part, part_name, sizes, seen, depth + 1)


def _values(value: Table | Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """The keys, as they may be shown, and the values of a table, list or tuple."""
    pairs: Iterable[tuple[Any, Any]]
    if isinstance(value, Table):
        pairs = value.pairs
    else:
        pairs = enumerate(value)
    for key, part in pairs:
        yield _shown(key), part


@dataclass(frozen=True)
class Placed:
    """A tensor and where it lies.

    storage: as the pickle names it.   offset, strides: in numbers of the type.
    """

    fact: TensorFact
    storage: Any
    offset: int
    strides: tuple[int, ...]


StorageOf = Callable[[Any], tuple[str, int]]
"""(type of number, size in bytes) of a storage that a pickle names.   Errors: FormatError."""


def placed_tensor(made: Made, name: str, storage_of: StorageOf) -> Placed | None:
    """A tensor or parameter, if `made` is one;
    FormatError if it does not lie inside its storage.
    """
    maker = _full_name(made.maker)
    if maker in _PARAMETERS and _is_row(made.args, 1) and isinstance(made.args[0], Made):
        # A parameter is made of a tensor.
        made = made.args[0]
        maker = _full_name(made.maker)
    if maker not in _TENSORS:
        return None
    if not _is_row(made.args, 4):
        raise FormatError(
            f"describes the tensor `{printable(name)}` in a way that PyTorch does not"
        )
    storage, offset, shape, strides, *rest = made.args
    dtype, num_bytes = storage_of(storage)
    # Only version 3 states the type itself: it is for types that have no storage class of their
    # own.
    if maker.endswith("_v3") and len(rest) > 2:
        dtype = _dtype(rest[2])
    fact = tensor_fact(name, shape, dtype)
    reach = _reach(fact, offset, strides)
    # In bits: some types have less than a byte for a number.
    if reach * ITEM_BITS[dtype] > num_bytes * 8:
        raise FormatError(f"is damaged: the tensor `{name}` reaches beyond its storage")
    return Placed(fact, storage, offset, strides)


def _storage(storage: Any, sizes: Mapping[str, int]) -> tuple[str, int]:
    """Type of number and size in bytes of a storage.

    FormatError if its record is missing or has another size.
    """
    dtype, record, num_bytes = kept_storage(storage)
    if sizes.get(record) != num_bytes:
        held = "is missing"
        if record in sizes:
            held = f"has {sizes[record]}"
        raise FormatError(
            f"is damaged: the record `data/{printable(record)}` should have "
            f"{num_bytes} bytes and {held}"
        )
    return dtype, num_bytes


def kept_storage(storage: Any) -> tuple[str, str, int]:
    """(type of number, name, size in bytes) of a storage that stands for itself in a pickle;
    FormatError for what PyTorch does not write.
    """
    if not isinstance(storage, Kept) or not _is_row(storage.key, 5):
        raise FormatError("names a storage in a way that PyTorch does not")
    # PyTorch writes ("storage", class, record, device, number of elements).
    _, storage_class, record, _, num_elements, *_ = storage.key
    are_known = isinstance(storage_class, Name) and isinstance(record, str)
    if not are_known or not is_size(num_elements):
        raise FormatError("names a storage in a way that PyTorch does not")
    dtype = STORAGES.get(storage_class.full.rpartition(".")[2], "")
    if not dtype or not storage_class.full.startswith("torch."):
        raise FormatError(f"stores numbers of an unknown type, `{printable(storage_class.full)}`")
    return dtype, record, num_elements * ITEM_BITS[dtype] // 8


def _shown(key: object) -> str:
    """A key for the name of a tensor.

    Texts and numbers are shown; anything else may be too large to show.
    """
    if isinstance(key, str) or is_size(key):
        return printable(str(key))
    return "?"


def _full_name(value: object) -> str:
    """The name of a function or class; empty for anything else."""
    if isinstance(value, Name):
        return value.full
    return ""


def _dtype(name: Any) -> str:
    dtype = _full_name(name).removeprefix("torch.")
    if dtype not in ITEM_BITS:
        raise FormatError(f"stores numbers of an unknown type, `{printable(dtype)}`")
    return dtype


def _reach(fact: TensorFact, offset: Any, strides: Any) -> int:
    """How many numbers of its storage, counted from its start, a tensor needs."""
    is_row_of_strides = isinstance(strides, tuple) and len(strides) == len(fact.shape)
    if not is_row_of_strides or not all(map(is_size, strides)) or not is_size(offset):
        raise FormatError(f"says something odd about where the tensor `{fact.name}` lies")
    if 0 in fact.shape:
        return 0
    last: int = offset
    for size, stride in zip(fact.shape, strides, strict=True):
        last += (size - 1) * stride
    return last + 1


def _is_row(value: Any, num_items: int) -> bool:
    return isinstance(value, tuple) and len(value) >= num_items
