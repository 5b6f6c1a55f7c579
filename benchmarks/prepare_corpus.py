"""What becomes of a folder of odd pictures:
`vdiff prepare` at 1, 3 and 4 channels and in every encoding.

    python benchmarks/prepare_corpus.py FOLDER... [--size 64] [--encodings png webp jpeg]
    [--reasons]

Each combination runs in a process of its own, so that a crash is counted and not suffered: first
all files together, and where that ends otherwise than well, one after the other. Every record that
was stored is decoded again and compared with a conversion of its own. Folders worth trying: the
pictures in Pillow's source package (`Tests/images`), PngSuite.
"""

import argparse
import io
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vdiff.choices import Encoding
from vdiff.data.prepare import prepare
from vdiff.data.sources import open_source
from vdiff.data.store import ImageStore
from vdiff.errors import VdiffError
from vdiff.images import images

SECONDS = 600
JPEG_TOLERANCE = 16
"""How far a value of a JPEG of quality 100 may be from the picture:
noise, and the way to YCbCr and back.
"""


@dataclass
class Outcome:
    """What one combination gave. wrong: records that do not show the picture. noise:
    lines that were not ours.
    """

    files: int = 0
    taken: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    notes: int = 0
    wrong: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    noise: list[str] = field(default_factory=list)
    megabytes: float = 0.0
    seconds: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--encodings", nargs="+", default=["png", "webp", "jpeg"])
    parser.add_argument(
        "--reasons", action="store_true", help="name every skipped file with its reason"
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(_work(given.folders[0], given.size, int(given.child[0]), given.child[1])))
        return 0
    bad = 0
    print(
        "folder, channels, encoding: files, taken, skipped, noted, crashes, wrong records, "
        "noise, MB, seconds"
    )
    for folder in given.folders:
        for channels in (1, 3, 4):
            for encoding in given.encodings:
                if (channels, encoding) != (4, "jpeg"):
                    outcome = _try(folder, given.size, channels, encoding)
                    _tell(folder, channels, encoding, outcome, given.reasons)
                    bad += len(outcome.crashes) + len(outcome.wrong)
    return int(bad > 0)


def _tell(folder: Path, channels: int, encoding: str, outcome: Outcome, with_names: bool) -> None:
    numbers: list[float] = [
        outcome.files,
        outcome.taken,
        len(outcome.skipped),
        outcome.notes,
        len(outcome.crashes),
    ]
    numbers += [
        len(outcome.wrong),
        len(outcome.noise),
        round(outcome.megabytes),
        round(outcome.seconds, 1),
    ]
    print(f"{folder.name}, {channels}, {encoding}:", *numbers, flush=True)
    kinds = Counter(re.sub(r"\d[\d,]*", "N", reason) for reason in outcome.skipped.values())
    for reason, count in kinds.most_common():
        print(f"    {count:4} skipped: {reason}")
    for title, lines in (
        ("crash", outcome.crashes),
        ("wrong", outcome.wrong),
        ("noise", outcome.noise),
    ):
        for line in lines[:10]:
            print(f"    {title}: {line}")
    if with_names:
        for name, reason in outcome.skipped.items():
            print(f"    {name}: {reason}")


def _try(folder: Path, size: int, channels: int, encoding: str) -> Outcome:
    """All files at once; one by one if that ends in a crash."""
    outcome = Outcome()
    found = _run(folder, size, channels, encoding, outcome)
    if found is None:
        whole, outcome = outcome.crashes, Outcome()
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            with tempfile.TemporaryDirectory() as place:
                (Path(place) / path.name).symlink_to(path.absolute())
                _add(outcome, _run(Path(place), size, channels, encoding, outcome))
        outcome.crashes = outcome.crashes or whole
    else:
        _add(outcome, found)
    return outcome


def _add(outcome: Outcome, found: dict[str, Any] | None) -> None:
    if found is None:
        return
    outcome.files += found["files"]
    outcome.taken += found["taken"]
    outcome.notes += found["notes"]
    outcome.skipped |= found["skipped"]
    outcome.wrong += found["wrong"]
    outcome.megabytes = max(outcome.megabytes, found["megabytes"])
    outcome.seconds += found["seconds"]


def _run(
    folder: Path, size: int, channels: int, encoding: str, outcome: Outcome
) -> dict[str, Any] | None:
    """One process; None where it crashed, which `outcome` then tells."""
    command = [
        sys.executable,
        __file__,
        str(folder),
        "--size",
        str(size),
        "--child",
        str(channels),
        encoding,
    ]
    names = ", ".join(path.name for path in sorted(folder.iterdir())[:2])
    try:
        ended = subprocess.run(command, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        outcome.crashes.append(f"{names}: still running after {SECONDS} s")
        return None
    said = ended.stderr.decode(errors="replace").splitlines()
    if ended.returncode:
        last = next((line for line in reversed(said) if line.strip()), "")
        outcome.crashes.append(f"{names}: exit {ended.returncode}, {last}")
        return None
    outcome.noise += said
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def _work(folder: Path, size: int, channels: int, encoding: Encoding) -> dict[str, Any]:
    before = time.monotonic()
    found: dict[str, Any] = {"files": 0, "taken": 0, "notes": 0, "skipped": {}, "wrong": []}
    with tempfile.TemporaryDirectory() as place:
        store = Path(place) / "store"
        try:
            report = prepare(
                folder, store, sizes=[size], channels=channels, encoding=encoding, max_bad=1.0
            )
        except VdiffError as err:
            found["skipped"] = {folder.name: err.problem}
            found["files"] = len([path for path in folder.rglob("*") if path.is_file()])
        else:
            found["seconds"] = time.monotonic() - before
            lines = report.skipped_file.read_text().splitlines() if report.skipped_file else []
            found["skipped"] = dict(line.split("\t", 1) for line in lines)
            found["notes"] = len(getattr(report, "notes", ()))
            found["files"], found["taken"] = len(open_source(folder).files), report.num_images
            found["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            found["wrong"] = list(
                _wrong(folder, ImageStore(store), size, channels, encoding, found["skipped"])
            )
    found.setdefault("seconds", time.monotonic() - before)
    found.setdefault("megabytes", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return found


def _wrong(
    folder: Path,
    store: ImageStore,
    size: int,
    channels: int,
    encoding: str,
    skipped: dict[str, str],
) -> list[str]:
    """The records that are not what the files look like, each with what is wrong."""
    names = [file.name for file in open_source(folder).files if file.name not in skipped]
    if len(names) != store.num_images:
        return [f"{store.num_images} records for {len(names)} files"]
    wrong = []
    for index, name in enumerate(names):
        record = store.read(index, size)
        try:
            stored = images.decode(record, channels)
        except Exception as err:
            wrong.append(f"{name}: {type(err).__name__}: {err}")
            continue
        opened = images.open_picture((folder / name).read_bytes(), channels)
        expected = images.from_picture(images.fit_square(opened, size, "lanczos"))
        difference = int(np.abs(stored.astype(int) - expected).max())
        side = _side_data(record)
        if difference > (JPEG_TOLERANCE if encoding == "jpeg" else 0):
            wrong.append(f"{name}: off by {difference}")
        elif side:
            wrong.append(f"{name}: carries {side}")
    return wrong


def _side_data(record: bytes) -> str:
    """What a record holds besides pixels, as a list of names."""
    from PIL import Image

    with Image.open(io.BytesIO(record)) as picture:
        picture.load()
        found = [
            name
            for name in ("icc_profile", "exif", "comment", "transparency", "xmp")
            if name in picture.info
        ]
        return ", ".join([*found, *getattr(picture, "text", ())])


if __name__ == "__main__":
    sys.exit(main())
