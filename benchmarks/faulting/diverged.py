"""Networks whose numbers are not finite: nothing is drawn, measured or published with them."""

import json
import random
import struct
from pathlib import Path

import numpy as np

from .case import Case
from .damage import CPU
from .hostile import believe
from .outcome import Outcome
from .service import Service
from .state import RUN, WEIGHTS
from .world import World


def strike(world: World, service: Service, outcome: Outcome, keep: bool = False) -> None:
    """Draw or measure with a network that predicts NaN, or train one with a rate
    at which it must diverge.
    """
    rng = random.Random(f"what {outcome.fault.seed} {outcome.fault.number}")
    is_training = rng.random() < 0.3
    case = Case(world, service, outcome, "prepared" if is_training else "complete", keep)
    try:
        if is_training:
            _train(case, rng)
        else:
            _draw(case, rng)
    finally:
        case.close()


def _train(case: Case, rng: random.Random) -> None:
    rate = rng.choice(["1e20", "1e30", "1e37"])
    case.say(f"training at a rate of {rate}")
    changes = ("--set", f"train.learning_rate={rate}", "--set", "train.clip_norm=null")
    more = ("--set", f"train.updates={rng.choice([3, 8, 48])}", "--set", "train.warmup_updates=0")
    case.vdiff("train", *CPU, *changes, *more, codes={5})
    if (case.folder / RUN / "original").exists():
        case.miss("used", "a network that is not finite was published")


def _draw(case: Case, rng: random.Random) -> None:
    folder = case.folder / RUN / "base_1"
    _make_large(folder / WEIGHTS, rng.choice([1e18, 1e30, 3e38]))
    believe(folder / "vdiff.json")
    out = rng.choice(["a.png", "a.npz", "a.zip", "a", "a.gif"])
    form = (
        ("--gif",)
        if out == "a.gif"
        else ("--strip",)
        if rng.random() < 0.3 and out == "a.png"
        else ()
    )
    command = rng.choice(
        [
            ("sample", "--checkpoint", "base_1", "-n", "4", "--out", out, *form, *CPU),
            ("evaluate", f"{RUN}/base_1", "--n", "64", "--metrics", "swd", *CPU),
            ("compare", "base_0", "base_1", "--seeds", "0-1", *CPU),
        ]
    )
    case.say(f"weights far too large: {' '.join(command)}")
    case.vdiff(*command, codes={5})
    for path in (case.folder / out, case.folder / "compare.png"):
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            case.miss("used", f"{path.name} was written")


def _make_large(path: Path, scale: float) -> None:
    """Let all weights of a safetensors file of float32 be finite, and far too large."""
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    assert json.loads(content[8 : 8 + length])
    values = np.frombuffer(content, np.float32, offset=8 + length)
    path.write_bytes(
        content[: 8 + length] + np.where(values < 0, -scale, scale).astype(np.float32).tobytes()
    )
