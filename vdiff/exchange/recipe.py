"""The recipe of a run whose base was imported:
everything that `vdiff distill` asks for, with what may be changed.
"""

import re
from pathlib import Path

from vdiff.formats.adapter import ForeignModel
from vdiff.recipe.strict_yaml import dump

START_STEPS = 256
"""Of the imported teacher: far fewer than it was trained with,
and its pictures are hardly worse.
"""


def recipe_text(model: ForeignModel, name: str, data: Path | None) -> str:
    """YAML text.   name: of the run.   data: the store of its pictures, where it is known."""
    channels, _, size = model.shape
    start = min(model.num_steps, START_STEPS) if model.is_distilled else START_STEPS
    notes = _HEAD
    objective: dict[str, object] = {"kind": "progressive"}
    distill: dict[str, object] = {
        "start_steps": start,
        "end_steps": min(4, start // 2),
        "updates": 10_000,
        "batch_size": 64,
        "warmup_updates": 100,
    }
    is_eps = model.diffusion.get("predicts") == "eps"
    limit = (model.sampler or {}).get("clip", 1.0 if is_eps else None)
    if limit is not None:
        objective["clip"] = limit
        notes += _OF_CLIP
    if is_eps:
        distill["predicts"] = "v"
        notes += _OF_EPS
    distill["objective"] = objective
    content = {
        "name": _name(name),
        "data": {
            "kind": "lmdb",
            "path": str(data) if data is not None else f"data/{_name(name)}",
            "size": size,
            "channels": channels,
        },
        "network": {"kind": "imported"},
        "diffusion": dict(model.diffusion),
        "train": {"updates": 1},
        "distill": distill,
    }
    return notes + dump(content)


_HEAD = """\
# The base of this run, `original`, was imported: `vdiff train` has nothing to do here.
# `data` says where the pictures are; `vdiff prepare PICTURES -r` and this file makes the store.
# Then: `vdiff distill -r` and this file.
"""
_OF_EPS = """\
# `distill.predicts: v`: a network that predicts noise cannot draw in one or two steps. Its
# student learns anew, in thousands of updates; for four steps `eps`, `weighting: snr` is sooner.
"""
_OF_CLIP = """\
# `distill.objective.clip`: pictures are kept within limits, as the teacher's own sampler does.
"""


def _name(text: str) -> str:
    """As a run may be called."""
    found = re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")[:64]
    return found or "imported"
