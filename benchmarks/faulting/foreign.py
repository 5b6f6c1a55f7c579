"""Things of the user's in the way: a folder, a file or a link where vdiff means to write."""

import hashlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from .case import Case
from .damage import CPU, DISTILL, TRAIN
from .outcome import Outcome
from .service import Service
from .state import RUN, STORE
from .world import World

_OTHERS = "others"
"""A folder outside of the run, to which links lead."""

_PLACES: list[tuple[str, str, tuple[str, ...]]] = [
    ("prepared", f"{RUN}/original", TRAIN),
    ("prepared", f"{RUN}/saves", TRAIN),
    ("prepared", f"{RUN}/saves/original", TRAIN),
    ("prepared", f"{RUN}/previews", TRAIN),
    ("prepared", f"{RUN}/log.jsonl", TRAIN),
    ("prepared", f"{RUN}/status.json", TRAIN),
    ("prepared", f"{RUN}/recipe.yaml", TRAIN),
    ("prepared", f"{RUN}/.lock", TRAIN),
    ("trained", f"{RUN}/base_0", DISTILL),
    ("trained", f"{RUN}/base_1", DISTILL),
    ("trained", f"{RUN}/saves/base_1", DISTILL),
    ("empty", str(STORE), ("prepare",)),
    ("empty", f"{STORE}.partial", ("prepare",)),
    ("complete", "samples", ("sample", "--checkpoint", "base_1", "-n", "4", *CPU)),
    ("complete", "samples/base_1-1.png", ("sample", "--checkpoint", "base_1", "-n", "4", *CPU)),
    (
        "complete",
        "pictures.npz",
        ("sample", "--checkpoint", "base_1", "-n", "4", "--out", "pictures.npz", *CPU),
    ),
    ("complete", f"{RUN}/report.html", ("report", "--no-pictures", *CPU)),
    ("complete", "compare.png", ("compare", "base_0", "base_1", "--seeds", "0-1", *CPU)),
    ("complete", f"{RUN}/evaluation", ("evaluate", "--n", "64", "--metrics", "swd", *CPU)),
]
"""(The state it begins in, what is in the way, the command that wants to write there)."""


def strike(world: World, service: Service, outcome: Outcome, keep: bool = False) -> None:
    """Put something into the way and run a command: it must be there afterwards, byte for byte."""
    rng = random.Random(f"what {outcome.fault.seed} {outcome.fault.number}")
    begins, place, command = rng.choice(_PLACES)
    case = Case(world, service, outcome, begins, keep)
    try:
        _block(case, rng, Path(place), command)
    finally:
        case.close()


def _block(case: Case, rng: random.Random, place: Path, command: tuple[str, ...]) -> None:
    kind, make = rng.choice(list(_THINGS.items()))
    way = case.folder / place
    way.parent.mkdir(parents=True, exist_ok=True)
    if way.is_dir():
        shutil.rmtree(way)
    else:
        way.unlink(missing_ok=True)
    make(way, case.folder / _OTHERS)
    before = _everything(way, case.folder / _OTHERS)
    forced = ("--force",) if rng.random() < 0.4 and command[0] not in ("evaluate",) else ()
    case.say(f"{kind} at {place}: {' '.join((*command, *forced))}")
    # a folder of the user's that holds nothing of ours in the way may be worked in
    case.vdiff(*command, *forced, codes={0, 2, 3, 4, 6}, unless_used="lost")
    after = _everything(way, case.folder / _OTHERS)
    if gone := [name for name in before if after.get(name) != before[name]]:
        case.miss("lost", f"of the user's: {', '.join(gone)}")


def _folder(way: Path, others: Path) -> None:
    (way / "holiday").mkdir(parents=True)
    (way / "notes.txt").write_text("my own notes")
    (way / "holiday/1.png").write_bytes(b"my own picture")


def _file(way: Path, others: Path) -> None:
    way.write_text("my own file")


def _link_to_folder(way: Path, others: Path) -> None:
    _folder(others, others)
    way.symlink_to(others)


def _link_to_file(way: Path, others: Path) -> None:
    others.mkdir()
    (others / "letter.txt").write_text("my own letter")
    way.symlink_to(others / "letter.txt")


_THINGS: dict[str, Callable[[Path, Path], None]] = {
    "a folder": _folder,
    "a file": _file,
    "a link to a folder": _link_to_folder,
    "a link to a file": _link_to_file,
}


def _everything(*places: Path) -> dict[str, str]:
    """What lies at these places and below: contents by SHA-256, links by where they lead."""
    found: dict[str, str] = {}
    for place in places:
        for path in (
            place,
            *(place.rglob("*") if place.is_dir() and not place.is_symlink() else ()),
        ):
            if path.is_symlink():
                found[str(path)] = f"-> {os.readlink(path)}"
            elif path.is_file():
                found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
