"""What can be said about a tensor that was not read, and the ways in which
its file may be refused.
"""

import math
from dataclasses import dataclass
from typing import TypeGuard

from vdiff.system.printable import printable as whole

LONGEST_NAME = 500
"""In characters. The longest names of real networks have about 150."""

MOST_DIMENSIONS = 64
"""torch's own limit."""

ITEM_BITS = {
    **dict.fromkeys(["bool", "uint8", "int8", "float8_e5m2", "float8_e4m3fn"], 8),
    **dict.fromkeys(["float8_e5m2fnuz", "float8_e4m3fnuz", "float8_e8m0fnu"], 8),
    **dict.fromkeys(["uint16", "int16", "float16", "bfloat16"], 16),
    **dict.fromkeys(["uint32", "int32", "float32"], 32),
    **dict.fromkeys(["uint64", "int64", "float64", "complex64"], 64),
    "complex128": 128,
    **dict.fromkeys(["float6_e2m3", "float6_e3m2"], 6),
    "float4_e2m1": 4,
}
"""torch's names of number types -> bits per number."""

BUFFERS = ("inv_freq",)
"""Last parts of the names of tensors that are computed, not learned."""


class FormatError(Exception):
    """A file that does not keep to its format.

    `reason` goes on after the file's name; `fix` says what to do.
    """

    def __init__(
        self,
        reason: str,
        fix: str = "get the file again from where it came from, or name another one",
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.fix = fix


@dataclass(frozen=True)
class TensorFact:
    """The name, shape and number type (torch's word for it) of a tensor that was not read."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def is_learned(self) -> bool:
        """Whether it is a parameter, guessed from type and name:
        files do not tell parameters from buffers.
        """
        return "float" in self.dtype and self.name.rpartition(".")[2] not in BUFFERS


def tensor_fact(name: str, shape: object, dtype: str) -> TensorFact:
    """A TensorFact after checking the name and the shape as they stand in the file; FormatError."""
    if len(name) > LONGEST_NAME or not name.isprintable():
        raise FormatError(
            f"holds a tensor with a name that no program gives: `{printable(name, 40)}`"
        )
    if not _is_shape(shape):
        raise FormatError(f"says something that is not a shape about the tensor `{name}`")
    return TensorFact(name, tuple(shape), dtype)


def _is_shape(value: object) -> TypeGuard[list[int] | tuple[int, ...]]:
    if not isinstance(value, list | tuple) or len(value) > MOST_DIMENSIONS:
        return False
    return all(map(is_size, value))


def is_size(value: object) -> TypeGuard[int]:
    """Whether this is an int from 0 to 2**63 - 1; True and False are none."""
    return type(value) is int and 0 <= value < 2**63


def printable(text: str, longest: int = 200) -> str:
    """Text of a stranger, shortened, with what cannot be printed as escapes."""
    # Shortened first: escapes of a text of gigabytes would take even more.
    shown = whole(text[:longest])
    if len(text) > longest:
        shown += "..."
    return shown
