"""Recipes as text: YAML without surprises, and mistakes in words a person can act on."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import model_validator

from vdiff.config import KindSection, Registry, Section, free_to_change, shapes_weights
from vdiff.disk import manifest
from vdiff.errors import ModelFileError, UsageError
from vdiff.recipe import text as recipe_text
from vdiff.recipe.recipe import Recipe


class Net(KindSection):
    pass


class SmallNet(Net):
    kind: Literal["small"] = shapes_weights("small")
    width: int = shapes_weights(64, ge=8)


class LargeNet(Net):
    kind: Literal["large"] = shapes_weights("large")
    width: int = shapes_weights(256, ge=8)
    multipliers: tuple[int, ...] = shapes_weights((1, 2))


NETS: Registry[Net] = Registry(
    "net",
    {"small": f"{__name__}:SmallNet", "large": f"{__name__}:LargeNet"},
    default="small",
    group="vdiff.nets",
    contract=f"{__name__}:Net",
)


class Override(Section):
    updates: int | None = shapes_weights(None, ge=1)


class Training(Section):
    updates: int = shapes_weights(ge=1)
    learning_rate: float = shapes_weights(2e-4, gt=0)
    weighting: Literal["constant", "snr"] = shapes_weights("snr")
    overrides: dict[int, Override] = shapes_weights({})
    factor: int | tuple[int, ...] = shapes_weights(2)

    @model_validator(mode="after")
    def _check(self) -> "Training":
        if self.updates == 13:
            raise ValueError("13 updates bring bad luck")
        return self


class Whole(Section):
    name: str = free_to_change()
    flip: bool = free_to_change(False)
    net: Annotated[Any, NETS] = free_to_change("small")
    train: Training = free_to_change()


def data_of(text: str) -> dict[str | int, Any]:
    return recipe_text.parse(text, "r.yaml").data


def refusal(text: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        recipe_text.parse(text, "r.yaml")
    return caught.value


def mistakes(text: str, *assignments: str) -> UsageError:
    recipe = recipe_text.set_values(recipe_text.parse(text, "r.yaml"), assignments)
    with pytest.raises(UsageError) as caught:
        recipe_text.validate(Whole, recipe)
    return caught.value


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("5e-5", 5e-5),
        ("2.0e-4", 2e-4),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("-3", -3),
        ("+3", 3),
        ("010", 10),
        ("150_000", 150_000),
        ("0x1F", 31),
        ("0o17", 15),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("1__0", "1__0"),
        ("0b11", "0b11"),
        ("'010'", "010"),
        ('"true"', "true"),
        ("[1, 2.5, no]", [1, 2.5, "no"]),
    ],
)
def test_scalars_follow_yaml_1_2(written: str, value: object) -> None:
    found = data_of(f"key: {written}\n")["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("written", [".inf", "-.inf", ".nan", "1e999", "9" * 5000])
def test_numbers_that_are_not_finite_are_refused_with_their_place(written: str) -> None:
    assert refusal(f"a: 1\nkey: {written}\n").where == "r.yaml:2:6"


@pytest.mark.parametrize(
    ("text", "place", "word"),
    [
        ("a: !!python/object/apply:os.system ['true']\n", "r.yaml:1:4", "tags"),
        ("a: !!str 1\n", "r.yaml:1:4", "tags"),
        ("a: ! b\n", "r.yaml:1:4", "tags"),
        ("a: &x [1]\nb: *x\n", "r.yaml:1:4", "anchors"),
        ("a: 1\nb: 2\na: 3\n", "r.yaml:3:1", "first in line 1"),
        ("s:\n  1: x\n  0x1: y\n", "r.yaml:3:3", "twice"),
        ("a: 1\n---\nb: 2\n", "r.yaml:2:1", "one document"),
        ("a: 1\nb: \x00\n", "r.yaml:2:4", "control character"),
        ("a: \x1b[31m\n", "r.yaml:1:4", "control character"),
        ('a: "\\ud83d"\n', "r.yaml:1:4", "half of a character"),
        ('"\\ude00\\ud83d": 1\n', "r.yaml:1:1", "half of a character"),
        ("- a\n- b\n", "r.yaml:1:1", "mapping"),
        ("just text\n", "r.yaml:1:1", "mapping"),
        ("", "r.yaml:1:1", "mapping"),
        ("a: [1, 2\nb: 3\n", "r.yaml:2:2", "expected"),
        ("true: 1\n", "r.yaml:1:1", "key"),
        ("1.5: 1\n", "r.yaml:1:1", "key"),
        ("? [a, b]\n: 1\n", "r.yaml:1:3", "key"),
        ("a: " + "[" * 20 + "]" * 20, "r.yaml:1:23", "20 levels"),
        ("a: " + "[" * 60_000, "r.yaml:1:23", "20 levels"),
        ("a: " + "x" * 70_000, "r.yaml", "64 KiB"),
    ],
)
def test_odd_and_hostile_texts_are_refused_with_their_place(
    text: str, place: str, word: str
) -> None:
    err = refusal(text)
    assert err.where == place
    assert word in err.problem


def test_a_character_that_json_writes_in_halves_is_one() -> None:
    text = "pictures/\N{GRINNING FACE}"
    assert data_of(json.dumps({"path": text, text: 1})) == {"path": text, text: 1}


def test_nineteen_lists_inside_each_other_are_read() -> None:
    assert data_of("a: " + "[" * 19 + "]" * 19)


@given(st.text(max_size=200) | st.text(alphabet="ab01_.~:-[]{}&*!?|>%@,'\"# \n\t", max_size=60))
@settings(deadline=None, max_examples=300)
def test_any_text_is_a_recipe_or_a_usage_error(text: str) -> None:
    try:
        outcome: object = recipe_text.parse(text, "r.yaml").data
    except UsageError as err:
        outcome = err.where
    assert isinstance(outcome, dict) or str(outcome).startswith("r.yaml")


def test_whole_numbers_are_keys() -> None:
    assert data_of("overrides: {2: {updates: 5}, '2': 1}\n") == {
        "overrides": {2: {"updates": 5}, "2": 1}
    }


def test_every_value_knows_its_place() -> None:
    places = recipe_text.parse("name: x\ntrain:\n  updates: 3\n  list: [4, 5]\n", "r.yaml").places
    assert places == {
        ("name",): "r.yaml:1:1",
        ("train",): "r.yaml:2:1",
        ("train", "updates"): "r.yaml:3:3",
        ("train", "list"): "r.yaml:4:3",
        ("train", "list", 0): "r.yaml:4:10",
        ("train", "list", 1): "r.yaml:4:13",
    }


def test_a_byte_order_mark_is_ignored() -> None:
    assert data_of("\ufeffname: x\n") == {"name": "x"}


def test_set_changes_adds_and_replaces_values() -> None:
    before = recipe_text.parse("name: x\nnet: small\ntrain: {updates: 3, list: [1, 2]}\n", "r.yaml")
    assignments = [
        "train.updates=5e3",
        "net.width=9",
        "new.deep.2.key={a: [1, no]}",
        "train.list=",
        "name=a=b",
    ]
    after = recipe_text.set_values(before, assignments)
    assert after.data == {
        "name": "a=b",
        "net": {"kind": "small", "width": 9},
        "train": {"updates": 5000.0, "list": None},
        "new": {"deep": {2: {"key": {"a": [1, "no"]}}}},
    }
    assert after.places[("train", "updates")] == "--set train.updates"
    assert after.places[("new", "deep", 2, "key", "a")] == "--set new.deep.2.key"
    assert ("train", "list", 0) not in after.places
    assert after.assignments == tuple(assignments)
    assert before.data["train"] == {"updates": 3, "list": [1, 2]}


def test_the_later_set_wins() -> None:
    recipe = recipe_text.set_values(recipe_text.parse("a: 0\n", "r.yaml"), ["a=1", "a=2"])
    assert recipe.data == {"a": 2}


@pytest.mark.parametrize(
    ("assignment", "where"),
    [
        ("train.updates", "--set"),
        ("=3", "--set"),
        ("train..updates=3", "--set"),
        ("train.updates=a: b", "--set train.updates"),
        ("train.updates=[1", "--set train.updates"),
        ("train.updates=!!str 1", "--set train.updates"),
        ("number.key=1", "--set number.key"),
    ],
)
def test_a_set_that_cannot_be_carried_out_is_refused(assignment: str, where: str) -> None:
    with pytest.raises(UsageError) as caught:
        recipe_text.set_values(recipe_text.parse("number: 1\n", "r.yaml"), [assignment])
    assert caught.value.where == where


def test_a_right_recipe_becomes_frozen_sections() -> None:
    recipe = recipe_text.parse(
        "name: x\nnet: {kind: large, width: 32}\ntrain: {updates: 3}\n", "r.yaml"
    )
    whole = recipe_text.validate(Whole, recipe)
    assert whole.net == LargeNet(width=32)
    assert whole.train.updates == 3


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file() -> None:
    text = (
        "flip: 7\nnet: {kind: large, widht: 3}\ntrain:\n  learning_rate: 0\n  weighting: snx\n"
        "trian: {}\n"
    )
    err = mistakes(text, "train.updates=0")
    assert err.problem == "7 mistakes in `r.yaml`"
    assert err.where.splitlines() == [
        "r.yaml:1:1           `name`: is missing",
        "r.yaml:1:1           `flip`: should be true or false, is 7",
        "r.yaml:2:20          `net.widht`: is unknown; did you mean `width`?",
        "r.yaml:4:3           `train.learning_rate`: should be more than 0, is 0",
        (
            "r.yaml:5:3           `train.weighting`: "
            "should be `constant` or `snr`, is the text `snx`; did you mean `snr`?"
        ),
        "r.yaml:6:1           `trian`: is unknown; did you mean `train`?",
        "--set train.updates  `train.updates`: should be at least 1, is 0",
    ]


def test_a_mistake_of_a_section_points_at_what_an_assignment_changed_in_it_too() -> None:
    recipe = recipe_text.set_values(
        recipe_text.find("digits"), ["distill.factor=3", "train.updates=7", "seed=1"]
    )
    with pytest.raises(UsageError) as caught:
        recipe_text.validate(Recipe, recipe)
    assert caught.value.where.endswith(", --set distill.factor")
    changes = [
        "diffusion.schedule={kind: cosine, grid: 2}",
        "distill.start_steps=256",
        "distill.factor=2",
    ]
    with pytest.raises(UsageError, match="may have at most") as caught:
        recipe_text.validate(Recipe, recipe_text.set_values(recipe_text.find("digits"), changes))
    changed = ("diffusion.schedule", "distill.start_steps", "distill.factor")
    assert caught.value.where.partition(", ")[2].split(", ") == [
        f"--set {name}" for name in changed
    ]


def test_a_section_that_only_an_assignment_made_is_looked_for_there() -> None:
    where = mistakes("name: n\nnet: {kind: large}\n", "trian.updates=3").where
    assert "--set trian.updates  `trian`: is unknown" in where


@pytest.mark.parametrize(
    ("line", "place", "words"),
    [
        (
            "train: {updates: many}",
            "2:9",
            "`train.updates`: should be a whole number, is the text `many`",
        ),
        ("train: {updates: 1.5}", "2:9", "`train.updates`: should be a whole number, is 1.5"),
        ("train: {updates: }", "2:9", "`train.updates`: should be a whole number, is empty"),
        ("train: [1]", "2:1", "`train`: should be a mapping, is a list of 1"),
        ("train: {}", "2:1", "`train.updates`: is missing"),
        ("train: {updates: 13}", "2:1", "`train`: 13 updates bring bad luck"),
        (
            "train: {updates: 1, factor: x}",
            "2:21",
            "`train.factor`: should be a whole number or a list, is the text `x`",
        ),
        (
            "train: {updates: 1, factor: [2, x]}",
            "2:33",
            "`train.factor.1`: should be a whole number, is the text `x`",
        ),
        (
            "train: {updates: 1, overrides: {2: {update: 3}}}",
            "2:37",
            "`train.overrides.2.update`: is unknown; did you mean `updates`?",
        ),
        (
            "train: {updates: 1, overrides: {2: {updates: -3}}}",
            "2:37",
            "`train.overrides.2.updates`: should be at least 1, is -3",
        ),
    ],
)
def test_a_single_mistake_is_told_in_words(line: str, place: str, words: str) -> None:
    text = f"name: x\n{line}\n"
    err = mistakes(text)
    assert (err.where, err.problem) == (f"r.yaml:{place}", words)


def test_an_unknown_kind_names_the_nearest_one() -> None:
    err = mistakes("name: x\nnet: {kind: lage}\ntrain: {updates: 1}\n")
    assert "`net`: unknown kind `lage` of net; did you mean `large`?" in err.problem


def test_keys_of_another_kind_are_unknown() -> None:
    err = mistakes("name: x\nnet: {multipliers: [1]}\ntrain: {updates: 1}\n")
    assert err.problem == "`net.multipliers`: is unknown (there are: kind, width)"


def test_mistakes_hold_no_words_of_pydantic() -> None:
    err = mistakes(
        "name: [1]\nflip: {}\nnet: 5\ntrain: {updates: [], overrides: {x: 1, 2: 3}}\nzzz: 1\n"
    )
    for word in ("pydantic", "http", "Input", "input_", "valid ", "Extra", "Field required"):
        assert word not in str(err)


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(recipe_text.VARIABLE, raising=False)
    return tmp_path


def test_a_recipe_is_looked_for_in_the_promised_order(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = empty_folder / "base_0"
    model.mkdir()
    (model / "vdiff.json").write_text(manifest.sealed({"recipe": "name: inside\n", "files": {}}))
    assert recipe_text.find(None, model).data == {"name": "inside"}
    (model / "recipe.yaml").write_text("name: beside\n")
    assert recipe_text.find(None, model).data == {"name": "beside"}
    Path("recipe.yaml").write_text("name: here\n")
    assert recipe_text.find(None, model).data == {"name": "here"}
    Path("other.yaml").write_text("name: variable\n")
    monkeypatch.setenv(recipe_text.VARIABLE, "other.yaml")
    assert recipe_text.find(None, model).data == {"name": "variable"}
    Path("third.yaml").write_text("name: named\n")
    found = recipe_text.find("third.yaml", model)
    assert found.data == {"name": "named"}
    assert (found.path, found.text) == (Path("third.yaml"), "name: named\n")


@pytest.mark.usefixtures("empty_folder")
def test_without_a_recipe_the_error_says_how_to_get_one() -> None:
    with pytest.raises(UsageError) as caught:
        recipe_text.find(None)
    assert "vdiff init digits" in caught.value.fix


@pytest.mark.usefixtures("empty_folder")
def test_shipped_recipes_are_found_by_name_and_nearest_name() -> None:
    assert recipe_text.find("digits").path == recipe_text.shipped()["digits"]
    with pytest.raises(UsageError) as caught:
        recipe_text.find("digitz")
    assert "did you mean `digits`" in caught.value.problem


def test_files_that_are_no_recipe_are_refused(empty_folder: Path) -> None:
    Path("long.yaml").write_bytes(b"a: \xff" + b"x" * 70_000)
    Path("latin.yaml").write_bytes(b"a: 1\nb: \xe4\n")
    for name, word in (("long.yaml", "64 KiB"), ("latin.yaml", "UTF-8")):
        with pytest.raises(UsageError) as caught:
            recipe_text.find(name)
        assert word in caught.value.problem
    (empty_folder / "vdiff.json").write_text("{")
    with pytest.raises(ModelFileError):
        recipe_text.find(None, empty_folder)


NUMBERS_THAT_MAY_BE_MISSING = [
    "train.ema",
    "train.clip_norm",
    "train.micro_batch",
    "train.preview_every",
    "distill.ema",
    "evaluate.every",
    "distill.stop_if.psnr_below",
    "data.workers",
]


@pytest.mark.parametrize("spelling", ["none", "None", "NONE", "null", "~"])
@pytest.mark.parametrize("key", NUMBERS_THAT_MAY_BE_MISSING)
def test_none_means_null_where_a_number_may_be_missing(key: str, spelling: str) -> None:
    found: object = validate("digits", f"{key}={spelling}")
    for name in key.split("."):
        found = getattr(found, name)
    assert found is None


@pytest.mark.parametrize("key", ["train.updates", "train.weighting", "data.path"])
def test_none_is_nothing_where_a_value_must_be(key: str) -> None:
    if key == "data.path":
        assert validate("digits", f"{key}=none").data.path == Path("none")
        return
    with pytest.raises(UsageError, match="none"):
        validate("digits", f"{key}=none")


def validate(name: str, assignment: str) -> Recipe:
    return recipe_text.validate(
        Recipe, recipe_text.set_values(recipe_text.find(name), [assignment])
    )
