"""A page that needs nothing but itself: styles, script and pictures are inside,
and a policy forbids the rest.
"""

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from vdiff import __version__
from vdiff.disk.ours import beginning
from vdiff.reporting.markup import Child, Markup, joined, tag

MAKER = "vdiff report"
"""What the page's `generator` begins with: by it, a file is known as one that may be made again."""


def page(title: str, head: Sequence[Child], sections: Sequence[Markup | None]) -> str:
    """A whole HTML file. head: what stands above all sections.

    sections: from `section`, None for none.
    """
    style = _part("page.css")
    script = _part("page.js")
    # Names in a run come from strangers. Should one ever get past `escaped`, the browser still
    # runs no script and loads no picture but those that these sums and `data:` allow.
    policy = (
        f"default-src 'none'; img-src data:; style-src {_sum(style)}; "
        f"script-src {_sum(script)}; base-uri 'none'"
    )
    about = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=f"{policy}; form-action 'none'"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="generator", content=f"{MAKER} {__version__}"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        Markup(f"<style>{style}</style>"),
    ]
    shown = [section for section in sections if section]
    foot = tag(
        "footer", tag("p", f"Made by vdiff {__version__}. This file asks nothing of the network.")
    )
    body = [tag("header", head), tag("main", shown), foot, Markup(f"<script>{script}</script>")]
    return (
        f'<!doctype html>\n<html lang="en"><head>{joined(about)}</head>\n'
        f"<body>{joined(body)}</body></html>\n"
    )


def section(id_: str, title: str, lead: Child, *content: Child) -> Markup:
    """A part of the page under its own heading. lead: what one is to see in it."""
    opening = None
    if lead:
        opening = tag("p", lead, class_="lead")
    return tag("section", tag("h2", title), opening, content, id=id_)


def contents(sections: Sequence[tuple[str, str]]) -> Markup:
    """Links to the sections: (id, title) each."""
    return tag(
        "nav", [tag("a", title, href=f"#{id_}") for id_, title in sections], aria_label="Sections"
    )


def is_ours(path: Path) -> bool:
    """Whether a file is a page that was made here."""
    # it stands in the head, in front of the long style; a page may be 100 MB
    return f'name="generator" content="{MAKER} '.encode() in beginning(path, 2000)


def _part(name: str) -> str:
    return resources.files("vdiff.reporting").joinpath(name).read_text(encoding="utf-8").strip()


def _sum(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
