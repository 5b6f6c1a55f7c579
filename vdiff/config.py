"""Sections of a recipe: frozen, strict, documented; and the tables that say which kinds of each part exist."""

import difflib
import importlib
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializationInfo,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError, core_schema

from vdiff.home import expanded

MARK = "vdiff"
"""The key in a field's JSON schema that says `trajectory` or `harmless`."""


class Section(BaseModel):
    """One part of a recipe. Unknown keys are refused; a docstring beneath a field is its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth_for_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """To pydantic, `true` is a way to write 1."""
        takes_truth = cls.model_fields[info.field_name or ""].annotation in (bool, Any)
        if not takes_truth and any(isinstance(each, bool) for each in (value if isinstance(value, list) else [value])):
            raise PydanticCustomError("truth", "should be a number, text or list, not true or false")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _mean_what_people_write(cls, value: Any, info: ValidationInfo) -> Any:
        """`none` for a number that may be left out, whose YAML is `null`; `~` for the home folder in a path."""
        if not isinstance(value, str):
            return value
        annotation = cls.model_fields[info.field_name or ""].annotation
        kinds = {annotation, *get_args(annotation)}
        if value.lower() == "none" and type(None) in kinds and kinds & {int, float}:
            return None
        return expanded(value) if Path in kinds else value


def trajectory(default: Any = ..., **constraints: Any) -> Any:
    """A field whose value changes the weights: a run cannot be resumed with another one."""
    return Field(default, json_schema_extra={MARK: "trajectory"}, **constraints)


def harmless(default: Any = ..., **constraints: Any) -> Any:
    """A field that may change between two starts of one run without changing the weights."""
    return Field(default, json_schema_extra={MARK: "harmless"}, **constraints)


def mark_of(section: type[Section], field: str) -> str | None:
    """`trajectory`, `harmless`, or None for a field that carries no mark."""
    extra = section.model_fields[field].json_schema_extra
    mark = extra.get(MARK) if isinstance(extra, Mapping) else None
    return str(mark) if mark else None


def trajectory_values(section: Section, prefix: str = "") -> dict[str, Any]:
    """All values of a section that change the weights, by dotted name, as JSON holds them."""
    values: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            values |= trajectory_values(value, f"{prefix}{name}.")
        elif mark_of(type(section), name) == "trajectory":
            values[prefix + name] = section.model_dump(mode="json", include={name})[name]
    return values


class Registry:
    """The kinds of one part of a recipe: kind -> "module:SectionClass". Nothing is imported until it is named.

    part: what one of them is, for messages.   group: the entry points by which other packages add kinds; the built-in
    ones win.
    """

    def __init__(self, part: str, kinds: Mapping[str, str], default: str, group: str) -> None:
        self.part, self.group = part, group
        self.default = default
        self._builtin = dict(kinds)

    def __iter__(self) -> Iterator[str]:
        return iter(self._locations())

    def section(self, kind: str) -> type[Section]:
        """The section class of `kind`; KeyError for a kind that does not exist."""
        module, _, name = self._locations()[kind].partition(":")
        found: type[Section] = getattr(importlib.import_module(module), name)
        return found

    def validate(self, value: Any, info: ValidationInfo) -> Section:
        """A mapping with `kind`, a bare kind, or a finished section, as a section of the kind that it names."""
        if isinstance(value, Section):
            return value
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, Mapping):
            raise PydanticCustomError("kind", "should be a mapping or one of: {kinds}", {"kinds": ", ".join(self)})
        kind = value.get("kind", self.default)
        if kind not in self:
            raise PydanticCustomError("kind", "{problem}", {"problem": self.unknown(str(kind))})
        return self.section(kind).model_validate({**value, "kind": kind}, context=info.context)

    def unknown(self, kind: str) -> str:
        """The sentence about a kind that does not exist, with the nearest one that does."""
        near = difflib.get_close_matches(kind, list(self), n=1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        return f"unknown kind `{kind}` of {self.part}{hint} (there are: {', '.join(self)})"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        dump = core_schema.plain_serializer_function_ser_schema(_dump, info_arg=True)
        return core_schema.with_info_plain_validator_function(self.validate, serialization=dump)

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        sections = [self.section(kind).model_json_schema() for kind in self]
        return {"anyOf": [*sections, {"enum": list(self)}]}

    def _locations(self) -> dict[str, str]:
        outside = {entry.name: entry.value for entry in entry_points(group=self.group)}
        return self._builtin | {kind: place for kind, place in outside.items() if kind not in self._builtin}


def _dump(section: Section, info: SerializationInfo) -> dict[str, Any]:
    dumped = section.model_dump(mode=info.mode, exclude_defaults=info.exclude_defaults)
    return {"kind": getattr(section, "kind"), **dumped}  # noqa: B009 - every kind of section declares it
