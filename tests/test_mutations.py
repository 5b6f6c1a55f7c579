"""The benchmark of the tests: which mistakes it makes,
and that it tells seen ones from those that are not.
"""

import ast
from pathlib import Path

import pytest

import vdiff
from benchmarks.mutants import drawn, mutants
from benchmarks.mutations import ROOT, concerned, main

SCHEDULE = (Path(vdiff.__file__).parent / "diffusion/schedule.py").read_text(encoding="utf-8")


def changed(source: str) -> set[str]:
    """The last line of every mutant."""
    return {mutant.applied(source).splitlines()[-1].strip() for mutant in mutants("a.py", source)}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = a + b", {"x = (a - b)"}),
        ("x = a < b", {"x = (a <= b)", "x = (a > b)"}),
        ("x = a == b", {"x = (a != b)"}),
        ("x = a and not b", {"x = (a or not b)", "x = a and (b)"}),
        ("x = a is None", {"x = (a is not None)"}),
        ("x = 3", {"x = (4)"}),
        ("x = 0.5", {"x = (0.75)"}),
        ("x = True", {"x = (False)"}),
        ("x = -a", {"x = (a)"}),
        ("x = a if b else c", {"x = (c if b else a)"}),
        ("x = f(a, b=c)", {"x = (f(a))"}),
        ("x = a.b(c)", {"x = (a)"}),
        ("x = [a for a in b if c]", {"x = ([a for a in b])"}),
        ("f(a)", {"pass"}),
        ("a.b = c", {"pass"}),
        ("a += b", {"pass"}),
        ("raise a", {"pass"}),
        ("def f():\n return a", {"return None"}),
        ("def f():\n if a: g()", {"if (not (a)): g()", "if a: pass"}),
        ("@torch.no_grad()\ndef f(): h", set()),  # its last line stays
        ('"""Words."""', set()),
        ("x = f'{a + 1}'", set()),
        ("assert a < 3", set()),
        ("x: int = a", set()),
        ("import torch\nx = torch.cat(a)", set()),
    ],
)
def test_a_slip_of_each_kind_is_made_and_words_are_left_alone(
    source: str, expected: set[str]
) -> None:
    assert changed(source) - {source.splitlines()[-1].strip()} == expected


def test_a_gradient_that_is_not_stopped_is_a_mistake_too() -> None:
    (mutant,) = mutants("a.py", "@torch.no_grad()\ndef f(): h")
    assert mutant.applied("@torch.no_grad()\ndef f(): h").startswith(
        "@(lambda function: function)\n"
    )


def test_every_mutant_of_a_file_is_another_program() -> None:
    found = [mutant.applied(SCHEDULE) for mutant in mutants("schedule.py", SCHEDULE)]
    programs = {ast.dump(ast.parse(text)) for text in found}
    assert len(found) > 150
    assert len(programs) == len(found)
    assert ast.dump(ast.parse(SCHEDULE)) not in programs


def test_the_choice_is_that_of_the_seed_and_outlives_other_lines() -> None:
    candidates = mutants("schedule.py", SCHEDULE)
    one = drawn(candidates, 20, seed=1)
    assert one == drawn(candidates, 20, seed=1) != drawn(candidates, 20, seed=2)
    moved = drawn(mutants("schedule.py", "# a line more\n" + SCHEDULE), 20, seed=1)
    assert [mutant.key for mutant in moved] == [mutant.key for mutant in one]


def test_tests_that_import_a_module_concern_it_also_by_a_helper() -> None:
    found = concerned(ROOT, "vdiff/diffusion/schedule.py")
    # the second by toys.py
    assert {"tests/test_schedule.py", "tests/test_weighting.py"} <= set(found)
    assert "tests/test_digits.py" not in found
    # by the package's door
    assert "tests/test_depth.py" in concerned(ROOT, "vdiff/images/decoding/depth.py")


def test_what_is_seen_and_what_is_not_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in {
        "vdiff/__init__.py": "",
        "vdiff/sums.py": "def double(x):\n    return x + x\n\n\ndef unseen(x):\n    return x + 1\n",
        "tests/__init__.py": "",
        "tests/test_sums.py": (
            "from vdiff.sums import double\n\n\ndef test_it():\n    assert double(3) == 6\n"
        ),
    }.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_text(text)
    arguments = ["--tree", str(tmp_path / "tree"), "--only", "vdiff/sums.py", "--processes", "1"]
    assert main([*arguments, "--work", str(tmp_path / "work")]) == 0
    told = capsys.readouterr().out
    assert "5 mutants" in told
    assert "| sums.py | 5 | 2 (40%) | 0 | 3 |" in told
    assert told.count("not seen") == 3
    assert "-    return x + 1\n+    return (x - 1)" in told
    assert (tmp_path / "tree/vdiff/sums.py").read_text().count("x + 1") == 1
    assert main([*arguments, "--work", str(tmp_path / "work")]) == 0  # nothing is left to try
    assert "| sums.py | 5 | 2 (40%) | 0 | 3 |" in capsys.readouterr().out
