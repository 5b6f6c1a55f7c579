"""What is wrong with a recipe, in words: pydantic's errors as sentences
with the nearest valid key.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from vdiff.config import Registry, Section
from vdiff.recipe.strict_yaml import Keys


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong with the value at `keys`, which are () for the whole recipe."""

    keys: Keys
    words: str

    def __str__(self) -> str:
        if not self.keys:
            return self.words
        return f"`{'.'.join(map(str, self.keys))}`: {self.words}"


def explain(
    err: ValidationError, section: type[Section], data: Mapping[str | int, Any]
) -> list[Mistake]:
    """Every mistake of `data`, which is no `section`, once;
    the branches of a union make one sentence.
    """
    by_place: dict[Keys, list[str]] = {}
    for details in err.errors(include_url=False):
        keys = _real_keys(details, data)
        words = _words(details, keys, section, data)
        sentences = by_place.setdefault(keys, [])
        if words not in sentences:
            sentences.append(words)
    # a list with a wrong item is also no number, where both are allowed: the item is the mistake
    inner = [
        keys
        for keys in by_place
        if not any(keys != other and keys == other[: len(keys)] for other in by_place)
    ]
    return [Mistake(keys, _joined(by_place[keys], _at(data, keys))) for keys in inner]


_SHOULD_BE = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "none_required": "empty",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "string_pattern_mismatch": "text that matches `{pattern}`",
}
_SHOULD = "should be "


def _words(
    details: ErrorDetails, keys: Keys, section: type[Section], data: Mapping[str | int, Any]
) -> str:
    kind = details["type"]
    context = details.get("ctx", {})
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return _unknown_key(str(keys[-1]), _section_at(section, data, keys[:-1]))
    if kind in _SHOULD_BE:
        limits = {name: _limit(value) for name, value in context.items()}
        return _SHOULD + re.sub(r"'([^']*)'", r"`\1`", _SHOULD_BE[kind].format(**limits))
    # of a validator of ours, pydantic's message would begin with `Value error, `
    if kind == "value_error":
        return str(context["error"])
    words = details["msg"]
    if kind == "kind":
        return words
    return words[:1].lower() + words[1:]


def _limit(value: Any) -> Any:
    # pydantic gives the limits of a float as floats: `at least 1.0`
    if isinstance(value, float):
        return f"{value:g}"
    return value


def _joined(sentences: Sequence[str], value: Any) -> str:
    wanted = [
        sentence.removeprefix(_SHOULD) for sentence in sentences if sentence.startswith(_SHOULD)
    ]
    others = [sentence for sentence in sentences if not sentence.startswith(_SHOULD)]
    if wanted:
        others.append(
            f"{_SHOULD}{' or '.join(wanted)}, is {_shown(value)}{_near_choice(value, wanted)}"
        )
    return "; ".join(others)


def _near_choice(value: Any, wanted: Sequence[str]) -> str:
    choices = re.findall(r"`([^`]*)`", " ".join(wanted))
    if not isinstance(value, str):
        return ""
    near = difflib.get_close_matches(value, choices, n=1)
    if not near:
        return ""
    return f"; did you mean `{near[0]}`?"


def _shown(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, str):
        # a text as long as a page would hide the sentence it stands in
        if len(value) > 40:
            value = f"{value[:37]}..."
        return f"the text `{value}`"
    if isinstance(value, bool):
        # as YAML writes it
        return str(value).lower()
    return str(value)


def _unknown_key(key: str, section: type[BaseModel] | None) -> str:
    if section is None:
        return "is unknown"
    known = list(section.model_fields)
    near = difflib.get_close_matches(key, known, n=1)
    if near:
        return f"is unknown; did you mean `{near[0]}`?"
    if not known:
        return "is unknown"
    return f"is unknown (there are: {', '.join(known)})"


def _real_keys(details: ErrorDetails, data: Mapping[str | int, Any]) -> Keys:
    """The location without what pydantic adds for the branches of a union."""
    *inner, last = details["loc"] or (None,)
    keys: list[str | int] = []
    value: Any = data
    for key in inner:
        if _has(value, key):
            keys.append(key)
            value = value[key]
    if last is not None and (details["type"] == "missing" or _has(value, last)):
        keys.append(last)
    return tuple(keys)


def _has(value: Any, key: Any) -> bool:
    if isinstance(value, Mapping):
        return key in value
    return isinstance(value, list) and key in range(len(value))


def _at(data: Any, keys: Keys) -> Any:
    for key in keys:
        if not _has(data, key):
            return None
        data = data[key]
    return data


def _section_at(
    annotation: Any, value: Any, keys: Keys, registry: Registry[Any] | None = None
) -> type[BaseModel] | None:
    """The section that describes the mapping at `keys` of `value`,
    which is declared as `annotation`.
    """
    if get_origin(annotation) is Annotated:
        annotation, *marks = get_args(annotation)
        registry = next((mark for mark in marks if isinstance(mark, Registry)), registry)
    if registry:
        kind = value
        if isinstance(value, Mapping):
            kind = value.get("kind", registry.default)
        # an unknown kind is a mistake of its own, and has no keys
        annotation = None
        if kind in registry:
            annotation = registry.section(kind)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _section_in(annotation, value, keys)
    inside = get_args(annotation)
    if get_origin(annotation) in (Union, UnionType):
        candidates = (_section_at(branch, value, keys) for branch in inside)
        return next((section for section in candidates if section), None)
    if not inside or not keys:
        return None
    # `dict[int, StageOverride]` holds sections by number, `tuple[StageSection, ...]` in a row
    item = inside[0]
    if isinstance(value, Mapping):
        item = inside[-1]
    return _section_at(item, _at(value, keys[:1]), keys[1:])


def _section_in(section: type[BaseModel], value: Any, keys: Keys) -> type[BaseModel] | None:
    if not keys:
        return section
    field = section.model_fields.get(str(keys[0]))
    if field is None:
        return None
    registry = next((mark for mark in field.metadata if isinstance(mark, Registry)), None)
    return _section_at(field.annotation, _at(value, keys[:1]), keys[1:], registry)
