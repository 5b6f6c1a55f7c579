"""The tests themselves: each can fail, because it asserts something whatever happens."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import LONGEST
from vdiff.cli import main
from vdiff.cli.options import mode

TESTS = sorted(Path(__file__).parent.rglob("test_*.py"))

CHECKERS = {
    "_assert_uncorrelated",
    "assert_harmless",
    "assert_near",
    "assert_refused",
    "assert_same_function",
}
"""Our own functions that assert something in every call."""

STATEMENTS = (ast.FunctionDef, ast.AsyncFunctionDef)
EXPECTS = {"raises", "warns", "fail", "assert_close"}
"""Functions of pytest and torch that can fail a test."""
CONFORMANCE = {
    f"conformance.check{kind}" for kind in ("", "_dataset", "_metric", "_network", "_objective")
}
"""Theorems of `vdiff.conformance` that a kind must keep;
`test_conformance.py` sees each of them fail.
"""


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, STATEMENTS):
            yield node


def name_of(call: ast.Call) -> str:
    return ast.unparse(call.func).rpartition(".")[2]


def can_fail(node: ast.AST) -> bool:
    """Whether something in it asserts: not in a handler of errors,
    nor in a function of its own, which may not run.
    """
    if isinstance(node, ast.Assert):
        return True
    if isinstance(node, ast.Call) and (
        name_of(node) in EXPECTS | CHECKERS or ast.unparse(node.func) in CONFORMANCE
    ):
        return True
    skipped = (*STATEMENTS, ast.Lambda, ast.ExceptHandler)
    return any(
        can_fail(each) for each in ast.iter_child_nodes(node) if not isinstance(each, skipped)
    )


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_every_test_asserts_something(path: Path) -> None:
    found = [
        node.name
        for node in functions(path)
        if node.name.startswith("test_") and not can_fail(node)
    ]
    assert not found, "these pass whatever the code does"


def test_every_checker_is_there_and_asserts_itself() -> None:
    found = {
        node.name: can_fail(node)
        for path in TESTS
        for node in functions(path)
        if node.name in CHECKERS
    }
    assert found == dict.fromkeys(CHECKERS, True)


@pytest.mark.parametrize(
    ("body", "fails"),
    [
        ("assert x", True),
        ("with pytest.raises(ValueError): work()", True),
        ("for each in all: assert each", True),
        ("assert_refused(x)", True),
        ("work()", False),
        ("try: work()\n except ValueError as err: assert err", False),
        ("def inner(): assert x", False),
    ],
)
def test_what_counts_as_an_assertion(body: str, fails: bool) -> None:
    assert can_fail(ast.parse(f"def test():\n {body}").body[0]) == fails


def test_the_files_that_are_begun_first_are_there() -> None:
    assert [name for name in LONGEST if not (Path(__file__).parent / name).is_file()] == []
    assert len(set(LONGEST)) == len(LONGEST)


def test_one_test_that_asks_for_json_leaves_nothing_behind() -> None:
    assert main(["recipes", "ls", "--json"]) == 0
    assert mode.json


def test_the_next_one_talks_as_a_fresh_process() -> None:
    assert not mode.json
