"""Hostile inputs: whatever the command line may be handed by somebody who means harm."""

import hashlib
import json
import random
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb

from . import poison
from .case import CANARY, PRECIOUS, Case, named, names_a_line
from .damage import CPU, DISTILL, TRAIN
from .outcome import Outcome
from .service import Service
from .state import RUN, STORE, WEIGHTS
from .world import World

MODEL = RUN / "base_1"


def strike(world: World, service: Service, outcome: Outcome, keep: bool = False) -> None:
    """Hand vdiff something hostile, and see what it does."""
    rng = random.Random(f"what {outcome.fault.seed} {outcome.fault.number}")
    begins, work = rng.choice(_WORKS)
    case = Case(world, service, outcome, begins, keep)
    try:
        work(case)
    finally:
        case.close()


def _pickle(case: Case) -> None:
    """A pickle that runs code, under some name."""
    what, make = case.rng.choice(list(poison.PICKLES.items()))
    name = case.rng.choice(
        ["model.pt", "model.ckpt", "model.bin", "model.safetensors", "model.npz", "vdiff.json"]
    )
    (case.folder / name).write_bytes(make(case.folder / CANARY))
    command = case.rng.choice(
        [
            ("inspect", name),
            ("sample", "--checkpoint", name, *CPU),
            ("distill", "--from", name, *CPU),
        ]
    )
    case.say(f"{what} as {name}: {command[0]}")
    case.vdiff(*command, codes={0, 4} if command[0] == "inspect" else {4})


def _pickle_inside(case: Case) -> None:
    """A pickle in the place of weights, in a model folder or a save that says it is whole."""
    what, make = case.rng.choice(list(poison.PICKLES.items()))
    _replace_weights(case, f"{what} as weights", make(case.folder / CANARY))


def _safetensors_inside(case: Case) -> None:
    """Weights whose header lies, in a model folder or a save that says it is whole."""
    place, _ = _weights(case)
    what, content = poison.lying_safetensors(place.read_bytes(), case.rng)
    _replace_weights(case, what, content)


def _safetensors(case: Case) -> None:
    """A file whose header lies, to be looked at."""
    what, content = poison.lying_safetensors((case.folder / MODEL / WEIGHTS).read_bytes(), case.rng)
    (case.folder / "model.safetensors").write_bytes(content)
    case.say(f"{what}: inspect")
    harmless = (
        "whole numbers",
        "a tensor missing",
        "another name",
        "a flat shape",
        "an empty header",
    )
    case.vdiff("inspect", "model.safetensors", codes={0, 4} if what in harmless else {4})


def _replace_weights(case: Case, what: str, content: bytes) -> None:
    place, mark = _weights(case)
    place.write_bytes(content)
    believe(mark)
    case.say(f"{what}, in {mark.parent.relative_to(case.folder)}")
    if mark.name == "vdiff.json":
        case.vdiff("sample", "--checkpoint", "base_1", "-n", "4", *CPU, codes={4})
    else:
        case.completes(TRAIN, DISTILL)


def _weights(case: Case) -> tuple[Path, Path]:
    """Weights that will be read, and the manifest that vouches for them."""
    saves = sorted((case.folder / RUN / "saves" / "original").glob("*"))
    folder = saves[-1] if saves else case.folder / MODEL
    return (
        (folder / "weights.safetensors", folder / "state.json")
        if saves
        else (folder / WEIGHTS, folder / "vdiff.json")
    )


def believe(mark: Path, **changes: Any) -> None:
    """Make a manifest vouch for what lies there now, as its maker could;
    a seal is an offer, not a duty.
    """
    content = {
        key: value
        for key, value in json.loads(mark.read_bytes()).items()
        if key not in ("sealed", "sha256")
    }
    for name, entry in content["files"].items():
        data = (mark.parent / name).read_bytes()
        entry |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    mark.write_text(json.dumps({**content, **changes}))


def _recipe(case: Case) -> None:
    """A recipe that explodes, runs code or is no recipe."""
    text = (case.folder / "recipe.yaml").read_text()
    what, content, has_place = poison.hostile_recipe(text, case.folder / CANARY, case.rng)
    (case.folder / "evil.yaml").write_bytes(content)
    command = case.rng.choice(
        [("train", *CPU), ("prepare",), ("recipes", "check"), ("distill", *CPU)]
    )
    case.say(f"a recipe with {what}: {' '.join(command)}")
    arguments = (
        (*command, "evil.yaml") if command[0] == "recipes" else (*command, "-r", "evil.yaml")
    )
    ended = case.vdiff(*arguments, codes={2})
    if has_place and not names_a_line(ended.output):
        case.miss("wrong end", f"the message names no line: {ended.output[:200]}")


def _store(case: Case) -> None:
    """A store that says what is not true."""
    what, change = case.rng.choice(list(_LIES.items()))
    place = case.folder / STORE
    with (
        lmdb.open(str(place), lock=False, map_size=2**26) as environment,
        environment.begin(write=True) as writer,
    ):
        change(writer)
    command = case.rng.choice([TRAIN, ("inspect", str(STORE), "--verify"), ("prepare",)])
    case.say(f"a store with {what}: {command[0]}")
    case.vdiff(
        *command,
        codes={0, 3}
        if command[0] == "prepare" and what == "a picture that is not its own"
        else {3},
    )
    if case.rng.random() < 0.2:
        case.completes(("prepare", "--force"), like="prepared", parts=("store",))


def _meta(**changes: Any) -> Callable[[Any], None]:
    def change(writer: Any) -> None:
        document = {**json.loads(writer.get(b"vdiff")), **changes}
        document.pop("checksum", None)
        document["checksum"] = zlib.crc32(json.dumps(document).encode())
        writer.put(b"vdiff", json.dumps(document).encode())

    return change


def _foreign(length: bytes, picture: bytes = b"") -> Callable[[Any], None]:
    def change(writer: Any) -> None:
        writer.delete(b"vdiff")
        writer.put(b"length", length)
        for index in range(1797 if picture else 0):
            writer.put(b"8-%05d" % index, picture)

    return change


_LIES: dict[str, Callable[[Any], None]] = {
    "a length of 10^10": _foreign(b"9999999999"),
    "a length of 10^18": _foreign(b"9" * 18),
    "a negative length": _foreign(b"-1"),
    "no length": lambda writer: writer.delete(b"length"),
    "a length that is text": _foreign(b"many"),
    "a length of NUL": _foreign(b"\0" * 8),
    "a record missing": lambda writer: writer.delete(b"8-01796"),
    "a record missing in the middle": lambda writer: writer.delete(b"8-00900"),
    "metadata that is not JSON": lambda writer: writer.put(b"vdiff", b"\x80\x04."),
    "metadata nested deeply": lambda writer: writer.put(b"vdiff", b"[" * 100_000),
    "metadata that counts too many": _meta(count=10**12),
    "metadata that counts below zero": _meta(count=-1),
    "metadata without checksums": _meta(crcs={}),
    "metadata with an absurd size": _meta(sizes=[10**9]),
    "a picture that is not its own": lambda writer: (
        writer.put(b"8-00003", writer.get(b"8-00004")) and writer.put(b"8-00004", b"x")
    ),
}


def _card(case: Case) -> None:
    """A model folder whose card says what is not true."""
    mark = case.folder / MODEL / "vdiff.json"
    content = json.loads(mark.read_bytes())
    entry = {"size": 4, "sha256": hashlib.sha256(b"evil").hexdigest()}
    lies: dict[str, Callable[[], Any]] = {
        "a newer format": lambda: believe(mark, format=99),
        "no format": lambda: believe(mark, format=None),
        "a name that climbs": lambda: believe(mark, name="../../escape"),
        "control characters": lambda: believe(mark, made_by="vdiff\x1b]0;evil\x07"),
        "a file outside": lambda: believe(
            mark, files={**content["files"], f"../../../{PRECIOUS}/letter.txt": entry}
        ),
        "an absolute file": lambda: believe(mark, files={**content["files"], "/etc/passwd": entry}),
        "an absurd number of steps": lambda: believe(mark, num_steps=2**70),
        "steps below zero": lambda: believe(mark, num_steps=-4),
        "an absurd shape": lambda: believe(mark, shape=[10**6, 10**6, 10**6]),
        "infinity": lambda: mark.write_text(
            mark.read_text().replace('"updates": ', '"updates": 1e999, "old": ')
        ),
        "deep nesting": lambda: mark.write_text("[" * 100_000),
        "a number of 10,000 digits": lambda: mark.write_text(
            mark.read_text().replace('"updates": ', f'"updates": {"9" * 10_000}')
        ),
        "a network of another kind": lambda: believe(mark, network="os.system"),
        "no weights": lambda: believe(mark, files={}),
        "a width of 10^9": lambda: _widen(case.folder / MODEL, 10**9),
    }
    what, lie = case.rng.choice(list(lies.items()))
    lie()
    command = case.rng.choice(
        [
            ("sample", "--checkpoint", "base_1", "-n", "4", *CPU),
            ("distill", "--from", str(MODEL), *CPU),
        ]
    )
    case.say(f"a card with {what}: {command[0]}")
    case.vdiff(
        *command, codes={4} if command[0] == "sample" else {2, 4}
    )  # 2: no student follows this one


def _widen(folder: Path, width: int) -> None:
    config = json.loads((folder / "unet/config.json").read_text())
    config["block_out_channels"] = [width for _ in config["block_out_channels"]]
    (folder / "unet/config.json").write_text(json.dumps(config))
    believe(folder / "vdiff.json")


def _link(case: Case) -> None:
    """A link that leads out of a model folder or a run."""
    model, outside = case.folder / MODEL, case.folder / PRECIOUS
    choice = case.rng.choice(["weights", "unet", "leftover", "aside", "saves"])
    case.say(f"a link in the place of {choice}")
    if choice in ("weights", "unet"):
        place = model / WEIGHTS if choice == "weights" else model / "unet"
        elsewhere = place.rename(case.folder / f"elsewhere-{choice}")
        place.symlink_to(elsewhere)
        case.vdiff("sample", "--checkpoint", "base_1", "-n", "4", *CPU, codes={4})
        return
    names = {
        "leftover": ".base_1.partial-123",
        "aside": ".base_9.partial-old-123",
        "saves": "saves/base_1",
    }
    place = case.folder / RUN / names[choice]
    place.parent.mkdir(exist_ok=True)
    shutil.rmtree(model)
    place.symlink_to(outside)
    ended = case.vdiff(*DISTILL, codes={0, 4, 6})
    if ended.code:
        place.unlink()
        case.completes(DISTILL, parts=("models", "store"))


def _in_the_way(case: Case) -> None:
    """Something of the user's where vdiff would leave, replace or remove something:
    it stays, with --force too.
    """
    run = case.folder / RUN
    name, more, codes = case.rng.choice(
        [
            ("base_1", (), {2}),
            ("base_1", ("--force",), {2}),
            ("base_1/notes.txt", ("--from", "base_0", "--stages", "1", "--force"), {2}),
            ("saves/base_1/000000004", (), {2}),
            (".base_1.partial-12-34", (), {0}),
            ("saves/base_1/notes", (), {0}),
        ]
    )
    case.say(f"the user's own {name}: distill {' '.join(more)}".rstrip())
    if name != "base_1/notes.txt":
        shutil.rmtree(case.folder / MODEL)
    place = run / name
    place.mkdir(parents=True)
    (place / "letter.txt").write_text(_LETTER)
    case.vdiff(*DISTILL, *more, codes=codes)
    if not (place / "letter.txt").is_file() or (place / "letter.txt").read_text() != _LETTER:
        case.miss("lost", f"the user's own {name}")
    shutil.rmtree(place)
    case.completes(DISTILL, parts=("models", "store"))


_LETTER = "my only copy"


def _archive(case: Case) -> None:
    """An archive with members that lie outside, or one that explodes."""
    makers = {
        "climb.zip": poison.zip_that_climbs,
        "climb.tar": poison.tar_that_climbs,
        "bomb.zip": poison.zip_bomb,
    }
    name, make = case.rng.choice(list(makers.items()))
    make(case.folder / name)
    case.say(f"{name}: prepare")
    codes = {3} if name == "bomb.zip" else {0, 3}
    case.vdiff("prepare", name, "--size", "8", "--out", "evil", "--max-bad", "50%", codes=codes)
    around = named(case.folder.parent.parent, "canary.png")
    if stray := [path for path in (Path("/tmp/canary.png"), *around) if path.exists()]:
        case.miss("executed", f"unpacked outside: {stray[0]}")


def _pictures(case: Case) -> None:
    """Bombs and broken pictures: refused when there are many,
    skipped and listed when they may be.
    """
    source = case.folder / "evil"
    source.mkdir()
    broken, odd = poison.broken_pictures(), poison.odd_pictures()
    chosen = dict(case.rng.sample(sorted(broken.items()), case.rng.randint(1, 5)))
    for name, content in {**chosen, **odd}.items():
        (source / name).write_bytes(content)
    case.say(f"pictures with {', '.join(chosen)}: prepare")
    arguments = ("prepare", "evil", "--size", "8", "--channels", "3", "--out", "data/evil")
    case.vdiff(*arguments, codes={3})
    case.vdiff(*arguments, "--max-bad", "60%", codes={0})
    skipped = case.folder / "data/evil/skipped.tsv"
    listed = (
        {line.partition("\t")[0] for line in skipped.read_text().splitlines()}
        if skipped.exists()
        else set()
    )
    if listed != set(chosen):
        case.miss("used", f"skipped {sorted(listed)} instead of {sorted(chosen)}")


_WORKS: list[tuple[str, Callable[[Case], None]]] = [
    *[("complete", _pickle)] * 3,
    *[("complete", _pickle_inside)] * 2,
    ("stopped in original", _pickle_inside),
    *[("complete", _safetensors_inside)] * 2,
    ("stopped in original", _safetensors_inside),
    *[("complete", _safetensors)] * 2,
    *[("prepared", _recipe)] * 4,
    *[("prepared", _store)] * 3,
    *[("complete", _card)] * 3,
    *[("complete", _link)] * 2,
    *[("complete", _in_the_way)] * 4,
    *[("empty", _archive)] * 2,
    *[("empty", _pictures)] * 2,
]
