"""Sections and the tables of kinds: strict, frozen, documented,
and imported when they are named.
"""

import importlib
import importlib.metadata
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ValidationError

from vdiff.cli.failures import explain
from vdiff.config import KindSection, Registry, Section, effect_of, free_to_change, shapes_weights
from vdiff.data import CODECS, DATASETS
from vdiff.diffusion import SCHEDULES
from vdiff.diffusion.schedule import sampling_times
from vdiff.errors import MachineError
from vdiff.field_docs import field_docs
from vdiff.metrics import METRICS
from vdiff.metrics.metric import Means
from vdiff.networks import NETWORKS
from vdiff.objectives import OBJECTIVES
from vdiff.recipe.recipe import Recipe
from vdiff.samplers import SAMPLERS
from vdiff.system import packages

TABLES = {
    "data": DATASETS,
    "schedule": SCHEDULES,
    "network": NETWORKS,
    "objective": OBJECTIVES,
    "sampler": SAMPLERS,
    "metric": METRICS,
    "codec": CODECS,
}
GROUPS = ["datasets", "schedules", "networks", "objectives", "samplers", "metrics", "codecs"]
GROUP_OF = dict(zip(TABLES, GROUPS, strict=True))
KINDS = [(part, kind) for part, table in TABLES.items() for kind in table]


class Shape(KindSection):
    """What all shapes are."""


class Round(Shape):
    kind: Literal["round"] = shapes_weights("round")
    radius: int = shapes_weights(1, ge=1)
    """Radius, in pixels."""
    colour: str = free_to_change("red")
    """What it looks like."""


class Square(Shape):
    kind: Literal["square"] = shapes_weights("square")
    side: int = shapes_weights(2)


SHAPES: Registry[Shape] = Registry(
    "shape",
    {"round": f"{__name__}:Round", "square": f"{__name__}:Square"},
    default="round",
    group="vdiff.shapes",
    contract=f"{__name__}:Shape",
)


class Picture(Section):
    shape: Annotated[Any, SHAPES] = free_to_change("round")


def test_a_section_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Round().radius = 3  # type: ignore[misc]


def test_a_section_refuses_unknown_keys() -> None:
    with pytest.raises(ValidationError, match="extra"):
        Round.model_validate({"radious": 1})


def test_a_field_knows_whether_it_changes_the_weights() -> None:
    assert [effect_of(Round, field) for field in Round.model_fields] == [
        "trajectory",
        "trajectory",
        "harmless",
    ]


def test_a_field_without_a_mark_has_none() -> None:
    class Unmarked(Section):
        number: int = 1

    assert effect_of(Unmarked, "number") is None


class Ring(Round):
    """A circle with
    a hole.

    It looks like a letter.
    """

    radius: float = shapes_weights(2.0, gt=0)
    hole: float = shapes_weights(1.0, gt=0)
    """Radius of the hole, in
    pixels."""


def test_the_text_beneath_a_field_is_that_of_the_class_that_states_it_last() -> None:
    assert field_docs(Round)["radius"] == "Radius, in pixels."
    assert "radius" not in field_docs(Ring)
    assert field_docs(Ring)["hole"] == "Radius of the hole, in pixels."
    told = Ring.model_json_schema()["description"]
    assert told == "A circle with a hole.\n\nIt looks like a letter."
    made = type("Made", (Round,), {"__module__": __name__})
    assert field_docs(made) == field_docs(Round)


def test_the_text_beneath_a_field_is_its_description() -> None:
    assert Round.model_json_schema()["properties"]["radius"]["description"] == "Radius, in pixels."


@pytest.mark.parametrize(
    ("written", "section"),
    [
        ({}, Round()),
        ({"shape": "square"}, Square()),
        ({"shape": {"kind": "square", "side": 5}}, Square(side=5)),
        ({"shape": {"radius": 5}}, Round(radius=5)),
        ({"shape": Square(side=7)}, Square(side=7)),
    ],
)
def test_a_kind_may_be_a_word_a_mapping_or_left_out(
    written: dict[str, Any], section: Section
) -> None:
    assert Picture.model_validate(written).shape == section


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("rund", "unknown kind `rund` of shape; did you mean `round`?"),
        ({"kind": "zzz"}, "unknown kind `zzz` of shape (there are: round, square)"),
        ({"kind": None}, "unknown kind `None` of shape"),
        ({"kind": ["round"]}, "unknown kind"),
        (5, "should be a mapping or one of: round, square"),
    ],
)
def test_a_kind_that_does_not_exist_is_refused_with_those_that_do(
    written: object, message: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        Picture.model_validate({"shape": written})
    [error] = caught.value.errors()
    assert error["loc"] == ("shape",)
    assert message in error["msg"]


def test_mistakes_inside_a_kind_are_told_with_their_keys() -> None:
    with pytest.raises(ValidationError) as caught:
        Picture.model_validate({"shape": {"kind": "round", "radius": 0, "corner": 1}})
    assert {error["loc"] for error in caught.value.errors()} == {
        ("shape", "radius"),
        ("shape", "corner"),
    }


@pytest.mark.parametrize(
    "options", [{}, {"exclude_defaults": True}, {"exclude_unset": True}, {"mode": "json"}]
)
def test_a_dumped_section_keeps_its_kind(options: dict[str, Any]) -> None:
    picture = Picture.model_validate({"shape": {"kind": "square"}})
    assert picture.model_dump(**options)["shape"]["kind"] == "square"
    assert Picture.model_validate(picture.model_dump(**options)) == picture


def test_the_json_schema_allows_every_kind() -> None:
    schema = Picture.model_json_schema()["properties"]["shape"]
    assert [each.get("title") for each in schema["anyOf"]] == ["Round", "Square", None]
    assert schema["anyOf"][-1] == {"enum": ["round", "square"]}


def test_a_table_imports_nothing_until_a_kind_is_named() -> None:
    code = (
        "import sys; from vdiff.networks import NETWORKS; from vdiff.data import DATASETS; "
        "list(NETWORKS);print([name for name in ('torch', 'lmdb', 'PIL', 'vdiff.networks.unet') if "
        "name in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
        == "[]\n"
    )


@pytest.mark.parametrize("part", TABLES)
def test_the_default_of_a_table_is_one_of_its_kinds(part: str) -> None:
    assert TABLES[part].part == part
    assert TABLES[part].default in TABLES[part]


# Kinds of other packages

Install = Callable[..., None]

FIELDS = {
    "kind": 'Literal["guest"] = shapes_weights("guest")',
    "size": "int = shapes_weights(8)",
    "channels": "int = shapes_weights(3)",
    "flip": "bool = shapes_weights(False)",
}
"""All that a contract may ask a section to declare."""

every_part = pytest.mark.parametrize("part", TABLES)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a package of one module where Python finds it, as pip does. kinds:
    what its class `Guest` is to be.
    """
    monkeypatch.syspath_prepend(tmp_path)
    names: list[str] = []

    def put(part: str, source: str, *kinds: str, name: str = "guest", version: str = "1.0") -> None:
        # a section says the names of its entry points
        said = f"Literal[{str(kinds)[1:-1]}]"
        source = source.replace('Literal["guest"]', said).replace('s("guest")', f"s({kinds[0]!r})")
        (tmp_path / f"{name}.py").write_text(source)
        told = tmp_path / f"{name}-{version}.dist-info"
        told.mkdir()
        (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = [f"[vdiff.{GROUP_OF[part]}]", *(f"{kind} = {name}:Guest" for kind in kinds)]
        (told / "entry_points.txt").write_text("\n".join(lines) + "\n")
        importlib.invalidate_caches()
        names.append(name)

    yield put
    for name in names:
        sys.modules.pop(name, None)


def contract_of(part: str) -> type[KindSection]:
    module, _, name = TABLES[part]._contracts[0].partition(":")
    contract: type[KindSection] = getattr(importlib.import_module(module), name)
    return contract


def methods_of(part: str) -> list[str]:
    return sorted(getattr(contract_of(part), "__abstractmethods__", ()))


def guest(part: str, lacks: str = "") -> str:
    """The source of a module whose `Guest` keeps the contract of a table, but for what it lacks."""
    contract = contract_of(part)
    fields = [f"{name}: {FIELDS[name]}" for name in contract.needed_fields if name != lacks]
    methods = [f"def {name}(self, *given): ..." for name in methods_of(part) if name != lacks]
    lines = [
        "from typing import Literal",
        "from vdiff.config import shapes_weights",
        f"from {contract.__module__} import {contract.__name__}",
        f"class Guest({contract.__name__}):",
        *(f"    {line}" for line in ['"""A kind of somebody else."""', *fields, *methods]),
    ]
    return "\n".join(lines) + "\n"


def broken(part: str) -> Iterator[tuple[str, str, str]]:
    """What can be wrong with a kind of another package:
    in a word, as a module, and as it is told.
    """
    contract = contract_of(part)
    names = [name.replace(":", ".") for name in TABLES[part]._contracts]
    unfit = "it is no subclass of " + " or ".join(f"`{name}`" for name in names)
    yield "no section", "class Guest: ...\n", unfit
    yield "no class", "Guest = 5\n", unfit
    yield "of another table", guest("sampler" if part == "schedule" else "schedule"), unfit
    for name in (*methods_of(part), *contract.needed_fields):
        field = "" if name in methods_of(part) else "the field "
        yield f"without {name}", guest(part, lacks=name), f"it lacks {field}`{name}`"
    another = guest(part).replace(FIELDS["kind"], 'Literal["another"] = shapes_weights("another")')
    yield "another name", another, "its `kind` is `another`, and its entry point `guest`"
    yield "raises", 'raise RuntimeError("not today\\nmore about it")\n', "RuntimeError: not today"
    yield "says nothing", "raise ValueError\n", "ValueError"
    yield "leaves", "raise SystemExit(3)\n", "SystemExit: 3"
    yield (
        "import",
        "import no_such_library\n",
        "ModuleNotFoundError: No module named 'no_such_library'",
    )
    yield "name", "Host = 5\n", "AttributeError: module 'guest' has no attribute 'Guest'"
    yield "syntax", "class Guest(\n", "SyntaxError: '(' was never closed (guest.py, line 1)"


BROKEN = [(part, *each) for part in TABLES for each in broken(part)]


def holder(part: str) -> type[Section]:
    """A recipe with nothing but this part."""

    class Holder(Section):
        it: Annotated[Any, TABLES[part]] = free_to_change()

    return Holder


def refused(part: str, kind: str) -> MachineError:
    """What somebody is told who names the kind in a recipe, which is what it is told elsewhere."""
    with pytest.raises(MachineError) as found:
        holder(part).model_validate({"it": kind})
    with pytest.raises(MachineError) as again:
        TABLES[part].section(kind)
    assert str(found.value) == str(again.value)
    assert len(str(found.value).splitlines()) == 2 + bool(found.value.where)
    return found.value


@every_part
def test_another_package_adds_a_kind_and_replaces_none(install: Install, part: str) -> None:
    table = TABLES[part]
    install(part, guest(part), "guest", table.default)
    assert table.section("guest").__module__ == "guest"
    assert table.sections()["guest"] is table.section("guest")
    assert table.section(table.default).__module__.startswith("vdiff.")
    assert table.unknown("guess").startswith(
        f"unknown kind `guess` of {part}; did you mean `guest`?"
    )
    assert holder(part).model_validate({"it": "guest"}).it.kind == ("guest")  # type: ignore[attr-defined]


@every_part
def test_a_name_that_vdiff_has_stays_its_own_and_that_is_doubted(
    install: Install, part: str
) -> None:
    table = TABLES[part]
    kinds = list(table)
    install(part, 'raise RuntimeError("nobody asked for it")\n', table.default)
    assert list(table) == list(table.sections()) == kinds
    assert table.section(table.default).__module__.startswith("vdiff.")
    told = (
        f"the package `guest 1.0` brings a {part} called `{table.default}`, which vdiff has; "
        "vdiff's own is used"
    )
    assert table.doubts() == [told]


@every_part
def test_without_other_packages_there_is_no_doubt_and_every_kind_can_be_used(part: str) -> None:
    assert TABLES[part].doubts() == []
    assert list(TABLES[part].sections()) == list(TABLES[part])


@pytest.mark.parametrize(
    ("part", "source", "words"),
    [(part, source, words) for part, _, source, words in BROKEN],
    ids=[f"{part} {what}" for part, what, *_ in BROKEN],
)
def test_a_kind_that_cannot_be_used_is_one_error_and_the_others_go_on(
    install: Install, part: str, source: str, words: str
) -> None:
    table = TABLES[part]
    install(part, guest(part), "fine", name="other")
    kinds = list(table)
    install(part, source, "guest")
    error = refused(part, "guest")
    assert error.exit_code == 6
    assert error.problem == f"the {part} `guest` of the package `guest 1.0` cannot be used"
    assert error.where == f"`guest:Guest`: {words}"
    assert (
        error.fix == "get a version of it that fits this vdiff, or remove it: pip uninstall guest"
    )
    assert set(table) == {*kinds, "guest"}
    assert list(table.sections()) == [kind for kind in table if kind != "guest"]
    assert table.section(table.default) is table.sections()[table.default]
    assert table.section("fine").__module__ == "other"
    assert "guest" not in holder(part).model_json_schema()["properties"]["it"]["anyOf"][-1]["enum"]
    assert table.doubts() == [f"{error.problem}: {error.where}"]


def made_by(part: str, result: str) -> str:
    """The source of a module whose section makes something that is no thing of this part."""
    method, _ = contract_of(part).makes or ("", "")
    rest = f"def {method}(self, *given): return {result}"
    return guest(part).replace(f"def {method}(self, *given): ...", rest)


@every_part
def test_a_section_that_makes_something_else_is_an_error_that_names_package_and_part(
    install: Install, part: str
) -> None:
    method, contract = contract_of(part).makes or ("", "")
    install(part, made_by(part, "object()"), "guest")
    section = TABLES[part].section("guest")
    for again in (section, TABLES[part].section("guest")):
        with pytest.raises(MachineError) as found:
            getattr(again(), method)()
    assert found.value.problem == f"the {part} `guest` of the package `guest 1.0` cannot be used"
    assert found.value.where.startswith(f"`guest:Guest.{method}` gives a `object`: it ")
    assert f"`{contract.replace(':', '.')}`" in found.value.where
    assert found.value.fix.endswith("pip uninstall guest")


PAIRS = """
from typing import Literal
from vdiff.config import free_to_change
from vdiff.metrics.pair_metric import Measure, PairMetricSection

class Half:
    features = "pixels"

class Guest(PairMetricSection):
    kind: Literal["guest"] = free_to_change("guest")
    measures = (Measure("guest", "a title", "a word", "less is closer"),)

    def build(self, means):
        return Half()

    def protocol(self, *given):
        return "pixels"
"""


def test_a_metric_of_pairs_that_cannot_compare_is_told_with_what_it_lacks(install: Install) -> None:
    install("metric", PAIRS, "guest")
    with pytest.raises(MachineError) as found:
        METRICS.section("guest")().build(Means())  # type: ignore[arg-type]
    said = "it lacks `compare` of `vdiff.metrics.pair_metric.PairMetric`"
    assert found.value.where == f"`guest:Guest.build` gives a `Half`: {said}"


@every_part
def test_a_kind_whose_fields_nobody_can_describe_is_one_error_and_the_schema_goes_on(
    install: Install, part: str
) -> None:
    install(part, guest(part) + "    puzzle: object()\n", "guest")
    assert "PydanticSchemaGenerationError" in refused(part, "guest").where
    assert "guest" not in TABLES[part].sections()
    assert "guest" not in holder(part).model_json_schema()["properties"]["it"]["anyOf"][-1]["enum"]


@every_part
def test_a_name_that_two_packages_claim_is_one_error_and_neither_is_used(
    install: Install, part: str
) -> None:
    table = TABLES[part]
    kinds = list(table)
    for name, version in (("guest", "1.0"), ("other", "2.1")):
        install(part, guest(part), "both", name, name=name, version=version)
    error = refused(part, "both")
    assert error.exit_code == 6
    assert error.problem in (
        f"the packages `{one}` and `{other}` both bring a {part} called `both`"
        for one, other in (("guest 1.0", "other 2.1"), ("other 2.1", "guest 1.0"))
    )
    assert error.fix.startswith("uninstall one of them: pip uninstall ")
    assert error.fix.split()[-1] in ("guest", "other")
    assert set(table) == {*kinds, "both", "guest", "other"}
    assert set(table.sections()) == {*kinds, "guest", "other"}
    assert table.doubts() == [error.problem]


def test_an_error_in_the_code_of_a_guest_is_not_called_one_of_vdiff(install: Install) -> None:
    source = """
import torch

def fail():
    raise RuntimeError("sorry")

def ask_torch():
    return torch.zeros(2).view(3)

def call(back):
    return back()
"""
    install("sampler", source, "guest")
    import guest  # type: ignore[import-not-found]

    for work, words in (
        (guest.fail, "RuntimeError: sorry"),
        (guest.ask_torch, "RuntimeError: shape '[3]'"),
    ):
        with pytest.raises(RuntimeError) as caught:
            work()
        found = explain(caught.value)
        assert found.exit_code == 6
        assert found.problem.startswith(f"the package `guest 1.0` failed: {words}")
    with pytest.raises(ValueError) as ours:
        guest.call(lambda: sampling_times(5, model_steps=2))
    assert explain(ours.value).problem.startswith("this is a bug in vdiff: ValueError: num_steps 5")


# Kinds of vdiff


@pytest.mark.parametrize(("part", "kind"), KINDS)
def test_every_kind_names_itself_and_documents_its_fields(part: str, kind: str) -> None:
    section = TABLES[part].section(kind)
    assert issubclass(section, Section)
    assert section.model_fields["kind"].default == kind
    assert section.model_fields["kind"].annotation == Literal[kind]
    assert (section.__doc__ or "").strip()
    undocumented = [
        name for name in section.model_fields if name not in field_docs(section) and name != "kind"
    ]
    assert undocumented == []


def sections(section: type[BaseModel]) -> set[type[BaseModel]]:
    """`section` and all plain sections inside it."""
    inner = [field.annotation for field in section.model_fields.values()]
    found = (
        sections(each) for each in inner if isinstance(each, type) and issubclass(each, Section)
    )
    return {section}.union(*found)


def test_every_field_of_a_recipe_is_marked_and_documented() -> None:
    kinds = [TABLES[part].section(kind) for part, kind in KINDS]
    for section in sections(Recipe).union(*(sections(kind) for kind in kinds)):
        for name in section.model_fields:
            assert effect_of(section, name) in ("trajectory", "harmless"), (
                f"{section.__name__}.{name}"
            )  # type: ignore[arg-type]
            assert name in field_docs(section) or name == "kind", f"{section.__name__}.{name}"


def test_a_kind_of_vdiff_is_found_without_a_look_at_what_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def looked(*given: object) -> None:
        raise AssertionError("it looked")

    monkeypatch.setattr(packages, "entry_points", looked)
    monkeypatch.setattr(packages, "_places", lambda: (("a place that nobody knows", 0),))
    for table in TABLES.values():
        assert table.default in table
        assert table.section(table.default).model_fields["kind"].default == table.default


def test_what_is_installed_is_read_once_for_all_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def looked() -> object:
        looks.append(1)
        return importlib.metadata.entry_points()

    monkeypatch.setattr(packages, "entry_points", looked)
    packages._entry_points.cache_clear()
    assert [list(table) for table in TABLES.values()] == [list(table) for table in TABLES.values()]
    assert looks == [1]
