"""One word, one meaning: words that the glossary of docs/architecture.md turns
down name nothing in vdiff.
"""

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import vdiff
from vdiff import config
from vdiff.metrics import metric

ROOT = Path(vdiff.__file__).parent
PAGE = (ROOT.parent / "docs" / "architecture.md").read_text("utf-8")
OTHERS = ("formats/", "model_folder/diffusers_files.py")
"""Files that read and write the words of other programs."""

ANNOTATED = {
    "index": r"Tensor",
    "model": r"Module",
    "phase": r"Stage",
    "step": r"Tensor",
}
"""Words that name something else too: where the annotation says so,
they name what the glossary means.
"""

IN_ROOMS = {
    "mark": ("disk", "model_folder", "runs", "chain", "config"),
    "step": ("training", "chain", "runs"),
}
"""Words that name something else too, in other rooms than these."""

GIVEN = {
    ("args", "machine/graphed.py"): "a parameter of torch's `__torch_dispatch__`",
    ("args", "machine/memory.py"): "a parameter of torch's `__torch_dispatch__`",
    ("args", "cli/app.py"): "a parameter of methods of click",
    ("step", "training/learner.py"): "one update, called as torch's optimizers call it",
    ("Against", "metrics/metric.py"): "the name of version 0.1, which other packages import",
    ("step", "objectives/progressive.py"): "the length of a sampler's step, in t",
}


def glossary() -> list[list[str]]:
    """The cells of each row: concept, words, meaning, words that are turned down."""
    table = PAGE.partition("## Glossary")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("| ").split(" |")] for row in rows[1:]]


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def turned_down() -> list[str]:
    cells = [row[3] for row in glossary() if len(row) == 4]
    return sorted({word for cell in cells for word in re.findall(r"`(\w+)`", cell)})


def named(tree: ast.AST) -> Iterator[tuple[str, str, int]]:
    """(name, its annotation, line) of all that a file gives a name."""
    for node in ast.walk(tree):
        match node:
            case ast.arg(arg=name, annotation=annotation, lineno=line):
                yield name, ast.unparse(annotation) if annotation else "", line
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, lineno=line):
                yield name, ast.unparse(annotation), line
            case ast.Name(id=name, ctx=ast.Store(), lineno=line):
                yield name, "", line
            case ast.Attribute(attr=name, ctx=ast.Store(), lineno=line):
                yield name, "", line
            case ast.FunctionDef(name=name, lineno=line) | ast.ClassDef(name=name, lineno=line):
                yield name, "", line


def misnamed(tree: ast.Module, word: str, room: str) -> list[int]:
    """Lines where a file names with this word what the glossary calls otherwise."""
    passed_on = {
        node.args.vararg.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.Lambda) and node.args.vararg
    }
    found = []
    for name, annotation, line in named(tree):
        if name.removeprefix("_") != word or (word == "args" and line in passed_on):
            continue
        has_other_sense = word in ANNOTATED or word in IN_ROOMS
        means_it = word in ANNOTATED and re.search(ANNOTATED[word], annotation) is not None
        if not has_other_sense or means_it or room in IN_ROOMS.get(word, ()):
            found.append(line)
    return found


@pytest.mark.parametrize("word", turned_down())
def test_a_word_that_the_glossary_turns_down_names_nothing(word: str) -> None:
    for path in sorted(ROOT.rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        if place.startswith(OTHERS) or (word, place) in GIVEN:
            continue
        room = place.partition("/")[0].removesuffix(".py")
        lines = misnamed(parsed(path), word, room)
        assert lines == [], f"{place}: `{word}` in lines {lines}; see the glossary of the house"


@pytest.mark.parametrize(
    ("code", "word", "room"),
    [
        ("def f(timestep): ...", "timestep", "samplers"),
        ("def f(index: 'Tensor'): ...", "index", "samplers"),
        ("class A:\n    model: nn.Module", "model", "training"),
        ("for step in updates: ...", "step", "training"),
        ("self.cfg = 1", "cfg", "recipe"),
        ("def f(args): ...", "args", "cli"),
        ("class Row: ...", "Row", "metrics"),
        ("def scheduler(): ...", "scheduler", "diffusion"),
        ("def f(mark: str): ...", "mark", "disk"),
    ],
)
def test_a_word_at_a_wrong_place_is_seen(code: str, word: str, room: str) -> None:
    assert misnamed(ast.parse(code), word, room) != []
    assert word in turned_down()


@pytest.mark.parametrize(
    ("code", "word", "room"),
    [
        ("def f(index: int): ...", "index", "data"),
        ("def f(*args): ...", "args", "cli"),
        ("def f(mark: str): ...", "mark", "data"),
        ("found.scheduler()", "scheduler", "diffusion"),
    ],
)
def test_a_word_in_another_sense_is_let_be(code: str, word: str, room: str) -> None:
    assert misnamed(ast.parse(code), word, room) == []


def test_what_is_given_from_outside_is_still_there() -> None:
    for word, place in GIVEN:
        tree = ast.parse((ROOT / place).read_text("utf-8"))
        assert any(name == word for name, _, _ in named(tree)), (word, place)


def test_classes_that_the_glossary_names_are_there() -> None:
    modules = [
        ".".join(["vdiff", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
        for path in ROOT.rglob("*.py")
        if path.name != "__main__.py"
    ]
    classes = {name for module in modules for name in vars(importlib.import_module(module))}
    cells = [f"{row[1]} {row[2]}" for row in glossary()]
    words = {word for cell in cells for word in re.findall(r"`([A-Z][A-Za-z]+)`", cell)}
    assert len(words) > 12
    assert words <= classes


def test_packages_that_were_written_for_version_0_1_find_the_names_of_then() -> None:
    assert config.trajectory is config.shapes_weights
    assert config.harmless is config.free_to_change
    assert metric.Against is metric.Reference
