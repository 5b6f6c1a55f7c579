"""Sections and the tables of kinds: strict, frozen, documented, and imported when they are named."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ValidationError

from vdiff.config import Registry, Section, harmless, mark_of, trajectory
from vdiff.data import DATASETS
from vdiff.diffusion import SCHEDULES
from vdiff.metrics import METRICS
from vdiff.networks import NETWORKS
from vdiff.objectives import OBJECTIVES
from vdiff.recipe import Recipe
from vdiff.samplers import SAMPLERS

TABLES = {
    "data": DATASETS,
    "schedule": SCHEDULES,
    "network": NETWORKS,
    "objective": OBJECTIVES,
    "sampler": SAMPLERS,
    "metric": METRICS,
}
GROUPS = ["datasets", "schedules", "networks", "objectives", "samplers", "metrics"]
KINDS = [(part, kind) for part, table in TABLES.items() for kind in table]


class Round(Section):
    kind: Literal["round"] = trajectory("round")
    radius: int = trajectory(1, ge=1)
    """Radius, in pixels."""
    colour: str = harmless("red")
    """What it looks like."""


class Square(Section):
    kind: Literal["square"] = trajectory("square")
    side: int = trajectory(2)


SHAPES = Registry(
    "shape", {"round": f"{__name__}:Round", "square": f"{__name__}:Square"}, default="round", group="vdiff.shapes"
)


class Picture(Section):
    shape: Annotated[Any, SHAPES] = harmless("round")


def test_a_section_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Round().radius = 3  # type: ignore[misc]


def test_a_section_refuses_unknown_keys() -> None:
    with pytest.raises(ValidationError, match="extra"):
        Round.model_validate({"radious": 1})


def test_a_field_knows_whether_it_changes_the_weights() -> None:
    assert [mark_of(Round, field) for field in Round.model_fields] == ["trajectory", "trajectory", "harmless"]


def test_a_field_without_a_mark_has_none() -> None:
    class Unmarked(Section):
        number: int = 1

    assert mark_of(Unmarked, "number") is None


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
def test_a_kind_may_be_a_word_a_mapping_or_left_out(written: dict[str, Any], section: Section) -> None:
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
def test_a_kind_that_does_not_exist_is_refused_with_those_that_do(written: object, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Picture.model_validate({"shape": written})
    [error] = caught.value.errors()
    assert error["loc"] == ("shape",)
    assert message in error["msg"]


def test_mistakes_inside_a_kind_are_told_with_their_keys() -> None:
    with pytest.raises(ValidationError) as caught:
        Picture.model_validate({"shape": {"kind": "round", "radius": 0, "corner": 1}})
    assert {error["loc"] for error in caught.value.errors()} == {("shape", "radius"), ("shape", "corner")}


@pytest.mark.parametrize("options", [{}, {"exclude_defaults": True}, {"exclude_unset": True}, {"mode": "json"}])
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
        "import sys; from vdiff.networks import NETWORKS; from vdiff.data import DATASETS; list(NETWORKS);"
        "print([name for name in ('torch', 'lmdb', 'PIL', 'vdiff.networks.unet') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("part", TABLES)
def test_the_default_of_a_table_is_one_of_its_kinds(part: str) -> None:
    assert TABLES[part].part == part
    assert TABLES[part].default in TABLES[part]


@pytest.mark.parametrize(("part", "group"), list(zip(TABLES, GROUPS, strict=True)))
def test_another_package_adds_a_kind_and_replaces_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, group: str
) -> None:
    table = TABLES[part]
    (tmp_path / "guest.py").write_text("class Guest: pass\n")
    told = tmp_path / "guest-1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: guest\nVersion: 1.0\n")
    kinds = ["guest", table.default]
    lines = [f"[vdiff.{group}]", *(f"{kind} = guest:Guest" for kind in kinds)]
    (told / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert table.section("guest").__module__ == "guest"
    assert table.section(table.default).__module__.startswith("vdiff.")
    assert table.unknown("guess").startswith(f"unknown kind `guess` of {part}; did you mean `guest`?")


@pytest.mark.parametrize(("part", "kind"), KINDS)
def test_every_kind_names_itself_and_documents_its_fields(part: str, kind: str) -> None:
    section = TABLES[part].section(kind)
    assert issubclass(section, Section)
    assert section.model_fields["kind"].default == kind
    assert section.model_fields["kind"].annotation == Literal[kind]
    assert (section.__doc__ or "").strip()
    undocumented = [name for name, field in section.model_fields.items() if not field.description and name != "kind"]
    assert undocumented == []


def sections(section: type[BaseModel]) -> set[type[BaseModel]]:
    """`section` and all plain sections inside it."""
    inner = [field.annotation for field in section.model_fields.values()]
    found = (sections(each) for each in inner if isinstance(each, type) and issubclass(each, Section))
    return {section}.union(*found)


def test_every_field_of_a_recipe_is_marked_and_documented() -> None:
    kinds = [TABLES[part].section(kind) for part, kind in KINDS]
    for section in sections(Recipe).union(*(sections(kind) for kind in kinds)):
        for name, field in section.model_fields.items():
            assert mark_of(section, name) in ("trajectory", "harmless"), f"{section.__name__}.{name}"  # type: ignore[arg-type]
            assert field.description or name == "kind", f"{section.__name__}.{name}"
