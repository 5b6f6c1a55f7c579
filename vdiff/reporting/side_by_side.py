"""Pictures on a page: rows from the same noise, the slider between two models,
the way from noise to picture.
"""

import base64
from collections.abc import Sequence

from torch import Tensor

from vdiff.images.images import encode
from vdiff.reporting.markup import Markup, tag
from vdiff.reporting.pictures import FRAMES, Gallery, Strip, Way
from vdiff.reporting.wording import counted

TINY_PIXELS = 64
"""Pictures up to this size are enlarged with visible pixels."""

_LABELS = {"original": "original", "undistilled": "not distilled", "student": "student"}


def strips(gallery: Gallery) -> Markup:
    """A row per model and number of steps, a column per seed."""
    heads = [tag("th", str(seed), scope="col") for seed in gallery.seeds]
    head = tag("tr", tag("th", "seed", scope="col", class_="corner"), heads)
    rows = [_row(strip, gallery.seeds) for strip in gallery.strips]
    caption = tag(
        "caption",
        "Pictures of every model from the same noise; each column is one seed.",
        class_="unseen",
    )
    return tag("table", caption, tag("thead", head), tag("tbody", rows), class_="strips")


def slider(
    left: Strip, rights: Sequence[Strip], seeds: Sequence[int], left_name: str = "original"
) -> Markup:
    """Pairs of pictures under one divider that pulls the one from over the other;
    several right sides to choose from.

    Without a script, and in print, the two of a pair stand beside one another.
    """
    # the student of the fewest steps, about which people ask first
    chosen = rights[-1]
    pairs = [_pair(place, seed, left, chosen, left_name) for place, seed in enumerate(seeds)]
    ends = (f"{left_name}, {counted(left.num_steps)}", _said(chosen))
    label = tag("label", "Divider between the two", for_="cut", class_="unseen")
    text = f"{ends[0]} on the left, {ends[1]} on the right"
    handle = tag(
        "input",
        type="range",
        id="cut",
        min=0,
        max=100,
        value=50,
        step=1,
        aria_describedby="cut-ends",
    )
    left_end = tag("span", ends[0], class_="end left")
    right_end = tag("span", ends[1], class_="end right", id="right-end")
    bar = tag("div", left_end, label, handle, right_end, class_="bar", id="cut-ends", title=text)
    choice = None
    if len(rights) > 1:
        choice = _choice(rights)
    return tag(
        "div", choice, bar, tag("div", pairs, class_="pairs"), class_="compare", id="compare"
    )


def ways(gallery_ways: Sequence[Way]) -> Markup:
    """A row per model: its frames, each in the column of its time."""
    rows = []
    for way in gallery_ways:
        label = tag("span", tag("b", way.model), f" {counted(way.num_steps)}", class_="label")
        frames = [
            _frame(way, time, picture) for time, picture in zip(way.times, way.frames, strict=True)
        ]
        rows.append(tag("div", label, tag("div", frames, class_="frames"), class_="way"))
    return tag("div", rows, class_="ways")


def image(picture: Tensor, alt: str, class_: str = "", id_: str | None = None) -> Markup:
    """uint8 [C, H, W] inside the page."""
    data = base64.b64encode(encode(picture.numpy(), "png")).decode()
    look = class_
    if picture.shape[-1] <= TINY_PIXELS:
        look = f"{class_} tiny".strip()
    height, width = picture.shape[-2:]
    source = f"data:image/png;base64,{data}"
    return tag("img", src=source, alt=alt, width=width, height=height, class_=look or None, id=id_)


def _row(strip: Strip, seeds: Sequence[int]) -> Markup:
    is_student = strip.role == "student"
    name = _LABELS.get(strip.role, strip.role)
    if is_student:
        name = strip.model
    label = (tag("b", name), tag("span", counted(strip.num_steps)))
    cells = []
    for place, seed in enumerate(seeds):
        id_ = None
        if is_student:
            # the page's script takes the picture for the slider from here: it is in the file once
            id_ = f"p-{strip.model}-{place}"
        alt = f"seed {seed}, {_said(strip)}"
        cells.append(tag("td", image(strip.pictures[place], alt, id_=id_)))
    return tag("tr", tag("th", label, scope="row"), cells, class_=strip.role)


def _said(strip: Strip) -> str:
    name = strip.model
    if strip.role != "student":
        name = _LABELS.get(strip.role, strip.model)
    return f"{name}, {counted(strip.num_steps)}"


def _pair(place: int, seed: int, left: Strip, right: Strip, left_name: str) -> Markup:
    a = image(left.pictures[place], f"seed {seed}, {left_name}, {counted(left.num_steps)}", "below")
    b = image(right.pictures[place], f"seed {seed}, {_said(right)}", "above")
    return tag("figure", tag("div", a, b, class_="pair"), tag("figcaption", f"seed {seed}"))


def _choice(rights: Sequence[Strip]) -> Markup:
    options = []
    for strip in rights:
        id_ = f"choose-{strip.model}"
        known = {"data_model": strip.model, "data_said": _said(strip)}
        is_last = strip is rights[-1]
        radio = tag(
            "input",
            type="radio",
            name="student",
            id=id_,
            value=strip.model,
            checked=is_last,
            **known,
        )
        options.append(
            tag("span", radio, tag("label", counted(strip.num_steps), for_=id_), class_="option")
        )
    return tag("fieldset", tag("legend", "Student with"), options, class_="choice")


def _frame(way: Way, time: float, picture: Tensor) -> Markup:
    # Models of fewer steps have fewer frames. Each stands below the frame of the same time,
    # so a row may have gaps.
    column = round((1 - time) * (FRAMES - 1)) + 1
    what = f"at time {time:.2f}"
    if time == 1:
        what = "noise"
    elif time == 0:
        what = "the picture"
    return image(picture, f"{way.model} in {counted(way.num_steps)}: {what}", f"c{column}")
