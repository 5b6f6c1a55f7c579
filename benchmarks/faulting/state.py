"""What lies on the disk, judged without vdiff's own checks:
which folders are published, and whether each is whole.
"""

import hashlib
import json
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from vdiff.data import lmdb_pages

RUN = Path("runs/digits")
STORE = Path("data/digits")
SAMPLES = Path("samples")
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Seen:
    """A working folder at one moment.

    models: the SHA-256 of each published model's weights.
    points: the newest whole save of each stage.
    store: SHA-256 of the records.   log: its lines.
    pictures: SHA-256 of each file that `vdiff sample` left.
    invalid: what claims to be whole and is not.
    """

    models: Mapping[str, str] = field(default_factory=dict)
    points: Mapping[str, int] = field(default_factory=dict)
    store: str = ""
    log: tuple[str, ...] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)
    invalid: tuple[str, ...] = ()


def look(folder: Path) -> Seen:
    """Look at a working folder in which nobody works."""
    invalid: list[str] = []
    models: dict[str, str] = {}
    for mark in sorted((folder / RUN).glob("[!.]*/vdiff.json")):  # a hidden folder is not published
        found = damage(mark)
        invalid += [f"{mark.parent.name}: {text}" for text in found]
        models[mark.parent.name] = "damaged" if found else sha256(mark.parent / WEIGHTS)
    store = ""
    if (folder / STORE / "data.mdb").exists():
        store = store_digest(folder / STORE / "data.mdb")
        invalid += [f"{STORE}: {store}"] if store.startswith("damaged") else []
    log = folder / RUN / "log.jsonl"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return Seen(models, _points(folder), store, tuple(lines), _pictures(folder), tuple(invalid))


def lost(before: Seen, after: Seen) -> list[str]:
    """What was published before and is not there any longer, or not the same."""
    found = [
        f"model {name}"
        for name, digest in before.models.items()
        if after.models.get(name) != digest
    ]
    found += ["the store"] if before.store and before.store != after.store else []
    found += [
        f"the picture {name}"
        for name in before.pictures
        if after.pictures.get(name) != before.pictures[name]
    ]
    for stage, update in before.points.items():
        if stage not in after.models and after.points.get(stage, 0) < update:
            found.append(f"the save of {stage} at {update} (now {after.points.get(stage, 0)})")
    return found


def differences(seen: Seen, wanted: Seen, parts: tuple[str, ...]) -> list[str]:
    """In which of these parts a completed folder is not as it would be without any fault."""
    return [
        _difference(part, getattr(seen, part), getattr(wanted, part))
        for part in parts
        if getattr(seen, part) != getattr(wanted, part)
    ]


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders, which a completed command must not leave."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return sorted(name for name in names if _is_temporary(name.rpartition("/")[2]))


def damage(mark: Path) -> list[str]:
    """What is wrong with a folder whose manifest is `mark`:
    `vdiff.json` of a model, `state.json` of a save.
    """
    try:
        files = json.loads(mark.read_bytes())["files"]
        found = [
            f"{name} is not as its manifest says"
            for name, entry in files.items()
            if not _is_as(mark.parent / name, entry)
        ]
        there = {
            path.relative_to(mark.parent).as_posix()
            for path in mark.parent.rglob("*")
            if path.is_file()
        }
        found += [
            f"{name} is not in its manifest" for name in there - {*files, mark.name, "README.md"}
        ]
        weights = [name for name in files if name in (WEIGHTS, "weights.safetensors")]
        return found or [
            f"{name} is not finite" for name in weights if not is_finite(mark.parent / name)
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as err:
        return [f"{mark.name} cannot be read: {err!r}"]


def store_digest(file: Path) -> str:
    """SHA-256 of all records of an LMDB, or `damaged: ...`."""
    try:
        lmdb_pages.check(file)
        with (
            lmdb.open(str(file.parent), readonly=True, lock=False, create=False) as environment,
            environment.begin() as reader,
        ):
            digest = hashlib.sha256()
            for key, value in reader.cursor():
                digest.update(b"%d %b %d %b" % (len(key), key, len(value), value))
            return digest.hexdigest()
    except (OSError, ValueError, lmdb.Error) as err:
        return f"damaged: {err}"


def store_digest_apart(file: Path) -> str:
    """As `store_digest`, in a process of its own: a damaged LMDB may kill whoever reads it."""
    command = [sys.executable, __file__, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout.strip() or "damaged: it kills its reader"


def is_finite(path: Path) -> bool:
    """Whether a safetensors file of float32 holds no NaN and no infinity."""
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    return bool(
        np.isfinite(np.frombuffer(content, np.uint8)[8 + length :].copy().view(np.float32)).all()
    )


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _points(folder: Path) -> dict[str, int]:
    points: dict[str, int] = {}
    for mark in sorted((folder / RUN / "saves").glob("[!.]*/[0-9]*/state.json")):
        if not damage(mark):
            points[mark.parents[1].name] = int(mark.parent.name)
    return points


def _pictures(folder: Path) -> dict[str, str]:
    files = (
        (path.relative_to(folder).as_posix(), path)
        for path in sorted((folder / SAMPLES).rglob("*"))
        if path.is_file()
    )
    # what begins with a point is not published, such as batches of a drawing that goes on
    return {name: sha256(path) for name, path in files if "/." not in f"/{name}"}


def _is_as(path: Path, entry: Mapping[str, Any]) -> bool:
    return (
        path.is_file() and path.stat().st_size == entry["size"] and sha256(path) == entry["sha256"]
    )


def _is_temporary(name: str) -> bool:
    return ".partial" in name or name.endswith((".tmp", ".part", ".replaced"))


def _difference(part: str, found: Any, wanted: Any) -> str:
    if isinstance(wanted, Mapping):
        return f"{part}: {', '.join(_unlike(found, wanted))}"
    if isinstance(wanted, tuple):
        place = next(
            (
                place
                for place, pair in enumerate(zip(found, wanted, strict=False))
                if pair[0] != pair[1]
            ),
            min(len(found), len(wanted)),
        )
        return f"{part}: {len(found)} lines instead of {len(wanted)}, unlike from line {place + 1}"
    return f"{part}: {found or 'nothing'}"


def _unlike(found: Mapping[str, str], wanted: Mapping[str, str]) -> Iterator[str]:
    for name in sorted({*found, *wanted}):
        if name not in found:
            yield f"{name} missing"
        elif name not in wanted:
            yield f"{name} unexpected"
        elif found[name] != wanted[name]:
            yield f"{name} changed"


if __name__ == "__main__":
    print(store_digest(Path(sys.argv[1])))
