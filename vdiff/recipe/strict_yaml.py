"""YAML without surprises: values by the rules of YAML 1.2, each with its place;
nothing that could run or explode.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml
from yaml.error import Mark
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from vdiff.errors import UsageError

# A recipe may come inside a stranger's model folder: these two bound the work it can cause.
MAX_BYTES = 64 * 1024
MAX_DEPTH = 20

Keys = tuple[str | int, ...]
"""The way to a value: the keys and list positions that lead to it; () is the whole text."""


class Values(NamedTuple):
    """What a YAML text says, and where: keys -> `recipe.yaml:3:5`, in the order of the text."""

    data: Any
    places: dict[Keys, str]


def parse(text: str, name: str) -> Values:
    """The values of the YAML `text`; None for an empty one. `name` is what mistakes are reported
    under.

    Numbers, true, false and null are those of YAML 1.2, with `_` between digits. Tags, anchors,
    aliases, duplicate keys, a second document, control characters, over 64 KiB and over 20 levels
    raise UsageError.
    """
    places: dict[Keys, str] = {}
    # editors on Windows put the mark of UTF-8 in front
    node = _compose(text.removeprefix("\ufeff"), name)
    data = None
    if node is not None:
        data = _value(node, (), places, name)
    return Values(data, places)


def read_line(text: str, place: str) -> Values:
    """The values of one line of YAML: one value, or a list or mapping in brackets;
    all of them stand at `place`.
    """
    node = _compose(text, place)
    if isinstance(node, MappingNode | SequenceNode) and not node.flow_style:
        raise UsageError(
            f"`{text}` is neither one value nor a list or mapping in brackets",
            "quote the text",
            place,
        )
    places: dict[Keys, str] = {}
    data = None
    if node is not None:
        data = _value(node, (), places, place)
    return Values(data, places)


def check_size(num_bytes: int, name: str) -> None:
    """UsageError for a text that is too long to be a recipe."""
    if num_bytes > MAX_BYTES:
        raise UsageError("a recipe should be at most 64 KiB long", "keep data out of recipes", name)


def dump(values: Mapping[str, Any]) -> str:
    """Plain values as YAML that `parse` gives back, in their order."""
    text: str = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=100)
    return text


_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
# YAML 1.1, which PyYAML speaks, takes `no` for false and `1:30` for 90; neither is meant here
_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | {
    spelling: value
    for value in (True, False)
    for spelling in (str(value), str(value).lower(), str(value).upper())
}
_DECIMAL = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(_[0-9]+)*(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without tags, anchors and aliases, and no deeper than MAX_DEPTH."""

    depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        problem = self._forbidden(event)
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)  # type: ignore[arg-type]
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def _forbidden(self, event: yaml.Event) -> str | None:
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            return "anchors and aliases are not allowed"
        if getattr(event, "tag", None):
            return "tags are not allowed"
        # PyYAML calls itself for every level: a file of 10,000 brackets would end it
        if self.depth >= MAX_DEPTH:
            return f"over {MAX_DEPTH} levels of nesting"
        return None


def _mistake(problem: str, place: str) -> UsageError:
    return UsageError(
        problem, "change this line; `vdiff recipes show digits` prints a recipe that works", place
    )


def _check_characters(text: str, name: str) -> None:
    check_size(len(text.encode("utf-8", errors="surrogatepass")), name)
    control = _CONTROL.search(text)
    if control:
        line = text.count("\n", 0, control.start()) + 1
        column = control.start() - text.rfind("\n", 0, control.start())
        raise _mistake(
            f"there is a control character (U+{ord(control[0]):04X})", f"{name}:{line}:{column}"
        )


def _compose(text: str, name: str) -> Node | None:
    _check_characters(text, name)
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as err:
        raise _mistake(_sentence(err), _at(name, err.problem_mark or err.context_mark)) from err
    except yaml.YAMLError as err:
        raise _mistake(f"this is not YAML: {err}", name) from err


def _sentence(err: yaml.MarkedYAMLError) -> str:
    words = " ".join(part for part in (err.context, err.problem) if part)
    if "single document" in words:
        return "a recipe should be one document"
    return words


def _at(name: str, mark: Mark | None) -> str:
    if mark is None or name.startswith("--set"):
        return name
    return f"{name}:{mark.line + 1}:{mark.column + 1}"


def _value(node: Node, keys: Keys, places: dict[Keys, str], name: str) -> Any:
    """The value of `node`; notes the place of everything inside it."""
    if isinstance(node, ScalarNode):
        return _scalar(node, name)
    if isinstance(node, MappingNode):
        pairs = _pairs(node, name)
        return {
            key: _inner(inner, (*keys, key), mark, places, name)
            for key, (mark, inner) in pairs.items()
        }
    return [
        _inner(inner, (*keys, i), inner.start_mark, places, name)
        for i, inner in enumerate(node.value)
    ]


def _inner(node: Node, keys: Keys, mark: Mark, places: dict[Keys, str], name: str) -> Any:
    places[keys] = _at(name, mark)
    return _value(node, keys, places, name)


def _pairs(node: MappingNode, name: str) -> Mapping[str | int, tuple[Mark, Node]]:
    pairs: dict[str | int, tuple[Mark, Node]] = {}
    for key_node, inner in node.value:
        place = _at(name, key_node.start_mark)
        key = None
        if isinstance(key_node, ScalarNode):
            key = _scalar(key_node, name)
        # to Python, `true` is the number 1: it would meet the key `1`
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise _mistake("a key should be text or a whole number", place)
        if key in pairs:
            raise _mistake(f"`{key}` is there twice, first in line {pairs[key][0].line + 1}", place)
        pairs[key] = (key_node.start_mark, inner)
    return pairs


def _scalar(node: ScalarNode, name: str) -> Any:
    text = _paired(node.value, _at(name, node.start_mark))
    if node.style is not None:
        return text
    if text in _WORDS:
        return _WORDS[text]
    try:
        value = _number(text)
    except (ValueError, OverflowError) as err:
        raise _mistake(f"`{text[:40]}` is not a finite number", _at(name, node.start_mark)) from err
    if value is None:
        return text
    return value


def _paired(text: str, place: str) -> str:
    """Text in which the halves of a character that JSON writes as `\\ud83d\\ude00` are one;
    no file can hold a half.
    """
    try:
        return text.encode("utf-16-le", errors="surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError as err:
        raise _mistake("there is half of a character (`\\ud800` to `\\udfff`)", place) from err


def _number(text: str) -> int | float | None:
    """A whole or real number, None for other text;
    ValueError for infinity, not-a-number and absurd lengths.
    """
    if _DECIMAL.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(text)
    if not _FLOAT.fullmatch(text):
        return None
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value
