"""The header of a .safetensors file, checked against the size of the file
before anything is believed.
"""

import math
from pathlib import Path
from typing import Any

from vdiff.disk.strict_json import parse_object
from vdiff.disk.tensor_facts import (
    ITEM_BITS,
    FormatError,
    TensorFact,
    is_size,
    printable,
    tensor_fact,
)

LONGEST_HEADER = 100 * 2**20
"""In bytes; the limit that the format itself sets."""

MOST_METADATA = 50
"""Entries that are repeated among the facts."""

DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", (
        "I32"
    ): (
        "int32"
    ),
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", (
        "F64"
    ): (
        "float64"
    ),
    "C64": "complex64", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn", "F8_E8M0": (
        "float8_e8m0fnu"
    ),
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F6_E2M3": "float6_e2m3",
    "F6_E3M2": "float6_e3m2", "F4": "float4_e2m1",
}  # fmt: skip
"""The format's names of number types -> torch's."""


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins with `head` (9 bytes or more) claims to be one:
    a possible length, then `{`.
    """
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= LONGEST_HEADER


def read_header(path: Path) -> tuple[tuple[TensorFact, ...], dict[str, str]]:
    """The tensors, in the order of their bytes, and the metadata of the file;
    FormatError if anything is odd.
    """
    header, num_data_bytes = _read(path)
    metadata = _metadata(header.pop("__metadata__", {}))
    return _tensors(header, num_data_bytes), {
        printable(key): printable(text) for key, text in metadata
    }


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata as it stands in the file, not shortened and not made safe to show.

    Errors: FormatError, OSError.
    """
    header, _ = _read(path)
    return dict(_metadata(header.get("__metadata__", {})))


def _read(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and how many bytes of numbers follow it."""
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if num_bytes < 10 or length > num_bytes - 8:
            raise FormatError(
                f"is cut short or not a safetensors file: {num_bytes} bytes, a header of {length}"
            )
        if length > LONGEST_HEADER:
            raise FormatError(f"has a header of {length} bytes; the format allows {LONGEST_HEADER}")
        header = parse_object(file.read(length), "a header")
    return header, num_bytes - 8 - length


def _metadata(value: Any) -> list[tuple[str, str]]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise FormatError("has `__metadata__` that is not a table of texts")
    return list(value.items())[:MOST_METADATA]


def _tensors(header: dict[str, Any], num_data_bytes: int) -> tuple[TensorFact, ...]:
    placed = sorted(
        (_entry(name, entry) for name, entry in header.items()), key=lambda entry: entry[:2]
    )
    end = 0
    for begin, next_end, tensor in placed:
        if begin != end:
            raise FormatError(
                f"has a gap or an overlap before the tensor `{tensor.name}`, "
                f"at byte {end} of its data"
            )
        end = next_end
    if end != num_data_bytes:
        raise FormatError(
            f"is cut short or too long: its tensors need {end} bytes and it holds {num_data_bytes}"
        )
    return tuple(tensor for _, _, tensor in placed)


def _entry(name: str, entry: Any) -> tuple[int, int, TensorFact]:
    """First byte, byte after the last, and the facts of one tensor."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"should give dtype, shape and data_offsets of `{printable(name)}`")
    dtype = None
    if isinstance(entry["dtype"], str):
        dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
        raise FormatError(f"stores `{printable(name)}` as an unknown type of number")
    tensor = tensor_fact(name, entry["shape"], dtype)
    offsets = entry["data_offsets"]
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_size, offsets)):
        raise FormatError(f"should give two offsets of `{name}`")
    begin, end = offsets
    if (end - begin) * 8 != math.prod(tensor.shape) * ITEM_BITS[dtype]:
        problem = f"gives {end - begin} bytes to `{name}`, which is {dtype} {list(tensor.shape)}"
        raise FormatError(problem)
    return begin, end, tensor
