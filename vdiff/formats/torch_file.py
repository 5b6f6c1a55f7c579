"""PyTorch's .pt, .pth, .ckpt and .bin files, described from their pickles and zip records without unpickling them."""

import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
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
"""In bytes: of a pickle, and of a zip file's list of records. That of a network of 1,000 tensors takes 0.2 MiB."""

DEEPEST = 32
"""Tables in tables; optimizer states in a checkpoint are 4 deep."""

MOST_TENSORS = 200_000

LEGACY_MARK = 0x1950A86A20F9469CFC6C
"""The number that begins the files of PyTorch before 1.6."""

STORAGES = {
    "BoolStorage": "bool", "ByteStorage": "uint8", "CharStorage": "int8", "ShortStorage": "int16",
    "IntStorage": "int32", "LongStorage": "int64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32", "DoubleStorage": "float64", "UntypedStorage": "uint8",
    "ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128",
}  # fmt: skip
"""torch's storage classes -> the type of number in them."""

_TENSORS = {f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3")}
_PARAMETERS = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
_HARMLESS = {
    *_TENSORS,
    *_PARAMETERS,
    *(
        f"torch.{name}"
        for name in [*STORAGES, *ITEM_BITS, "Size", "device", "storage.UntypedStorage"]
    ),
    *("collections.OrderedDict", "torch.serialization._get_layout"),
}


@dataclass(frozen=True)
class TorchFile:
    """What a zip file of PyTorch holds. `names`: what loading it would import or call beyond tensors and tables."""

    root: Any
    tensors: tuple[TensorFact, ...]
    names: tuple[str, ...]
    has_code: bool


def read_zip(path: Path) -> TorchFile:
    """The tensors and names in a file of PyTorch 1.6 or later; FormatError if it is not one or is damaged."""
    try:
        with _Sips(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
            records = _records(archive, path.stat().st_size)
            folder = _folder(records)
            followed = follow(io.BytesIO(_content(archive, records[f"{folder}/data.pkl"])))
    except (
        zipfile.BadZipFile,
        ValueError,
        EOFError,
        RuntimeError,
        NotImplementedError,
        OverflowError,
    ) as err:
        raise FormatError(f"is a damaged zip file: {printable(str(err))}") from err
    sizes = {name.removeprefix(f"{folder}/data/"): info.file_size for name, info in records.items()}
    tensors = tuple(islice(_walk(followed.value, "", sizes, set()), MOST_TENSORS + 1))
    if len(tensors) > MOST_TENSORS:
        raise FormatError(f"names more than {MOST_TENSORS} tensors")
    has_code = any(name.startswith(f"{folder}/code/") for name in records)
    return TorchFile(followed.value, tensors, _suspects(followed), has_code)


def legacy_names(path: Path) -> tuple[str, ...]:
    """What loading a bare pickle, or PyTorch's older stream of pickles, would call; FormatError if it is none."""
    with path.open("rb") as raw:
        file = io.BytesIO(raw.read(LARGEST_READ))
    first = follow(file)
    # A stream holds: the mark, a version, facts about the machine, then the object.
    is_stream = type(first.value) is int and first.value == LEGACY_MARK
    rest = [follow(file) for _ in range(3)] if is_stream else []
    return tuple(dict.fromkeys(name for followed in (first, *rest) for name in _suspects(followed)))


class _Sips(io.BufferedReader):
    """A file that refuses to be read in absurd portions: a zip file's own claims decide how much zipfile asks for."""

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = LARGEST_READ if size is None or size < 0 else size
        if wanted > LARGEST_READ:
            raise FormatError(f"asks for {wanted} bytes at once")
        return super().read(wanted)


def _records(archive: zipfile.ZipFile, num_bytes: int) -> dict[str, zipfile.ZipInfo]:
    infos = archive.infolist()
    records = {info.filename: info for info in infos}
    if len(records) < len(infos):
        raise FormatError("is a zip file that holds one name twice")
    if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in infos):
        raise FormatError("is a zip file with compressed or encrypted records; PyTorch writes none")
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
            f"holds a pickle of {info.file_size} bytes; it should hold tensors as records of their own"
        )
    with archive.open(info) as member:
        return b"".join(iter(partial(member.read, 2**20), b""))


def _suspects(followed: Followed) -> tuple[str, ...]:
    return tuple(printable(name) for name in followed.names if name not in _HARMLESS)


def _walk(
    value: Any, name: str, sizes: Mapping[str, int], seen: set[int], depth: int = 0
) -> Iterator[TensorFact]:
    """The tensors in tables, lists and tuples, named `a.b.0`; a container that appears twice is entered once."""
    if depth > DEEPEST:
        raise FormatError(f"nests its contents more than {DEEPEST} deep")
    if isinstance(value, Made):
        yield from _tensor(value, name, sizes)
    if not isinstance(value, Table | list | tuple) or id(value) in seen:
        return
    seen.add(id(value))
    for key, part in _parts(value):
        if isinstance(part, Made | Table | list | tuple):
            yield from _walk(part, f"{name}.{key}" if name else key, sizes, seen, depth + 1)


def _parts(value: Table | Sequence[Any]) -> Iterator[tuple[str, Any]]:
    pairs = value.pairs if isinstance(value, Table) else enumerate(value)
    for key, part in pairs:
        yield printable(str(key)) if isinstance(key, str) or is_size(key) else "?", part


def _tensor(made: Made, name: str, sizes: Mapping[str, int]) -> Iterator[TensorFact]:
    """The fact of a tensor or parameter, if `made` is one; FormatError if it does not lie inside its storage."""
    maker = made.maker.full if isinstance(made.maker, Name) else ""
    if maker in _PARAMETERS:
        made = made.args[0] if _is_row(made.args, 1) and isinstance(made.args[0], Made) else made
        maker = made.maker.full if isinstance(made.maker, Name) else ""
    if maker not in _TENSORS:
        return
    if not _is_row(made.args, 4):
        raise FormatError(
            f"describes the tensor `{printable(name)}` in a way that PyTorch does not"
        )
    storage, offset, shape, strides, *rest = made.args
    stored_dtype, num_bytes = _storage(storage, sizes)
    dtype = _dtype(rest[2]) if maker.endswith("_v3") and len(rest) > 2 else stored_dtype
    fact = tensor_fact(name, shape, dtype)
    reach = _reach(fact, offset, strides)
    if reach * ITEM_BITS[dtype] > num_bytes * 8:
        raise FormatError(f"is damaged: the tensor `{name}` reaches beyond its storage")
    yield fact


def _storage(storage: Any, sizes: Mapping[str, int]) -> tuple[str, int]:
    """Type of number and size in bytes of a storage, compared with its record."""
    key: Any = storage.key if isinstance(storage, Kept) else None
    if (
        not _is_row(key, 5)
        or not isinstance(key[1], Name)
        or not isinstance(key[2], str)
        or not is_size(key[4])
    ):
        raise FormatError("names a storage in a way that PyTorch does not")
    dtype = STORAGES.get(key[1].full.rpartition(".")[2], "")
    if not dtype or not key[1].full.startswith("torch."):
        raise FormatError(f"stores numbers of an unknown type, `{printable(key[1].full)}`")
    num_bytes = key[4] * ITEM_BITS[dtype] // 8
    if sizes.get(key[2]) != num_bytes:
        held = f"has {sizes[key[2]]}" if key[2] in sizes else "is missing"
        raise FormatError(
            f"is damaged: the record `data/{printable(key[2])}` should have {num_bytes} bytes and {held}"
        )
    return dtype, num_bytes


def _dtype(name: Any) -> str:
    dtype = name.full.removeprefix("torch.") if isinstance(name, Name) else ""
    if dtype not in ITEM_BITS:
        raise FormatError(f"stores numbers of an unknown type, `{printable(dtype)}`")
    return dtype


def _reach(fact: TensorFact, offset: Any, strides: Any) -> int:
    """How many numbers of its storage a tensor needs, from the storage's start."""
    are_strides = (
        isinstance(strides, tuple)
        and len(strides) == len(fact.shape)
        and all(map(is_size, strides))
    )
    if not are_strides or not is_size(offset):
        raise FormatError(f"says something odd about where the tensor `{fact.name}` lies")
    if 0 in fact.shape:
        return 0
    last: int = offset + sum(
        (size - 1) * stride for size, stride in zip(fact.shape, strides, strict=True)
    )
    return last + 1


def _is_row(value: Any, num_items: int) -> bool:
    return isinstance(value, tuple) and len(value) >= num_items
