"""Would the tests see a mistake? Seeded small mistakes in the code, one at a time, and the tests
that concern it.

    python -m benchmarks.mutations --count 150 --seed 0 --processes 2

It works on a copy of the tree in a temporary folder. For each mistake (mutant) those test files run
that import the changed module themselves or through a helper, the quick ones first, until one
fails: the mutant was seen. One that hangs or ends the process was seen too. Printed are the share
that was seen, by room, and every mutant that was not, but for those of which EXPLAINED says why
nobody can see them.

A worker imports torch and the other packages once and forks for every mutant. Of the test files the
quickest are taken that together compute no longer than --seconds. With --work FOLDER, what is known
stays there, and the same command goes on where it was; with --again it tries once more what was not
seen, so that another one, with more --seconds and --most, lets the slow tests have a look too.
"""

import argparse
import ast
import contextlib
import difflib
import importlib
import json
import math
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from benchmarks.mutants import Mutant, drawn, mutants

ROOT = Path(__file__).parents[1]
ROOMS = (
    *("vdiff/diffusion", "vdiff/objectives", "vdiff/samplers", "vdiff/training", "vdiff/metrics"),
    *("vdiff/reporting/verdict.py", "vdiff/randomness.py"),
)
COPIED = (
    "vdiff",
    "tests",
    "benchmarks",
    "recipes",
    "examples",
    "pyproject.toml",
    "README.md",
    "docs",
    "Makefile",
    "LICENSE",
)
MOST_BYTES = 8 << 30
"""Of memory for a mutant: one that asks for more was seen."""

_BY_TABLE = ("tests/test_fidelity.py", "tests/test_every_metric.py")
ALSO = {
    "vdiff/metrics/extractor.py": _BY_TABLE,
    "vdiff/metrics/fidelity.py": _BY_TABLE,
    "vdiff/metrics/reference.py": _BY_TABLE,
    "vdiff/reporting/verdict.py": ("tests/test_report.py",),
    "vdiff/samplers/ddim.py": ("tests/test_every_sampler.py",),
    "vdiff/samplers/ancestral.py": ("tests/test_every_sampler.py",),
    "vdiff/diffusion/schedule.py": ("tests/test_every_schedule.py",),
    "vdiff/objectives/denoising.py": ("tests/test_objectives.py",),
    "vdiff/objectives/progressive.py": ("tests/test_objectives.py",),
}
"""Tests that reach a module by a table of kinds or by the command line."""

_HUNG = "hung"
_ANSWERS_NO = "whoever asks takes both for no"
_EXACT = "to rounding, more of them give the same components"
EXPLAINED: dict[tuple[str, str, str], str] = {
    ("vdiff/machine/differences.py", 'return ""', "return None"): _ANSWERS_NO,
    ("vdiff/reporting/verdict.py", "return False", "return None"): _ANSWERS_NO,
    ("vdiff/metrics/frechet.py", "16", "(17)"): _EXACT,
    ("vdiff/metrics/frechet.py", "8", "(9)"): _EXACT,
    (
        "vdiff/machine/graphed.py",
        "each is None",
        "(each is not None)",
    ): "only a GPU records; the tests marked `gpu` see it",
    (
        "vdiff/diffusion/schedule.py",
        "trajectory(1e-4, ge=_SMALLEST_BETA, lt=1)",
        "(trajectory(0.0001, ge=_SMALLEST_BETA))",
    ): "a first beta of 1 is refused for the signal that it leaves, too",
    (
        "vdiff/machine/tracker.py",
        "folder.mkdir(parents=True, exist_ok=True)",
        "(folder)",
    ): "Weights & Biases makes the folder, too; without our line it might choose another one",
}
"""(file, old, new) of mutants that change nothing that anybody can see, and why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the mutants, have them tried, print what was seen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=150, help="mutants to try")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument(
        "--only", action="append", help="a file or room, such as vdiff/samplers; may be repeated"
    )
    parser.add_argument("--processes", type=int, default=2, help="workers at a time")
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="that the tests of a mutant may compute"
    )
    parser.add_argument(
        "--most", type=float, default=40.0, help="seconds that a test file may compute at all"
    )
    parser.add_argument("--again", action="store_true", help="try once more what was not seen")
    parser.add_argument(
        "--prefix", default="", help="what each worker is started with, such as `nice -n 19`"
    )
    parser.add_argument(
        "--tree", type=Path, default=ROOT, help="the checkout whose code and tests are meant"
    )
    parser.add_argument(
        "--work", type=Path, help="folder that keeps what is known; a temporary one if left out"
    )
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        return _work(options.worker, options.seconds, options.most)
    with tempfile.TemporaryDirectory(prefix="vdiff-mutations-") as scratch:
        work = (options.work or Path(scratch)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        chosen = _chosen(options.tree, options.only or ROOMS, options.count, options.seed)
        _try_all(chosen, work, options)
        _report(chosen, _known(work), options.tree)
    return 0


def _chosen(tree: Path, rooms: Sequence[str], count: int, seed: int) -> list[Mutant]:
    found: list[Mutant] = []
    for room in rooms:
        files = sorted((tree / room).rglob("*.py")) if (tree / room).is_dir() else [tree / room]
        for path in files:
            found += mutants(path.relative_to(tree).as_posix(), path.read_text(encoding="utf-8"))
    print(
        f"{len(found)} mutants in {len(rooms)} rooms, "
        f"of which {min(count, len(found))} are tried (seed {seed})"
    )
    return drawn(found, count, seed)


def _try_all(chosen: Sequence[Mutant], work: Path, options: argparse.Namespace) -> None:
    """Have workers try what is not known yet."""
    known = {name for name, result in _known(work).items() if result["seen"] or not options.again}
    left = [mutant for mutant in chosen if _name(mutant) not in known]
    if options.again:
        _Seconds(work / "seconds.json", work, options.most).forget_left_out()
    running = []
    for number in range(options.processes if left else 0):
        home = work / f"worker-{number}"
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        for name in COPIED:
            source = options.tree / name
            if source.is_dir():
                shutil.copytree(
                    source, home / "tree" / name, ignore=shutil.ignore_patterns("__pycache__")
                )
            elif source.exists():
                shutil.copy(source, home / "tree" / name)
        (home / "mutants.json").write_text(json.dumps(left[number :: options.processes]))
        command = [
            *shlex.split(options.prefix),
            sys.executable,
            "-m",
            "benchmarks.mutations",
            "--worker",
            str(home),
        ]
        command += ["--seconds", str(options.seconds), "--most", str(options.most)]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        running.append(subprocess.Popen(command, env=environment, cwd=ROOT))
    try:
        for worker in running:
            if worker.wait():
                raise SystemExit(f"a worker ended with {worker.returncode}")
    finally:
        for worker in running:
            worker.terminate()


def _name(mutant: Mutant) -> str:
    return json.dumps([*mutant.key, mutant.line])


def _known(work: Path) -> dict[str, dict[str, Any]]:
    """What came of each mutant that was tried: {seen, by, seconds}."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(work.glob("results*.jsonl")):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            name = entry.pop("mutant")
            if name not in found or entry["seen"]:
                found[name] = entry
    return found


# The worker


def _work(home: Path, most_seconds: float, most_of_a_file: float) -> int:
    """Try the mutants of one worker; each result is a line in the folder above."""
    tree, results = home / "tree", home.parent / f"results-{home.name}.jsonl"
    os.chdir(tree)
    sys.path[:] = [
        str(tree),
        *(place for place in sys.path if Path(place or ".").resolve() != ROOT),
    ]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.dont_write_bytecode = True
    os.environ["PYTHONPATH"] = str(tree)  # for what tests start
    _import_packages()
    seconds = _Seconds(home.parent / "seconds.json", home, most_of_a_file)
    for entry in json.loads((home / "mutants.json").read_text()):
        mutant = Mutant(*entry)
        files = seconds.quickest(concerned(tree, mutant.path), most_seconds)
        source = (tree / mutant.path).read_text(encoding="utf-8")
        (tree / mutant.path).write_text(mutant.applied(source), encoding="utf-8")
        try:
            code, told, took = _run(home, files, 30 + 3 * sum(map(seconds.of, files)))
        finally:
            (tree / mutant.path).write_text(source, encoding="utf-8")
        result = {
            "mutant": _name(mutant),
            "seen": code != 0,
            "by": told,
            "seconds": took,
            "files": len(files),
        }
        with results.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(
            f"{'seen' if code else 'NOT SEEN'} in {took} s: {mutant.path}:{mutant.line} {told}",
            flush=True,
        )
    return 0


class _Seconds:
    """How long each test file computes with the code as it is; infinite for one that fails then."""

    def __init__(self, path: Path, home: Path, most: float) -> None:
        self._path, self._home, self._most = path, home, most

    def forget_left_out(self) -> None:
        """Measure the files again that failed or took too long."""
        known = {file: seconds for file, seconds in self._read().items() if seconds < math.inf}
        self._path.write_text(json.dumps(known, indent=1))

    def quickest(self, files: Sequence[str], most: float) -> list[str]:
        """The quick ones, quickest first, that together take no longer; one at least."""
        found = sorted((file for file in files if self.of(file) < math.inf), key=self.of)
        until = list(accumulate(map(self.of, found)))
        return [file for file, passed in zip(found, until, strict=True) if passed <= most] or found[
            :1
        ]

    def of(self, file: str) -> float:
        known = self._read()
        if file not in known:
            code, told, took = _run(self._home, [file], self._most)
            print(f"{file}: {took} s{f', left out: {told}' if code else ''}", flush=True)
            known = self._read() | {file: math.inf if code else took}
            self._path.write_text(json.dumps(known, indent=1))
        return known[file]

    def _read(self) -> dict[str, float]:
        return dict(json.loads(self._path.read_text())) if self._path.exists() else {}


def _import_packages() -> None:
    """Everything that takes long to import, but nothing of vdiff."""
    needed = [
        "accelerate.tracking",
        "hypothesis",
        "PIL.Image",
        "pydantic",
        "pytest",
        "safetensors.torch",
        "torch._dynamo",
    ]
    for name in (
        *needed,
        "torchvision",
        "torch_fidelity",
        "skimage.metrics",
        "diffusers",
        "torch.utils.tensorboard",
    ):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)


def _run(home: Path, files: Sequence[str], limit: float) -> tuple[int, str, float]:
    """Run test files in a fork until one fails.

    limit: seconds that it may compute; it may wait for others four times as long.
    Returns pytest's exit code, not 0 for a process that hung or died; words; and the seconds that
    it computed.
    """
    if not files:
        return 0, "no test concerns it", 0.0
    output = home / "output.txt"
    child = os.fork()
    if child == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit)))
        with output.open("w") as file:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            os._exit(_tested(home, files))
    return _ended(child, 4 * limit, output)


def _tested(home: Path, files: Sequence[str]) -> int:
    import pytest

    os.environ["TMPDIR"] = tempfile.tempdir = str(home)
    # packages that bring a plugin for pytest are imported before it here
    early = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    options = [
        *early,
        "-x",
        "-q",
        "--no-header",
        "--tb=no",
        "-p",
        "no:cacheprovider",
        f"--basetemp={home / 'temporary'}",
    ]
    try:
        code = int(pytest.main([*options, "--hypothesis-seed=0", *files]))
    except BaseException as err:  # whatever a mutant does, its process ends here
        print(f"FAILED {type(err).__name__}: {err}")
        code = 1
    sys.stdout.flush()
    return code


def _ended(child: int, limit: float, output: Path) -> tuple[int, str, float]:
    deadline = time.monotonic() + limit
    try:
        done, status, used = os.wait4(child, os.WNOHANG)
        while not done and time.monotonic() < deadline:
            time.sleep(0.05)
            done, status, used = os.wait4(child, os.WNOHANG)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # with all that its tests have started
    if not done:
        _, status, used = os.wait4(child, 0)
    seconds = round(used.ru_utime + used.ru_stime, 1)
    code = os.waitstatus_to_exitcode(status)
    if not done or code == -signal.SIGXCPU:
        return 1, _HUNG, seconds
    if code < 0:
        return 1, f"killed by signal {-code}", seconds
    failed = [
        line
        for line in output.read_text(errors="replace").splitlines()
        if line.startswith(("FAILED", "ERROR"))
    ]
    return code, failed[0][:150] if failed else "", seconds


# Which tests concern a module


def concerned(tree: Path, path: str) -> list[str]:
    """The test files that import the module at `path`, themselves or by a helper beside them.

    Where none does, those that import a module which imports it, and so on.
    """
    tests = sorted((tree / "tests").glob("test_*.py"))
    sources = {file: _module(file, tree) for file in sorted((tree / "vdiff").rglob("*.py"))}
    also = [file for file in ALSO.get(path, ()) if (tree / file).exists()]
    wanted, known = {_module(tree / path, tree)}, set[str]()
    while wanted - known:
        found = [
            file.relative_to(tree).as_posix() for file in tests if wanted & _imports(file, tree)
        ]
        if found:
            return sorted({*found, *also})
        known |= wanted
        wanted = {module for file, module in sources.items() if wanted & _imports(file, tree)}
    return also


def _module(file: Path, tree: Path) -> str:
    return (
        file.relative_to(tree)
        .as_posix()
        .removesuffix(".py")
        .removesuffix("/__init__")
        .replace("/", ".")
    )


@cache
def _imports(file: Path, tree: Path) -> frozenset[str]:
    """Dotted names of the modules of vdiff that a file imports,
    a test also through helpers beside it.
    """
    found: set[str] = set()
    for name in _named(ast.parse(file.read_text(encoding="utf-8"))):
        helper = tree / f"{name.replace('.', '/')}.py"
        if (
            name.startswith("tests.")
            and helper.is_file()
            and not name.startswith(("tests.tiny", "tests.test_"))
        ):
            found |= _imports(helper, tree)
        elif name.startswith("vdiff"):
            found.add(name)
    return frozenset(found)


def _named(parsed: ast.Module) -> Iterator[str]:
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


# What is told


def _report(chosen: Sequence[Mutant], known: dict[str, dict[str, Any]], tree: Path) -> None:
    tried = [(mutant, known[_name(mutant)]) for mutant in chosen if _name(mutant) in known]
    rooms = Counter(_room(mutant) for mutant, _ in tried)
    seen = Counter(_room(mutant) for mutant, result in tried if result["seen"])
    explained = Counter(
        _room(mutant) for mutant, result in tried if not result["seen"] and mutant.key in EXPLAINED
    )
    print("\n| room | tried | seen | explained | neither |\n|---|---|---|---|---|")
    for room in sorted(rooms):
        print(_row(room, rooms[room], seen[room], explained[room]))
    print(_row("all", rooms.total(), seen.total(), explained.total()))
    hung = sum(result["by"] == _HUNG for _, result in tried)
    print(f"\n{hung} of those seen hung." if hung else "")
    for mutant, result in tried:
        if not result["seen"]:
            _show(mutant, tree, result)


def _row(name: str, tried: int, seen: int, explained: int) -> str:
    return (
        f"| {name} | {tried} | {seen} ({seen / max(tried, 1):.0%}) | {explained} | "
        f"{tried - seen - explained} |"
    )


def _room(mutant: Mutant) -> str:
    parts = mutant.path.split("/")
    return "/".join(parts[1:2]) if len(parts) > 2 else parts[-1]


def _show(mutant: Mutant, tree: Path, result: dict[str, Any]) -> None:
    why = EXPLAINED.get(mutant.key)
    print(
        f"\n{mutant.path}:{mutant.line}: {mutant.kind}, "
        f"{'explained: ' + why if why else 'not seen'}"
    )
    if not why:
        before = (tree / mutant.path).read_text(encoding="utf-8")
        lines = difflib.unified_diff(
            before.splitlines(), mutant.applied(before).splitlines(), n=0, lineterm=""
        )
        print("\n".join(line for line in lines if not line.startswith(("---", "+++", "@@"))))
        print(
            f"  ({result['files']} test files concern "
            f"it{': ' + result['by'] if result['by'] else ''})"
        )


if __name__ == "__main__":
    sys.exit(main())
