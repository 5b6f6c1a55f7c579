"""A model as a notebook shows it: its facts in a table, and the picture in its folder."""

import base64
from pathlib import Path

from vdiff.model_folder.card import ModelCard
from vdiff.reporting.markup import tag
from vdiff.system.plural import count

_LARGEST_PICTURE = 2**21
"""A larger picture of a model folder does not go into a notebook, which keeps it."""


def html(card: ModelCard, folder: Path, computes: str) -> str:
    """The table, and beneath it the picture.   computes: in which precision, and where."""
    channels, height, width = card.shape
    classes = "none"
    if card.num_classes:
        classes = f"{card.num_classes:,}"
    teacher = "none"
    if card.parent is not None:
        teacher = f"{card.parent['name']}, {count(card.parent['num_steps'], 'step')}"
    facts = {
        "steps": f"{card.num_steps:,}",
        "images": f"{height} x {width}, {count(channels, 'channel')}",
        "classes": classes,
        "weights": f"{card.num_parameters:,}",
        "updates": f"{card.updates:,}",
        "teacher": teacher,
        "computes": computes,
        "SHA-256": card.hash[:16],
        "folder": str(folder),
    }
    left = {"style": "text-align: left"}
    rows = [
        tag("tr", tag("th", name, **left), tag("td", value, **left))
        for name, value in facts.items()
    ]
    return tag("div", tag("b", card.name), tag("table", rows), _picture(card, folder))


def _picture(card: ModelCard, folder: Path) -> str | None:
    """The picture of the folder, which was found to be whole when the model was loaded;
    None where there is none, or a large one.
    """
    name = "samples.png"
    if card.files.get(name, {}).get("size", _LARGEST_PICTURE) >= _LARGEST_PICTURE:
        return None
    try:
        data = (folder / name).read_bytes()
    except OSError:  # the folder was moved since
        return None
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return tag("img", src=source, alt=f"drawn by {card.name}")
