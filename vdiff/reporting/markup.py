"""HTML and SVG as text: whatever is not markup already is escaped,
so that a run's own texts stay texts.
"""

import html
from collections.abc import Iterable

from vdiff.system.printable import printable


class Markup(str):
    """Text that is HTML."""

    __slots__ = ()


Child = str | int | None | Iterable["Child"]

_EMPTY = {"img", "input", "meta", "br", "hr"}
"""Elements that hold nothing."""


def tag(name: str, /, *children: Child, **attributes: str | int | float | bool | None) -> Markup:
    """An element. Children that are no Markup are escaped; None is nothing.

    attributes: `class_` is class, `data_seed` is data-seed; True stands alone, None and False are
    left out.
    """
    inside = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _EMPTY:
        # HTML knows no end of these: browsers read `</br>` as a second one
        return Markup(f"<{name}{inside}>")
    return Markup(f"<{name}{inside}>{joined(children)}</{name}>")


def joined(children: Iterable[Child]) -> Markup:
    """Children, one after another."""
    return Markup("".join(map(_text, children)))


def escaped(text: str) -> Markup:
    """Foreign text: markup becomes letters, and what cannot be printed becomes visible;
    line breaks stay.
    """
    return Markup(html.escape(printable(text, keep="\n\t")))


def code(text: str) -> Markup:
    """A name, a hash or something to type."""
    return tag("code", text)


def spoken(text: str) -> Markup:
    """A sentence in which backticks stand around names and commands."""
    sentence: list[Child] = []
    for place, part in enumerate(text.split("`")):
        # every second part stands between two backticks
        is_name = place % 2 == 1
        if is_name:
            sentence.append(code(part))
        else:
            sentence.append(part)
    return joined(sentence)


def _text(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str | int):
        return escaped(str(child))
    return joined(child)


def _attribute(key: str, value: str | int | float | bool | None) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    return f' {name}="{escaped(str(value))}"'
