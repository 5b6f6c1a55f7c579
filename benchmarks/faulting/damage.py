"""Damaged files: a bit flipped, a file cut, emptied or deleted,
in everything that vdiff reads again.
"""

import random
from collections.abc import Callable
from pathlib import Path

from . import state
from .case import Case, update_of
from .outcome import Outcome
from .service import Service
from .state import RUN, STORE
from .world import MODELS, World

CPU = ("--device", "cpu")
TRAIN, DISTILL = ("train", *CPU), ("distill", *CPU)


def strike(world: World, service: Service, outcome: Outcome, keep: bool = False) -> None:
    """Damage a file, see that it is not used, mend it, complete the chain and compare."""
    rng = random.Random(f"what {outcome.fault.seed} {outcome.fault.number}")
    [(begins, work)] = rng.choices(list(_WORKS), list(_WORKS.values()))
    case = Case(world, service, outcome, begins, keep)
    try:
        work(case)
    finally:
        case.close()


def spoil(path: Path, rng: random.Random) -> str:
    """Damage a file; says how."""
    content = path.read_bytes()
    form = rng.choice(["flip", "flip", "flip", "cut", "empty", "delete"]) if content else "delete"
    if form == "delete":
        path.unlink()
        return "deleted"
    if form == "flip":
        place, bit = rng.randrange(len(content)), rng.randrange(8)
        path.write_bytes(
            content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]
        )
        return f"bit {bit} of byte {place:,} flipped"
    length = rng.randrange(len(content)) if form == "cut" else 0
    path.write_bytes(content[:length])
    return f"cut to {length:,} of {len(content):,} bytes"


def _spoil_one(case: Case, folder: Path, more: str = "") -> tuple[Path, str, bytes]:
    """Damage a file somewhere in a folder: which, how, and what it was."""
    path = case.rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    content = path.read_bytes()
    how = spoil(path, case.rng)
    case.say(f"{more}{path.relative_to(case.folder)}: {how}")
    return path, how, content


def _teacher(case: Case) -> None:
    """A teacher that the next stage needs."""
    name = "base_0" if (case.folder / RUN / "base_0").exists() else "original"
    path, how, content = _spoil_one(case, case.folder / RUN / name)
    is_unmarked = how == "deleted" and path.name == "vdiff.json"  # then it is no model at all
    ended = case.vdiff(
        *DISTILL, codes={0, 4} if is_unmarked and name == "base_0" else _codes_of_part(path)
    )
    if ended.code:
        _mend(case, name, path, content)
    case.completes(DISTILL, parts=("models", "store"))


def _model(case: Case) -> None:
    """A finished model that is asked for."""
    name = case.rng.choice(MODELS)
    path, how, content = _spoil_one(case, case.folder / RUN / name)
    if case.rng.random() < 0.7:
        case.vdiff("sample", "--checkpoint", name, "-n", "4", *CPU, codes=_codes_of_part(path))
    else:
        # a diffusers folder like any other
        is_unmarked = how == "deleted" and path.name == "vdiff.json"
        case.vdiff(
            "inspect",
            f"{RUN}/{name}",
            "--verify",
            codes={0, 4} if is_unmarked else _codes_of_part(path),
        )
    _mend(case, name, path, content)
    case.completes(DISTILL, parts=("models", "store"))


def _codes_of_part(path: Path) -> set[int]:
    """How a command ends that uses a model of which this file is damaged;
    its README is for people to change.
    """
    return {0} if path.name == "README.md" else {4}


def _mend(case: Case, name: str, path: Path, content: bytes) -> None:
    """What the message advises: copy the file again, or make the stage again."""
    if case.rng.random() < 0.5:
        path.write_bytes(content)
    else:
        case.vdiff(*(TRAIN if name == "original" else DISTILL), "--force", codes={0})


def _save(case: Case) -> None:
    """A save of a stage that was stopped: the one before it is used, and that is said;
    without any, nothing is.
    """
    folder = _unfinished(case)
    newest, older = sorted(folder.iterdir(), reverse=True)
    _spoil_one(case, newest)
    command = TRAIN if folder.name == "original" else DISTILL
    if case.rng.random() < 0.25:
        _spoil_one(case, older, "and ")
        case.vdiff(*command, codes={4})
        case.completes((*command, "--force"), TRAIN, DISTILL, parts=("models", "store"))
        return
    ended = case.vdiff(*command, codes={0})
    if newest.name not in ended.output:
        case.miss("wrong end", f"nothing is said of the damaged save {newest.name}")
    case.completes(TRAIN, DISTILL)


def _unfinished(case: Case) -> Path:
    """The saves of the stage that was stopped; a finished base keeps one too."""
    run = case.folder / RUN
    [folder] = (path for path in (run / "saves").iterdir() if not (run / path.name).exists())
    return folder


def _store(case: Case) -> None:
    """The pictures: named as damaged, or what was damaged is nothing that counts."""
    path = case.folder / STORE / "data.mdb"
    how = spoil(path, case.rng)
    case.say(f"{path.relative_to(case.folder)}: {how}")
    is_harmless = (
        path.exists() and state.store_digest_apart(path) == case.reference("prepared").store
    )
    command = case.rng.choice([TRAIN, ("prepare",), ("inspect", str(STORE), "--verify")])
    # a page whose unused bytes have changed is not what was written either
    ended = case.vdiff(*command, codes={0, 3} if is_harmless else _codes(command[0], how))
    if ended.code == 0 and command != TRAIN and not is_harmless:
        ended = case.vdiff(*TRAIN, codes={0, 3})
    if ended.code == 0 and command[0] != "inspect":  # a picture that was never drawn may be damaged
        case.completes(TRAIN, like="trained", parts=("models", "log"))
    case.completes(("prepare", "--force"), TRAIN, like="trained")


def _codes(command: str, how: str) -> set[int]:
    """How a command may end that meets a store that was damaged in this way, where that counts."""
    if how == "deleted":
        return {"prepare": {0}, "inspect": {2, 3, 4}}.get(command, {3})
    # neither reads all pictures; training must come to the right weights then
    return {0, 3} if "flipped" in how and command in ("train", "prepare") else {3}


def _recipe(case: Case) -> None:
    """The copy of the recipe in the run is only a copy."""
    path = case.folder / RUN / "recipe.yaml"
    how = spoil(path, case.rng)
    case.say(f"{path.relative_to(case.folder)}: {how}")
    case.vdiff("inspect", codes={0})
    case.completes(DISTILL)
    if path.read_text() != (case.folder / "recipe.yaml").read_text():
        case.miss("invalid", "the recipe in the run is still damaged")


def _log(case: Case) -> None:
    """Lines of the log are lost at worst, and only those that were damaged."""
    stage = _unfinished(case).name
    done = state.look(case.folder).points[stage]
    path = case.folder / RUN / "log.jsonl"
    case.say(f"{path.relative_to(case.folder)}: {spoil(path, case.rng)}")
    case.vdiff("inspect", codes={0})
    case.completes(TRAIN, DISTILL, parts=("models", "store"))
    lines, whole = path.read_text(errors="replace").splitlines(), list(case.reference().log)
    first = next(
        place
        for place, line in enumerate(whole)
        if (update_of(line) or ("", 0)) > (stage, done) and stage in line
    )
    if broken := [line for line in lines if update_of(line) is None]:
        case.miss("invalid", f"the log keeps a broken line: {broken[0][:60]!r}")
    if lines[-len(whole[first:]) :] != whole[first:]:
        case.miss("differs", "the lines that came after the damage")


def _facts(case: Case) -> None:
    """Small files that only tell: of the run's state, previews, the tracker, locks."""
    names = ("status.json", ".lock", "previews/*", "tracker/*")
    files = sorted(
        path for name in names for path in (case.folder / RUN).glob(name) if path.is_file()
    )
    path = case.rng.choice(files)
    case.say(f"{path.relative_to(case.folder)}: {spoil(path, case.rng)}")
    case.vdiff("inspect", codes={0})
    case.completes(TRAIN, DISTILL)


_WORKS: dict[tuple[str, Callable[[Case], None]], int] = {
    ("trained", _teacher): 14,
    ("stopped in base_1", _teacher): 14,
    ("complete", _model): 16,
    ("stopped in original", _save): 13,
    ("stopped in base_1", _save): 13,
    ("prepared", _store): 14,
    ("trained", _recipe): 4,
    ("stopped in base_1", _log): 4,
    ("stopped in original", _log): 4,
    ("stopped in original", _facts): 4,
}
"""(The state it begins in, what is done) -> its share in percent."""
