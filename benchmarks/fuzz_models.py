"""Does a damaged or hostile model file ever cost `vdiff import` more than a message? Seeded
mutations of real small files of every format.

    python -m benchmarks.fuzz_models --count 200 --seed 0 ../shared/data/foreign/*

Each case takes one file or folder, changes it (bytes, configurations, headers, the pickle and the
records of a zip file, tensors, links, files of another kind), and imports it against the outputs
that were recorded with it. Bad is: an error that is no message, a program that was run, a model
that was taken and computes something else, memory beyond a gigabyte, anything left behind.
"""

import argparse
import contextlib
import io
import json
import os
import pickletools
import random
import resource
import shutil
import struct
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vdiff import cli

GROWTH = 2**30
"""Bytes of address space that a case may ask for, beyond what is taken at the start."""

REFUSED = (2, 3, 4, 6)
"""Exit codes of a message that says what is wrong with what was given."""

ODD: list[Any] = [None, True, -1, 0, 1, 7, 10**12, 2**63, 1e308, 0.5, "", "\x1b[2J", "x" * 300]
ODD += [[], [10**12, 10**12], {}, {"a": 1}, "../../etc/passwd", "os.system", [[1]], float("nan")]


@dataclass(frozen=True)
class Specimen:
    """A whole model.   path: its file or folder.   options: of its import."""

    name: str
    path: Path
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What an import came to.   bad: why it is a fault of vdiff, empty if it is none."""

    name: str
    change: str
    code: int
    bad: str = ""


def specimens_in(folders: Sequence[Path]) -> list[Specimen]:
    """Those in folders with `expected.npz` beside the model, as `shared/data/foreign` has them."""
    found = []
    for folder in folders:
        expected = folder / "expected.npz"
        if not expected.is_file():
            continue
        files = [path for path in folder.iterdir() if path.suffix in (".pt", ".pkl")]
        path = files[0] if files else folder
        found.append(Specimen(folder.name, path, ("--expected", str(expected.resolve()))))
    return found


def attack(specimen: Specimen, count: int, seed: int, work: Path) -> Iterator[Outcome]:
    """`count` changed copies in `work`, which is empty, each imported."""
    for number in range(count):
        rng = random.Random(f"{specimen.name} {seed} {number}")
        place = work / "case"
        place.mkdir()
        copy = _copied(specimen.path, place)
        bait = place / "bait"
        change = _changed(rng, copy, bait)
        code, said = _imported(copy, specimen.options, work / "run")
        yield Outcome(specimen.name, change, code, _fault(code, said, bait, work))
        shutil.rmtree(place)
        shutil.rmtree(work / "run", ignore_errors=True)


def _copied(path: Path, place: Path) -> Path:
    copy = place / path.name
    if path.is_file():
        shutil.copyfile(path, copy)
    else:
        shutil.copytree(path, copy, ignore=shutil.ignore_patterns("expected.npz", "facts.json"))
    return copy


def _imported(path: Path, options: Sequence[str], run: Path) -> tuple[int, str]:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = cli.main(["import", str(path), "--out", str(run), *options])
    return code, said.getvalue()


def _fault(code: int, said: str, bait: Path, work: Path) -> str:
    if bait.exists():
        return "a program was run"
    if code not in (0, *REFUSED) or "a bug in vdiff" in said or "Traceback" in said:
        return f"no message: {said[-600:]}"
    if "out of memory" in said:
        return f"memory: {said[-300:]}"
    if "\x1b[2J" in said:
        return "the terminal was told something"
    left = sorted(path.name for path in work.iterdir() if path.name != "case")
    if left != (["run"] if code == 0 else []):
        return f"left behind: {left}"
    return ""


# ---- changes


def _changed(rng: random.Random, copy: Path, bait: Path) -> str:
    """Change a file or folder; what was done, for people."""
    path = copy
    if copy.is_dir():
        path = rng.choice(sorted(each for each in copy.rglob("*") if each.is_file()))
    ways: list[Callable[[random.Random, Path], str]] = [_bytes, _bytes, _other_kind]
    ways.append(lambda rng, path: _link(rng, path, bait.with_name("elsewhere")))
    if path.suffix == ".json":
        ways += [_json] * 8
    elif path.suffix == ".safetensors":
        ways += [_header] * 6
    elif zipfile.is_zipfile(path):
        ways += [_records] * 3 + [_pickle] * 3
        ways.append(lambda rng, path: _bait(path, bait))
    elif path.suffix == ".pkl":
        ways += [_bare_pickle] * 4
        ways.append(lambda rng, path: _bare_bait(path, bait))
    way = rng.choice(ways)
    return f"{path.name}: {way(rng, path)}"


def _bytes(rng: random.Random, path: Path) -> str:
    data = bytearray(path.read_bytes())
    told = [_some_bytes(rng, data) for _ in range(rng.choice((1, 1, 2, 5)))]
    path.write_bytes(data)
    return ", ".join(told)


def _some_bytes(rng: random.Random, data: bytearray) -> str:
    # most of what can be believed stands at the beginning and at the end
    near = rng.choice((64, 4096, max(len(data), 1)))
    start = min(rng.randrange(near), max(len(data) - 1, 0))
    if rng.random() < 0.3:
        start = max(len(data) - 1 - start, 0)
    length = rng.choice((1, 1, 4, 8, 100, 5000))
    end = min(start + length, len(data))
    way = rng.choice(("flip", "zero", "cut", "remove", "double", "large"))
    if way == "flip" and end > start:
        data[start] ^= 1 << rng.randrange(8)
    elif way == "zero":
        data[start:end] = bytes(end - start)
    elif way == "cut":
        del data[start:]
    elif way == "remove":
        del data[start:end]
    elif way == "double":
        data[start:start] = data[start:end]
    elif way == "large":
        data[start:end] = struct.pack("<Q", rng.choice((2**31, 2**40, 2**63 - 1)))[: end - start]
    return f"{way} {length} at {start}"


def _json(rng: random.Random, path: Path) -> str:
    content = json.loads(path.read_text("utf-8"))
    told = _odd(rng, content)
    path.write_text(json.dumps(content), "utf-8")
    return told


def _odd(rng: random.Random, content: Any) -> str:
    """Change one value somewhere in JSON."""
    while True:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        if not keys:
            return "nothing"
        key = rng.choice(keys)
        inner = content[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.5:
            content = inner
            continue
        if rng.random() < 0.15:
            del content[key]
            return f"without {key}"
        content[key] = rng.choice(ODD)
        return f"{key} = {content[key]!r}"[:100]


def _header(rng: random.Random, path: Path) -> str:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    told = _odd(rng, header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return f"header, {told}"


def _records(rng: random.Random, path: Path) -> str:
    records = _read(path)
    name = rng.choice(sorted(records))
    way = rng.choice(("drop", "shorten", "lengthen", "swap", "rename"))
    if way == "drop":
        del records[name]
    elif way == "shorten":
        records[name] = records[name][: len(records[name]) // 2]
    elif way == "lengthen":
        records[name] += bytes(64)
    elif way == "swap":
        other = rng.choice(sorted(records))
        records[name], records[other] = records[other], records[name]
    else:
        records[rng.choice((f"../{name}", f"{name}x", "/etc/x"))] = records.pop(name)
    _write(path, records)
    return f"{way} {name}"


def _pickle(rng: random.Random, path: Path) -> str:
    records = _read(path)
    name = next(each for each in records if each.endswith("data.pkl"))
    data = bytearray(records[name])
    told = _some_bytes(rng, data)
    records[name] = bytes(data)
    _write(path, records)
    return f"pickle, {told}"


def _bait(path: Path, bait: Path) -> str:
    records = _read(path)
    name = next(each for each in records if each.endswith("data.pkl"))
    records[name] = _with_call(records[name], bait)
    _write(path, records)
    return "a pickle that runs a program"


def _with_call(pickled: bytes, bait: Path) -> bytes:
    """A pickle that first has the system make the file `bait`, and then is as it was."""
    call = b"cposix\nsystem\n(Vtouch " + str(bait).encode() + b"\ntR0"
    # behind the two bytes of the protocol
    return pickled[:2] + call + pickled[2:]


def _bare_bait(path: Path, bait: Path) -> str:
    path.write_bytes(_with_call(path.read_bytes(), bait))
    return "a bare pickle that runs a program"


def _bare_pickle(rng: random.Random, path: Path) -> str:
    """Another class, another number (a size, a stride, a place), or another text in a bare pickle:
    what its instructions say, and not where they lie.
    """
    data = path.read_bytes()
    places = [
        (opcode.name, argument, place)
        for opcode, argument, place in pickletools.genops(data)
        if place is not None
        and opcode.name in ("BININT1", "BININT2", "BININT", "BINUNICODE", "SHORT_BINUNICODE")
    ]
    name, argument, place = rng.choice(places)
    changed = bytearray(data)
    if isinstance(argument, int):
        size = {"BININT1": 1, "BININT2": 2, "BININT": 4}[name]
        other = rng.choice((0, 1, 2, 2 ** (8 * size) - 1, rng.randrange(2 ** (8 * size))))
        changed[place + 1 : place + 1 + size] = other.to_bytes(size, "little")
        return f"{name} {argument} at {place} becomes {other}"
    text = str(argument).encode()
    start = place + 5 if name == "BINUNICODE" else place + 2
    other_text = rng.choice((b"os", b"posix", b"system", b"..", b"eval"))[: len(text)]
    changed[start : start + len(text)] = other_text.ljust(len(text), b" ")
    return f"text {argument!r:.40} becomes {other_text!r}"


def _read(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def _write(path: Path, records: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


def _other_kind(rng: random.Random, path: Path) -> str:
    """Something else under the file's name."""
    way = rng.choice(("arrays", "pickled arrays", "nothing", "a folder", "a page"))
    path.unlink()
    if way == "a folder":
        path.mkdir()
    elif way in ("arrays", "pickled arrays"):
        content = np.zeros(4) if way == "arrays" else np.array([{}], dtype=object)
        with path.open("wb") as file:
            np.savez(file, a=content)
    else:
        path.write_text("" if way == "nothing" else "<!DOCTYPE html><title>404</title>")
    return way


def _link(rng: random.Random, path: Path, elsewhere: Path) -> str:
    """The file lies elsewhere, or nowhere, and a link leads there."""
    way = rng.choice(("a link to elsewhere", "to nowhere", "to itself", "to a device"))
    if way == "a link to elsewhere":
        path.rename(elsewhere)
    else:
        path.unlink()
    target = {"to itself": path, "to a device": Path("/dev/zero")}.get(way, elsewhere)
    path.symlink_to(target)
    return way


# ---- the command


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="each with a model and expected.npz")
    parser.add_argument("--count", type=int, default=100, help="cases for each model")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    bad = 0
    for specimen in specimens_in(asked.folders):
        codes: Counter[int] = Counter()
        with tempfile.TemporaryDirectory() as work, _little_memory():
            for outcome in attack(specimen, asked.count, asked.seed, Path(work)):
                codes[outcome.code] += 1
                if outcome.bad:
                    bad += 1
                    print(f"BAD {outcome.name}, {outcome.change}: {outcome.bad}")
        told = ", ".join(f"{count} x exit {code}" for code, count in sorted(codes.items()))
        print(f"{specimen.name}: {told}", flush=True)
    return int(bad > 0)


@contextlib.contextmanager
def _little_memory() -> Iterator[None]:
    """Within it, the process may grow by `GROWTH`; only Linux tells how large it is."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    statm = Path("/proc/self/statm")
    if statm.is_file():
        size = int(statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + GROWTH, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


if __name__ == "__main__":
    sys.exit(main())
