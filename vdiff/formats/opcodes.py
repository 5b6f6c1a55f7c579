"""Pickles are programs.

Here one is followed opcode by opcode, without importing or calling what it names.
"""

import io
import pickletools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from vdiff.disk.tensor_facts import FormatError

MOST_OPCODES = 2_000_000
"""A tensor takes about 30; following this many takes a few seconds.
It also bounds what calls may copy.
"""

LONGEST_NAME = 1000
"""Of a module and of what is imported from it, in characters together."""


@dataclass(frozen=True, slots=True)
class Name:
    """A function or class that the pickle names.

    Loading the pickle would import its module and may call it.
    """

    full: str


@dataclass(eq=False, slots=True)
class Made:
    """Stands for the value that calling `maker` with `args` would give. Nothing was called.

    state: what its attributes would become after the call; None if nothing is said of them.
    """

    maker: Any
    args: Any
    state: Any = None


@dataclass(frozen=True, eq=False, slots=True)
class Kept:
    """A persistent id: stands for a value outside the pickle, under this key."""

    key: Any


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes that were passed over: where they lie in the file."""

    start: int
    size: int


@dataclass(frozen=True, eq=False, slots=True)
class Table:
    """A dict, as the pairs that were put in: keys need not be hashable, later ones win."""

    pairs: list[tuple[Any, Any]] = field(default_factory=list)

    def texts(self) -> dict[str, Any]:
        """The values under keys that are text."""
        return {key: value for key, value in self.pairs if isinstance(key, str)}


@dataclass(frozen=True)
class Followed:
    """The value that a pickle describes, and all functions and classes that it names, in order."""

    value: Any
    names: tuple[str, ...]


def follow(file: IO[bytes], passes_over: bool = False) -> Followed:
    """Follow one pickle from its first opcode to its STOP;
    FormatError if it is damaged or endless.

    passes_over: rows of bytes are not read, and a `Stretch` stands for each; the file must be
    one that can seek.
    """
    machine = _Machine()
    try:
        for num_opcodes, (opcode, arg) in enumerate(_instructions(file, passes_over)):
            # A short file can hold very many opcodes, each of which takes time and memory.
            if num_opcodes == MOST_OPCODES:
                raise FormatError(f"holds a pickle of more than {MOST_OPCODES} instructions")
            machine.step(opcode, arg)
        return Followed(machine.pop(), tuple(machine.names))
    except (ValueError, IndexError, KeyError, AttributeError, TypeError, OverflowError) as err:
        # The machine does to its stack what the opcodes say: where they make no sense, Python says
        # so.
        raise FormatError("holds a pickle that is damaged or cut short") from err


def _instructions(file: IO[bytes], passes_over: bool) -> Iterator[tuple[str, Any]]:
    """Opcodes up to STOP, by name, with their arguments.   ValueError where there are none."""
    name = ""
    while name != "STOP":
        opcode = _OPCODES.get(file.read(1))
        if opcode is None:
            raise ValueError("no instruction, or none any more")
        name = opcode.name
        arg = None
        if passes_over and name in _SIZES:
            arg = _stretch(file, _SIZES[name])
        elif opcode.arg is not None:
            arg = opcode.arg.reader(file)
        yield name, arg


def _stretch(file: IO[bytes], width: int) -> Stretch:
    """Pass over bytes that stand behind their number.   width: of that number, in bytes."""
    size = int.from_bytes(file.read(width), "little")
    stretch = Stretch(file.tell(), size)
    if size:
        # a file may be sought beyond its end
        file.seek(size - 1, io.SEEK_CUR)
        if not file.read(1):
            raise ValueError("fewer bytes than it says")
    return stretch


class _Machine:
    """The stack and the memo of an unpickler whose calls have no effect."""

    def __init__(self) -> None:
        # A dict as a set that keeps its order.
        self.names: dict[str, None] = {}
        self._stack: list[Any] = []
        # The stacks under each open MARK.
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._num_copied = 0

    def step(self, opcode: str, arg: Any) -> None:
        if opcode in _ARGUMENTS:
            self._stack.append(arg)
        elif opcode in _CONSTANTS:
            self._stack.append(_CONSTANTS[opcode]())
        elif opcode in _GETS:
            self._stack.append(self._memo[arg])
        elif opcode in _PUTS:
            self._memoize(arg)
        elif opcode in _ACTIONS:
            _ACTIONS[opcode](self, arg)
        elif opcode not in _SILENT:
            raise FormatError(
                f"holds a pickle with the instruction {opcode}, which model files do not use"
            )

    def pop(self) -> Any:
        return self._stack.pop()

    def mark(self, _: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def pop_to_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._below.pop()
        return items

    def memoize(self, _: Any) -> None:
        self._memoize(len(self._memo))

    def duplicate(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def drop(self, _: Any) -> None:
        # POP right after a MARK removes the mark.
        if self._stack:
            self._stack.pop()
        else:
            self.pop_to_mark()

    def drop_to_mark(self, _: Any) -> None:
        self.pop_to_mark()

    def gather_list(self, _: Any) -> None:
        items = self.pop_to_mark()
        self._stack.append(items)

    def gather_tuple(self, _: Any) -> None:
        items = self.pop_to_mark()
        self._stack.append(tuple(items))

    def gather_table(self, _: Any) -> None:
        items = self.pop_to_mark()
        self._stack.append(Table(_pairs(items)))

    def tuple_of(self, size: int) -> None:
        items = [self.pop() for _ in range(size)]
        self._stack.append(tuple(reversed(items)))

    def append(self, _: Any) -> None:
        self._extend([self.pop()])

    def append_all(self, _: Any) -> None:
        self._extend(self.pop_to_mark())

    def set_item(self, _: Any) -> None:
        value = self.pop()
        key = self.pop()
        self._set([key, value])

    def set_items(self, _: Any) -> None:
        self._set(self.pop_to_mark())

    def name_in_argument(self, arg: str) -> None:
        module, _, name = arg.partition(" ")
        self._stack.append(self._name(module, name))

    def name_on_stack(self, _: Any) -> None:
        name = self.pop()
        module = self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("names are texts")
        self._stack.append(self._name(module, name))

    def call(self, _: Any) -> None:
        args = self.pop()
        maker = self.pop()
        # A state dict is an OrderedDict: its entries are needed. No other call is understood.
        if maker == Name("collections.OrderedDict"):
            self._stack.append(self._ordered(*args))
        else:
            self._stack.append(Made(maker, args))

    def call_with_keywords(self, _: Any) -> None:
        keywords = self.pop()
        args = self.pop()
        maker = self.pop()
        self._stack.append(Made(maker, (args, keywords)))

    def call_named(self, arg: str) -> None:
        args = tuple(self.pop_to_mark())
        self.name_in_argument(arg)
        self._stack.append(Made(self.pop(), args))

    def call_first(self, _: Any) -> None:
        maker, *args = self.pop_to_mark()
        self._stack.append(Made(maker, tuple(args)))

    def keep(self, _: Any) -> None:
        self._stack.append(Kept(self.pop()))

    def keep_named(self, arg: str) -> None:
        self._stack.append(Kept(arg))

    def keep_state(self, _: Any) -> None:
        """BUILD: the attributes of an object. Those of a dict are of no use."""
        state = self.pop()
        target = self._stack[-1]
        if isinstance(target, Made):
            target.state = state

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, _Unknown):
            raise ValueError("not a list")

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Table):
            target.pairs.extend(_pairs(items))
        elif not isinstance(target, _Unknown):
            raise ValueError("not a dict")

    def _name(self, module: str, name: str) -> Name:
        if len(module) + len(name) > LONGEST_NAME:
            raise ValueError("nothing has such a name")
        full = f"{module}.{name}"
        # Noted at once, whatever becomes of the value: a pickle may drop it and still have had it
        # imported.
        self.names[full] = None
        return Name(full)

    def _memoize(self, index: int) -> None:
        # Small numbers only: in a dict, well-chosen large ones all fall into one place and make it
        # endlessly slow.
        if not 0 <= index < MOST_OPCODES:
            raise ValueError("picklers count from 0")
        self._memo[index] = self._stack[-1]

    def _ordered(self, pairs: Sequence[Any] = ()) -> Table:
        """What calling OrderedDict gives, empty or of a list of pairs."""
        # One long list in the memo could be copied by each of two million calls.
        self._num_copied += len(pairs)
        if self._num_copied > MOST_OPCODES:
            raise FormatError("holds a pickle that copies one list over and over")
        return Table([(key, value) for key, value in pairs])


def _pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(items[::2], items[1::2], strict=True))


_Unknown = Made | Name | Kept

_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
# Opcodes of rows of bytes -> the width of the number of bytes before them.
_SIZES = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8, "BYTEARRAY8": 8}

_SILENT = {"PROTO", "FRAME", "STOP"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
# Opcodes whose argument is the value: numbers, texts, bytes.
_ARGUMENTS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": Table,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_TUPLE": tuple,
}
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "MEMOIZE": _Machine.memoize,
    "DUP": _Machine.duplicate,
    "POP": _Machine.drop,
    "POP_MARK": _Machine.drop_to_mark,
    "LIST": _Machine.gather_list,
    "FROZENSET": _Machine.gather_list,
    "TUPLE": _Machine.gather_tuple,
    "DICT": _Machine.gather_table,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.append_all,
    "ADDITEMS": _Machine.append_all,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.name_in_argument,
    "STACK_GLOBAL": _Machine.name_on_stack,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "NEWOBJ_EX": _Machine.call_with_keywords,
    "INST": _Machine.call_named,
    "OBJ": _Machine.call_first,
    "BUILD": _Machine.keep_state,
    "PERSID": _Machine.keep_named,
    "BINPERSID": _Machine.keep,
}
