"""Sections of a recipe: frozen, strict, documented;
and the tables that say which kinds of each part exist.
"""

import contextlib
import difflib
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, get_args

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

from vdiff.errors import MachineError
from vdiff.field_docs import field_docs, unwrapped
from vdiff.system.guests import UnfitError, check_name, look_at_result, unusable
from vdiff.system.home import expanded
from vdiff.system.packages import entries_of, loaded, maker_of, package_of

EFFECT = "vdiff"
"""The key in a field's JSON schema that says `trajectory`, for what shapes the weights,
or `harmless`.
"""


class Section(BaseModel):
    """One part of a recipe. Unknown keys are refused;
    a docstring beneath a field is its documentation.
    """

    # defer_build: of the sections that are imported, few are ever asked to check anything alone
    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", defer_build=True, validate_default=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth_for_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """To pydantic, `true` is a way to write 1."""
        takes_truth = cls.model_fields[info.field_name or ""].annotation in (bool, Any)
        items = [value]
        if isinstance(value, list):
            items = value
        if not takes_truth and any(isinstance(item, bool) for item in items):
            raise PydanticCustomError(
                "truth", "should be a number, text or list, not true or false"
            )
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _mean_what_people_write(cls, value: Any, info: ValidationInfo) -> Any:
        """`none` for a number that may be left out, whose YAML is `null`;
        `~` for the home folder in a path.
        """
        if not isinstance(value, str):
            return value
        annotation = cls.model_fields[info.field_name or ""].annotation
        kinds = {annotation, *get_args(annotation)}
        # `--set train.ema=none`: where text is expected too, it may be a name
        if value.lower() == "none" and type(None) in kinds and kinds & {int, float}:
            return None
        # no shell has looked at a recipe, so nobody else puts the home folder in
        if Path in kinds:
            return expanded(value)
        return value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        described = handler(schema)
        resolved = handler.resolve_ref_schema(described)
        if "description" in resolved:
            resolved["description"] = unwrapped(resolved["description"])
        properties = resolved["properties"]
        for name, text in field_docs(cls).items():
            if name in properties:
                properties[name].setdefault("description", text)
        return described


def shapes_weights(default: Any = ..., **constraints: Any) -> Any:
    """A field whose value changes the weights: a run cannot be resumed with another one."""
    return Field(default, json_schema_extra={EFFECT: "trajectory"}, **constraints)


def free_to_change(default: Any = ..., **constraints: Any) -> Any:
    """A field that may change between two starts of one run without changing the weights."""
    return Field(default, json_schema_extra={EFFECT: "harmless"}, **constraints)


def effect_of(section: type[Section], field: str) -> str | None:
    """`trajectory`, `harmless`, or None for a field that does not say."""
    extra = section.model_fields[field].json_schema_extra
    if not isinstance(extra, Mapping) or not extra.get(EFFECT):
        return None
    return str(extra[EFFECT])


def values_that_shape_weights(section: Section, prefix: str = "") -> dict[str, Any]:
    """All values of a section that change the weights, by dotted name, as JSON holds them."""
    values: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            # its own fields say what changes the weights; a word on the whole of it says nothing
            values |= values_that_shape_weights(value, f"{prefix}{name}.")
        elif effect_of(type(section), name) == "trajectory":
            values[prefix + name] = section.model_dump(mode="json", include={name})[name]
    return values


class KindSection(Section):
    """A section of which there are several kinds, each with a class of its own, in a table:
    a `Registry`.

    kind: its name in the table; every kind declares it as
    `kind: Literal["name"] = trajectory("name")`.
    needed_fields: what every kind must declare.
    makes: the method that makes what the section is of, and the contract of that as "module:Class";
    None for no look.
    """

    needed_fields: ClassVar[tuple[str, ...]] = ("kind",)
    makes: ClassVar[tuple[str, str] | None] = None

    if TYPE_CHECKING:
        kind: str


Part = TypeVar("Part")


NO_METHODS: Mapping[str, str] = MappingProxyType({})


class Table(Generic[Part]):
    """The kinds of one thing: kind -> "module:Class". Nothing is imported until it is named.

    part: what one of them is, for messages.   group: the entry points by which other packages add
    kinds; the built-in ones win.   contract: "module:Class" of which every class is a subclass,
    with nothing left abstract; several where the thing comes in several sorts, each with a contract
    of its own.   gives: method -> "module:Class" of what it returns, held against a stranger's.
    """

    def __init__(
        self,
        part: str,
        kinds: Mapping[str, str],
        group: str,
        contract: str | tuple[str, ...],
        gives: Mapping[str, str] = NO_METHODS,
    ) -> None:
        if isinstance(contract, str):
            contract = (contract,)
        self.part: str = part
        self.group: str = group
        self._builtin = dict(kinds)
        self._contracts = contract
        self._gives = gives

    def __iter__(self) -> Iterator[str]:
        return iter([*self._builtin, *self.outside()])

    def __contains__(self, kind: object) -> bool:
        # ours first: to look at what is installed takes long
        return isinstance(kind, str) and (kind in self._builtin or kind in list(self))

    def builtin(self) -> list[str]:
        """The kinds that vdiff has itself."""
        return list(self._builtin)

    def outside(self) -> list[str]:
        """The kinds that only other packages bring."""
        # two packages may bring one name; it is told when somebody asks for it
        names = (entry.name for entry in self._entries())
        return list(dict.fromkeys(name for name in names if name not in self._builtin))

    def find(self, kind: str) -> type[Part]:
        """The class of `kind`; KeyError for a kind that does not exist.

        Errors: MachineError for one of another package that cannot be used.
        """
        if kind in self._builtin:
            return self._checked(loaded(self._builtin[kind]))
        entries = [entry for entry in self._entries() if entry.name == kind]
        if not entries:
            raise KeyError(kind)
        if len(entries) > 1:
            # which one wins would depend on the order in which they were installed
            makers = " and ".join(f"`{maker_of(entry)}`" for entry in entries)
            fix = f"uninstall one of them: pip uninstall {package_of(entries[-1])}"
            raise MachineError(
                f"the packages {makers} both bring a {self.part} called `{kind}`", fix
            )
        [entry] = entries
        try:
            return self._complete(self._checked(loaded(entry.value)), entry)
        # whatever a stranger's module does while it is imported, vdiff's other commands go on
        except (Exception, SystemExit) as err:
            what = f"the {self.part} `{kind}`"
            raise unusable(what, entry, f"`{entry.value}`: {_reason(err)}") from err

    def usable(self) -> dict[str, type[Part]]:
        """All kinds that can be used, by name."""
        classes = {}
        for kind in self:
            # `doubts` tells of those that cannot be used; they must not take the others away
            with contextlib.suppress(MachineError):
                classes[kind] = self.find(kind)
        return classes

    def doubts(self) -> list[str]:
        """What is wrong with the kinds that other packages bring, a sentence each."""
        sentences = []
        for entry in self._entries():
            if entry.name in self._builtin:
                sentences.append(
                    f"the package `{maker_of(entry)}` brings a {self.part} called `{entry.name}`, "
                    "which vdiff has; vdiff's own is used"
                )
                continue
            try:
                self.find(entry.name)
            except MachineError as err:
                sentences.append(": ".join(filter(None, (err.problem, err.where))))
        return list(dict.fromkeys(sentences))

    def unknown(self, kind: str) -> str:
        """The sentence about a kind that does not exist, with the nearest one that does."""
        near = difflib.get_close_matches(kind, list(self), n=1)
        hint = ""
        if near:
            hint = f"; did you mean `{near[0]}`?"
        return f"unknown kind `{kind}` of {self.part}{hint} (there are: {', '.join(self)})"

    def _entries(self) -> list[EntryPoint]:
        return entries_of(self.group)

    def _complete(self, part: type[Part], entry: EntryPoint) -> type[Part]:
        """A class of another package, after a look whether it can be used at all;
        it may raise anything.
        """
        for method, contract in self._gives.items():
            look_at_result(part, method, contract, f"the {self.part} `{entry.name}`", entry)
        return part

    def _checked(self, candidate: Any) -> type[Part]:
        """The class that an entry names, if it keeps the contract.   Errors: UnfitError."""
        contracts = tuple(map(loaded, self._contracts))
        if not isinstance(candidate, type) or not issubclass(candidate, contracts):
            wanted = " or ".join(f"`{contract.replace(':', '.')}`" for contract in self._contracts)
            raise UnfitError(f"it is no subclass of {wanted}")
        part: type[Part] = candidate
        # Python itself tells of these only when an object is made, far into a training
        lacking: list[str] = sorted(getattr(part, "__abstractmethods__", ()))
        if lacking:
            raise UnfitError(f"it lacks {', '.join(f'`{name}`' for name in lacking)}")
        return part


Kind = TypeVar("Kind", bound=KindSection)


class Registry(Table[Kind]):
    """The kinds of one part of a recipe: the table's classes are sections.

    default: the kind that is meant where none is named.
    """

    def __init__(
        self,
        part: str,
        kinds: Mapping[str, str],
        default: str,
        group: str,
        contract: str | tuple[str, ...],
    ) -> None:
        super().__init__(part, kinds, group, contract)
        self.default = default

    def section(self, kind: str) -> type[Kind]:
        """The section class of `kind`, see `find`."""
        return self.find(kind)

    def sections(self) -> dict[str, type[Kind]]:
        """All kinds that can be used, by name."""
        return self.usable()

    def validate(self, value: Any, info: ValidationInfo) -> Kind:
        """A mapping with `kind`, a bare kind, or a finished section,
        as a section of the kind that it names.
        """
        # a default in Python is a finished section
        if isinstance(value, Section):
            return value  # type: ignore[return-value]
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, Mapping):
            raise PydanticCustomError(
                "kind", "should be a mapping or one of: {kinds}", {"kinds": ", ".join(self)}
            )
        kind = value.get("kind", self.default)
        if kind not in self:
            raise PydanticCustomError("kind", "{problem}", {"problem": self.unknown(str(kind))})
        return self.section(kind).model_validate({**value, "kind": kind}, context=info.context)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        dump = core_schema.plain_serializer_function_ser_schema(_dump, info_arg=True)
        return core_schema.with_info_plain_validator_function(self.validate, serialization=dump)

    def __get_pydantic_json_schema__(
        self, schema: Any, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        kinds = self.sections()
        schemas = [section.model_json_schema() for section in kinds.values()]
        # a bare kind stands for the section with all its defaults
        return {"anyOf": [*schemas, {"enum": list(kinds)}]}

    def _complete(self, part: type[Kind], entry: EntryPoint) -> type[Kind]:
        # sections put off their building, and with it a stranger's mistake, until they are used
        part.model_rebuild(raise_errors=True)
        check_name(get_args(part.model_fields["kind"].annotation), entry)
        if part.makes is not None:
            look_at_result(part, *part.makes, f"the {self.part} `{entry.name}`", entry)
        return part

    def _checked(self, candidate: Any) -> type[Kind]:
        section = super()._checked(candidate)
        fields = [name for name in section.needed_fields if name not in section.model_fields]
        if fields:
            raise UnfitError(f"it lacks the field {', '.join(f'`{name}`' for name in fields)}")
        return section


def _reason(err: BaseException) -> str:
    """What is wrong, in one line."""
    said = str(err).strip().partition("\n")[0]
    # our own sentence says all; of a stranger's error, the kind is half of what it says
    if isinstance(err, UnfitError):
        return said
    if not said:
        return type(err).__name__
    return f"{type(err).__name__}: {said}"


def _dump(section: KindSection, info: SerializationInfo) -> dict[str, Any]:
    dumped = section.model_dump(mode=info.mode, exclude_defaults=info.exclude_defaults)
    return {"kind": section.kind, **dumped}


# The names of version 0.1, by which packages outside vdiff may know them.
trajectory = shapes_weights
harmless = free_to_change
