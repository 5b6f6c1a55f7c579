"""Where an imported model came from, as its card and those of its students tell it.

A card may come from a stranger, so every value is looked at before it is shown. No torch here.
"""

import math
from collections.abc import Mapping
from typing import Any

UNKNOWN_LICENCE = (
    "not known. Under which licence did its makers publish it? Find out before you publish it or "
    "its students, and write it down: `vdiff import SOURCE --licence NAME --force`"
)


_LONGEST = 1000


def lines(origin: Mapping[str, Any]) -> dict[str, str]:
    """What there is to show, label -> text, in the order of reading."""
    file = _text(origin.get("file")) or "a file without a name"
    told = {"imported from": f"{file}, {_text(origin.get('format')) or 'of unknown format'}"}
    for name in ("hub", "place", "revision"):
        if _text(origin.get(name)):
            told[name] = _text(origin.get(name))
    told["its SHA-256"] = _text(origin.get("sha256")) or "not known"
    told["licence"] = _text(origin.get("licence")) or UNKNOWN_LICENCE
    told["proof"] = proof(origin.get("proof"))
    if isinstance(origin.get("told"), Mapping):
        told["read as"] = ", ".join(
            f"{name} {value}" for name, value in origin["told"].items() if _text(value)
        )
    assumed = origin.get("assumed")
    if isinstance(assumed, list) and assumed:
        told["assumed"] = "; ".join(_text(each) for each in assumed)
    if _text(origin.get("by_way_of")):
        told["by way of"] = _text(origin.get("by_way_of"))
    return {name: text[:_LONGEST] for name, text in told.items() if text}


def proof(facts: object) -> str:
    """A sentence of what a conversion was compared with.

    facts: {how, by, difference, limit, also}, see `exchange.proof.Proof`.
    """
    found: Mapping[str, Any] = {}
    if isinstance(facts, Mapping):
        found = facts
    by = _text(found.get("by"))
    difference = _number(found.get("difference"))
    limit = f"(limit {_number(found.get('limit')):g})"
    match found.get("how"):
        case "outputs":
            told = f"largest difference from {by}: {difference:.2g} {limit}"
            also = found.get("also")
            if isinstance(also, list):
                told = "; ".join([told, *map(_text, also)])
            return told
        case "copied":
            return f"copied bit for bit, compared with {by}"
        case "denoising":
            return f"error in the noise of {by}: {difference:.3f} of what anybody makes {limit}"
        case _:
            return "nothing proved it"


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> float:
    if not isinstance(value, int | float) or abs(value) > 1e300:
        return math.nan
    return float(value)
