"""The house: who may import whom, one door per outside package,
and how long a file or a function may be.
"""

import ast
import importlib
import pkgutil
import re
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

import pytest

import vdiff
from vdiff.config import Section, effect_of
from vdiff.field_docs import field_docs

ROOT = Path(vdiff.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

FLOORS = [
    {"choices", "errors", "field_docs"},
    {"system"},
    {"config", "phases", "randomness"},
    {"diffusion", "disk"},
    {"images", "networks"},
    {"data", "digits", "formats", "machine", "objectives", "samplers"},
    {"metrics", "model_folder", "training"},
    {"drawing", "recipe", "runs"},
    {"chain", "conformance", "evaluation", "exchange"},
    {"reporting"},
    {"api"},
    {"cli"},
]
"""From the ground up: an import points to a lower floor, or stays in its room.
There are no exceptions.
"""

DOORS = {
    "lmdb": {
        "data/lmdb_pages.py",
        "data/opened.py",
        "data/store.py",
        "data/store_writer.py",
    },
    "PIL": {"images"},
    "safetensors": {"formats/weights.py", "model_folder/checkpoint.py"},
    "huggingface_hub": {"exchange/hub.py"},
    "accelerate": {
        "machine/processes.py",
        "machine/tracker_kinds.py",
        "machine/weights_and_biases.py",
    },
    "wandb": {"machine/weights_and_biases.py"},
    "yaml": {"recipe/strict_yaml.py"},
    "typer": {"cli"},
    "click": {"cli"},
    "rich": {"cli"},
    "pydantic": {
        "config.py",
        "data/lmdb_section.py",
        "data/metadata.py",
        "diffusion/continuous.py",
        "diffusion/inside.py",
        "diffusion/process.py",
        "diffusion/section.py",
        "field_docs.py",
        "metrics/table.py",
        "model_folder/card.py",
        "networks/edm_section.py",
        "networks/edm_unet_section.py",
        "networks/lucidrains_section.py",
        "networks/unet_section.py",
        "networks/unet_config.py",
        "recipe",
    },
    "torchvision": set(),
    "diffusers": {"formats/diffusers_network.py", "networks/diffusers_network.py"},
    "denoising_diffusion_pytorch": {"formats/lucidrains_library.py"},
    "onnx": {"formats/onnx_writing.py"},
    "onnxruntime": {"formats/onnx_writing.py"},
    "sklearn": set(),
    "torch_fidelity": {"metrics/extractor.py", "metrics/fidelity.py"},
}
"""Where an outside package may be imported: files, or a whole room."""

NO_TORCH = (
    "cli/",
    "recipe/",
    "choices.py",
    "config.py",
    "errors.py",
    "disk/",
    "system/",
    "chain/plan.py",
    "model_folder/card.py",
    "reporting/inspection.py",
    "runs/contents.py",
    "runs/folder.py",
    "runs/status.py",
)
"""Files, or beginnings of paths, that import nothing that imports torch;
nor does any `__init__` of a package.
"""
HEAVY = ("torch", "torchvision", "accelerate", "safetensors")
MOST_LINES = 370
MOST_LINES_OF_A_COMMAND = 405
"""Of a file: a command states its options, each with its help, in one place."""
SECTIONS_OF_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@pytest.fixture(scope="module", autouse=True)
def trees() -> Iterator[None]:
    """What was read for these tests is forgotten after them: it is large."""
    yield
    tree.cache_clear()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Dotted names of the modules that are imported, `from a import b` as `a.b`."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when the module is imported: not the inside of functions,
    nor what is only there for a type checker.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, SECTIONS_OF_FUNCTIONS):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from at_import(child)


def test_every_room_has_a_floor() -> None:
    known = set().union(*FLOORS) | {"__init__", "__main__"}
    assert {room(path) for path in FILES} <= known
    assert known <= {room(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=short)
def test_an_import_points_down(path: Path) -> None:
    here = room(path)
    if here in ("__init__", "__main__"):
        return
    floor = next(number for number, rooms in enumerate(FLOORS) if here in rooms)
    below = set().union(*FLOORS[:floor])
    for name in imported(ast.walk(tree(path))):
        if not name.startswith("vdiff."):
            continue
        there = name.split(".")[1]
        if there not in ("__version__", here):
            assert there in below, f"{short(path)} imports {name}, which is not below it"


def test_no_modules_import_each_other_in_a_circle() -> None:
    """What is imported inside functions counts only where it must:
    such imports are there to break circles.
    """
    modules = {module(path): path for path in FILES}
    left = {
        name: {
            there for there in imported(at_import(tree(path))) for there in known(there, modules)
        }
        - {name}
        for name, path in modules.items()
    }
    while free := {name for name, imports in left.items() if not imports}:
        left = {name: imports - free for name, imports in left.items() if name not in free}
    assert left == {}


def module(path: Path) -> str:
    return ".".join(["vdiff", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(
        ".__init__"
    )


def known(name: str, modules: Collection[str]) -> list[str]:
    """The module that is meant by `vdiff.a.b`, or by the name `b` in the module `vdiff.a`."""
    return [found for found in (name, name.rpartition(".")[0]) if found in modules][:1]


def test_the_plan_of_the_house_has_the_floors_that_are_tested() -> None:
    page = (ROOT.parent / "docs" / "architecture.md").read_text("utf-8")
    plan = page.partition("## Who may import whom")[2].split("```")[1]
    rows = [set(re.split(r",\s*", line.strip())) for line in plan.strip().splitlines()]
    assert rows[::-1] == FLOORS


def test_the_plan_of_the_house_names_every_room() -> None:
    page = (ROOT.parent / "docs" / "architecture.md").read_text("utf-8")
    plan = page.partition("## Rooms")[2].split("```")[1]
    named = set(re.findall(r"^  (?:  )?([a-z_]+)(?:/|\.py)", plan, re.MULTILINE)) | set(
        re.findall(r" ([a-z_]+)\.py", plan)
    )
    rooms = {room(path) for path in FILES} - {"__init__", "__main__"}
    assert rooms <= named
    assert all((ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file() for name in rooms)


@pytest.mark.parametrize("path", FILES, ids=short)
def test_outside_packages_come_in_by_one_door(path: Path) -> None:
    for name in imported(ast.walk(tree(path))):
        doors = DOORS.get(name.partition(".")[0])
        assert doors is None or {short(path), room(path)} & doors, f"{short(path)} imports {name}"


def test_every_door_is_used() -> None:
    used = {name.partition(".")[0] for path in FILES for name in imported(ast.walk(tree(path)))}
    assert {package for package, doors in DOORS.items() if doors} - {"click"} <= used


LIGHT = [path for path in FILES if short(path).startswith(NO_TORCH) or path.name == "__init__.py"]


@cache
def modules(path: Path) -> set[str]:
    """What a file imports: modules of vdiff, with their packages, and of others the first name."""
    found = set()
    for name in imported(at_import(tree(path))):
        package, *inner = name.split(".")
        if package != "vdiff":
            found.add(package)
        found |= {
            ".".join([package, *inner[:depth]])
            for depth in range(len(inner) + 1)
            if package == "vdiff"
        }
    return found


def way_to_torch(path: Path, seen: set[Path]) -> list[str]:
    """The files through which a file imports something heavy when it is imported itself;
    none if it does not.
    """
    seen.add(path)
    for name in sorted(modules(path)):
        if name in HEAVY:
            return [short(path), name]
        place = ROOT.parent.joinpath(*name.split("."))
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file in FILES and file not in seen:
                way = way_to_torch(file, seen)
                if way:
                    return [short(path), *way]
    return []


@pytest.mark.parametrize("path", LIGHT, ids=short)
def test_torch_is_not_imported_where_an_answer_should_be_quick(path: Path) -> None:
    """Nor is it by way of another file."""
    assert way_to_torch(path, set()) == []


def test_a_way_to_torch_through_other_files_is_seen() -> None:
    way = way_to_torch(ROOT / "evaluation" / "known_rows.py", set())
    assert len(way) > 2, way
    assert way[-1] in HEAVY


@pytest.mark.parametrize("path", FILES, ids=short)
def test_a_file_is_short_and_says_what_it_knows(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= (MOST_LINES_OF_A_COMMAND if room(path) == "cli" else MOST_LINES)
    assert lines[0].startswith('"""')
    assert ast.get_docstring(tree(path))


@pytest.mark.parametrize("path", FILES, ids=short)
def test_a_function_is_short(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, SECTIONS_OF_FUNCTIONS):
            assert (node.end_lineno or 0) - node.body[0].lineno + 1 <= 60, node.name


def test_half_of_all_functions_have_at_most_eight_lines() -> None:
    lengths = sorted(
        (node.end_lineno or 0) - node.lineno + 1
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, SECTIONS_OF_FUNCTIONS)
    )
    assert lengths[len(lengths) // 2] <= 8


def test_no_file_is_a_drawer_for_everything() -> None:
    assert {path.stem for path in FILES} & {
        "utils",
        "util",
        "common",
        "helpers",
        "types",
        "constants",
        "misc",
    } == set()


SAFE_READERS = ("exchange/proof.py", "formats/weights.py")
"""Where a stranger's file is opened: by readers that build arrays and tensors, and nothing else."""


@pytest.mark.parametrize("path", [ROOT / name for name in SAFE_READERS], ids=short)
def test_the_safe_readers_say_that_they_are_safe(path: Path) -> None:
    """Each call names the argument that keeps code out, with the value that does."""
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    named = {"torch.load": "weights_only=True", "np.load": "allow_pickle=False"}
    readers = [call for call in calls if ast.unparse(call.func) in named]
    assert readers
    for call in readers:
        given = [ast.unparse(keyword) for keyword in call.keywords]
        assert named[ast.unparse(call.func)] in given
    others = [call for call in calls if call not in readers]
    assert not {"eval", "exec"} & {ast.unparse(call.func) for call in others}


@pytest.mark.parametrize("path", FILES, ids=short)
def test_nothing_can_run_code_from_a_file(path: Path) -> None:
    parsed = tree(path)
    packages = {name.partition(".")[0] for name in imported(ast.walk(parsed))}
    if short(path) in SAFE_READERS:
        return
    assert not {"pickle", "dill", "marshal", "shelve", "joblib"} & packages
    for node in ast.walk(parsed):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "torch.load"), (
                called
            )
            assert not any(
                keyword.arg in ("weights_only", "allow_pickle") for keyword in node.keywords
            ), called


def all_sections() -> list[type[Section]]:
    for module in pkgutil.walk_packages(vdiff.__path__, "vdiff."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, waiting = [], [Section]
    while waiting:
        inner = [
            each for each in waiting.pop().__subclasses__() if each.__module__.startswith("vdiff.")
        ]
        found += inner
        waiting += inner
    return sorted(set(found), key=lambda section: section.__name__)


SECTIONS = all_sections()


def test_the_sections_are_found() -> None:
    assert {"Recipe", "TrainSection", "UNetSection", "LmdbImagesSection"} <= {
        each.__name__ for each in SECTIONS
    }


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_field_says_whether_it_changes_the_weights(section: type[Section]) -> None:
    for name in section.model_fields:
        assert effect_of(section, name) in ("trajectory", "harmless"), name


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_field_and_section_is_explained(section: type[Section]) -> None:
    assert section.__doc__
    docs = field_docs(section)
    for name in section.model_fields:
        assert name == "kind" or docs.get(name), name
