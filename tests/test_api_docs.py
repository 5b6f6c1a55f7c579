"""The Python API as it is promised: all of it in docs/api.md, with complete types,
and examples that run.
"""

import ast
import doctest
import importlib
import inspect
import io
import json
import re
import shutil
import typing
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import vdiff
from tests import api_run, public_types

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "api.md"
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"
EXAMPLE = ROOT / "examples" / "vdiff-example"
MODULES = [f"vdiff.api.{path.stem}" for path in sorted((ROOT / "vdiff" / "api").glob("[!_]*.py"))]

FUNCTIONS = [name for name in vdiff.__all__ if inspect.isfunction(getattr(vdiff, name))]
CLASSES = [name for name in vdiff.__all__ if inspect.isclass(getattr(vdiff, name))]
OWN = [name for name in CLASSES if getattr(vdiff, name).__module__.startswith("vdiff.api.")]
"""Classes of which everything public is promised; of the others only what is listed."""

Members = dict[str, str]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, with the store and the run that the examples name."""
    folder = tmp_path_factory.mktemp("docs")
    api_run.make(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def listed() -> dict[str, Members]:
    """Of docs/api.md: name -> its attributes, each as it is written there, by name.

    Functions stand under their own.
    """
    found: dict[str, Members] = {}
    for part in re.split(r"(?m)^### ", DOCS.read_text("utf-8"))[1:]:
        part = part.partition("\n## ")[0]
        heading = re.match(r"`vdiff\.((\w+).*)`\n", part)
        assert heading, part[:40]
        rows = re.findall(r"(?m)^\| `((\w+)[^`]*)` \|", part)
        found[heading[2]] = {name: text for text, name in rows} or {heading[2]: heading[1]}
    return found


LISTED = listed()


def called(function: Callable[..., Any]) -> str:
    """How a function is called, as in `load(path, *, device=None)`."""
    signature = inspect.signature(function)
    own = [
        each.replace(annotation=each.empty)
        for name, each in signature.parameters.items()
        if name != "self"
    ]
    return (
        f"{function.__name__}{signature.replace(parameters=own, return_annotation=signature.empty)}"
    )


def public(name: str) -> Members:
    """What a class of the API offers: attributes, and methods with how they are called."""
    kind = getattr(vdiff, name)
    names = {
        each for each in (*dir(kind), *typing.get_type_hints(kind)) if not each.startswith("_")
    }
    methods = {
        each: getattr(kind, each) for each in names if inspect.isfunction(getattr(kind, each, None))
    }
    return {each: called(methods[each]) if each in methods else each for each in names}


def test_the_list_of_names_is_that_of_the_package() -> None:
    assert sorted(LISTED) == sorted(vdiff.__all__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_called_as_it_is_listed(name: str) -> None:
    assert LISTED[name] == {name: called(getattr(vdiff, name))}


@pytest.mark.parametrize("name", OWN)
def test_everything_public_of_a_class_is_listed_and_nothing_else(name: str) -> None:
    assert LISTED[name] == public(name)


def test_what_is_listed_of_the_other_classes_is_there(here: Path) -> None:
    model = vdiff.load("runs/tiny/base_1", device="cpu")
    objects = {
        "Condition": vdiff.Condition(),
        "Denoiser": model.denoiser,
        "ModelCard": model.card,
        "Recipe": vdiff.read_recipe("digits"),
        "VdiffError": vdiff.UsageError("a", "b"),
    }
    for name, each in objects.items():
        assert [attribute for attribute in LISTED[name] if not hasattr(each, attribute)] == [], name
    errors = [name for name in CLASSES if issubclass(getattr(vdiff, name), vdiff.VdiffError)]
    assert {*OWN, *objects, *errors} == set(CLASSES)


def test_no_object_has_a_public_attribute_that_its_class_does_not_state(here: Path) -> None:
    run = vdiff.run("runs/tiny")
    model = run.load("base_1", device="cpu")
    for each in (run, model, model.show(1), vdiff.open_store("store"), run.report()):
        names = {name for name in vars(each) if not name.startswith("_")}
        assert names <= set(public(type(each).__name__))


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every function, method and property of the API."""
    for name in FUNCTIONS:
        yield name, getattr(vdiff, name)
    for name in OWN:
        kind = getattr(vdiff, name)
        for attribute, each in vars(kind).items():
            if isinstance(each, property) and each.fget is not None:
                yield f"{name}.{attribute}", each.fget
            elif inspect.isfunction(each) and each.__code__.co_filename.endswith(".py"):
                # written, not made
                yield f"{name}.{attribute}", each


ALL = dict(functions())


def is_complete(annotation: object) -> bool:
    """Whether a type says what it is, down to what is in its brackets."""
    if annotation is Any or annotation in (dict, list, tuple, set, Callable):
        return False
    if isinstance(annotation, list):  # the arguments of a Callable
        return all(map(is_complete, annotation))
    return annotation in (None, ...) or all(map(is_complete, typing.get_args(annotation)))


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_and_result_has_a_complete_type(name: str) -> None:
    hints = typing.get_type_hints(ALL[name])
    parameters = [each for each in inspect.signature(ALL[name]).parameters if each != "self"]
    assert set(hints) == {*parameters, "return"}
    assert [
        each
        for each, hint in hints.items()
        if typing.get_origin(hint) is not typing.Literal and not is_complete(hint)
    ] == []


@pytest.mark.parametrize("name", OWN)
def test_every_attribute_has_a_complete_type(name: str) -> None:
    kind = getattr(vdiff, name)
    hints = typing.get_type_hints(kind)
    plain = {
        each
        for each in public(name)
        if not callable(getattr(kind, each, None)) and each not in vars(kind)
    }
    assert plain <= set(hints)
    assert [each for each, hint in hints.items() if not is_complete(hint)] == []


def test_an_incomplete_type_is_seen() -> None:
    assert [
        is_complete(each) for each in (Any, list, dict[str, Any], Callable, list[Any] | None)
    ] == [False] * 5
    assert [
        is_complete(each) for each in (int, None, list[int], Callable[[int], None], tuple[int, ...])
    ] == [True] * 5


@pytest.mark.parametrize(
    "name", [name for name in ALL if not name.rpartition(".")[2].startswith("_")]
)
def test_every_function_is_explained_with_its_parameters_and_errors(name: str) -> None:
    function = ALL[name]
    told = function.__doc__ or ""
    assert told
    if "see `vdiff." in told:
        return
    for each in inspect.signature(function).parameters:
        assert each == "self" or re.search(rf"\b{each}\b.*: |\bto {each}\b", told), each


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_is_explained_with_its_attributes(name: str) -> None:
    kind = getattr(vdiff, name)
    assert kind.__doc__
    if name in OWN:
        stated = [each for each in typing.get_type_hints(kind) if not each.startswith("_")]
        assert [each for each in stated if f"{each}: " not in kind.__doc__] == []


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_a_module_give_what_they_say(here: Path, name: str) -> None:
    module = importlib.import_module(name)
    done = doctest.testmod(module)
    assert done.failed == 0
    assert (done.attempted > 0) == (
        name not in ("vdiff.api.images", "vdiff.api.paths", "vdiff.api.card_html")
    )


def test_the_examples_of_the_documentation_give_what_they_say(here: Path) -> None:
    done = doctest.testfile(str(DOCS), module_relative=False)
    assert (done.failed, done.attempted > 8) == (0, True)


def sources() -> Iterator[str]:
    """The Python lines of every example of the API that a test runs."""
    parser = doctest.DocTestParser()
    for text in (DOCS.read_text("utf-8"), *(inspect.getsource(each) for each in modules())):
        yield from (example.source + example.want for example in parser.get_examples(text))
    for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"]:
        yield "".join(cell["source"]) if cell["cell_type"] == "code" else ""


def modules() -> list[ModuleType]:
    return [importlib.import_module(name) for name in MODULES]


@pytest.mark.parametrize("name", sorted(LISTED))
def test_every_name_has_an_example_that_runs(name: str) -> None:
    text = "\n".join(sources())
    members = {*LISTED[name]} - {name}
    if not members:
        assert re.search(rf"\b{name}\b", text)
    # a class is seen by what it gives: `model.card` is a `ModelCard`
    assert [each for each in members if not re.search(rf"\.{each}\b|\b{each}=", text)] == []


PACKAGES_NAMES = [
    name for name in public_types.listed(DOCS.read_text("utf-8")) if name.count(".") > 1
]
"""What docs/api.md lists for packages with kinds of their own,
as in `vdiff.config.free_to_change`.
"""


def imported(folder: Path) -> set[str]:
    """What the Python files of a folder import from vdiff, and what they use of its modules."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vdiff."):
                found |= {f"{node.module}.{each.name}" for each in node.names}
            elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("conformance."):
                found.add(f"vdiff.{ast.unparse(node)}")
    return found


def test_what_the_example_package_uses_is_listed() -> None:
    errors = {f"vdiff.errors.{name}" for name in vdiff.__all__}
    assert imported(EXAMPLE) - errors <= set(PACKAGES_NAMES)


@pytest.mark.parametrize("name", PACKAGES_NAMES)
def test_a_name_for_packages_is_documented_and_has_an_example_that_runs(name: str) -> None:
    place, _, own = name.rpartition(".")
    module = importlib.import_module(place)
    value = getattr(module, own)
    if isinstance(value, type) or inspect.isfunction(value):
        assert value.__doc__
        assert not value.__doc__.startswith(f"{own}("), "that is the signature, no sentence"
    if name in imported(EXAMPLE):
        return
    finder = doctest.DocTestFinder()
    examples = [each for test in finder.find(module, globs={}) for each in test.examples]
    text = "\n".join([*sources(), *(each.source for each in examples)])
    assert re.search(rf"\b{own}\b", text)
    assert doctest.testmod(module).failed == 0


def test_a_type_that_is_not_complete_is_told_with_what_it_belongs_to() -> None:
    symbols = [
        {"name": "a.Model", "isTypeKnown": True, "diagnostics": []},
        {
            "name": "a.api.Model",
            "alternateNames": ["a.Model"],
            "isTypeKnown": True,
            "diagnostics": [],
        },
        {"name": "a.api.Model.card", "isTypeKnown": False, "diagnostics": [{"message": "odd"}]},
        {"name": "a.api.Model._own", "isTypeKnown": False, "diagnostics": []},
        {"name": "a.api.Other", "isTypeKnown": False, "diagnostics": []},
    ]
    assert public_types.incomplete(["a.Model"], symbols) == ["a.api.Model.card: odd"]
    told = public_types.incomplete(["a.api.Other", "a.Gone"], symbols)
    assert told == [
        "a.Gone: there is no such name",
        "a.api.Other: something in it has no complete type",
    ]


def test_the_names_whose_types_are_checked_are_all_that_are_listed() -> None:
    names = public_types.listed(DOCS.read_text("utf-8"))
    assert {f"vdiff.{name}" for name in vdiff.__all__} < set(names)
    assert "vdiff.samplers.sampler.Sampler" in names


def test_the_notebook_runs_and_shows_something_in_every_cell(here: Path) -> None:
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert '"runs/digits"' in cells[0]
    cells[0] = cells[0].replace("runs/digits", "runs/tiny")
    names: dict[str, Any] = {}
    shown = [type(value).__name__ for value in (run_cell(cell, names) for cell in cells)]
    assert shown == ["Run", "Model", *["ImageBatch"] * 3, "str", "dict", "Store", "Report"]
    assert notebook["nbformat"] == 4
    assert [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"] == [
        []
    ] * len(cells)


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Run a cell as a notebook does, and give the value of its last line."""
    body = ast.parse(source).body
    if isinstance(body[-1], ast.Expr):
        body[-1] = ast.Assign([ast.Name("shown", ast.Store())], body[-1].value)
    names["shown"] = None
    exec(compile(ast.fix_missing_locations(ast.Module(body, [])), "cell", "exec"), names)
    value = names["shown"]
    for method in ("_repr_html_", "_repr_png_"):
        if hasattr(value, method):
            assert getattr(value, method)()
    return value


def test_the_wheel_tells_type_checkers_that_it_has_types(tmp_path: Path) -> None:
    """PEP 561: without the file `py.typed` they take everything for unknown."""
    builders = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    for part in ("vdiff", "recipes"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, tmp_path / part)
    [wheel] = builders.WheelBuilder(str(tmp_path)).build(directory=str(tmp_path / "dist"))
    with zipfile.ZipFile(io.BytesIO(Path(wheel).read_bytes())) as archive:
        assert {"vdiff/py.typed", "vdiff/api/model.py"} <= set(archive.namelist())
