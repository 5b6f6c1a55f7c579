"""Where everything comes from: the line of models, time and cost, data, versions, machine and recipe."""

from collections.abc import Mapping, Sequence
from typing import Any

from vdiff.reporting.markup import Markup, code, escaped, joined, spoken, tag
from vdiff.reporting.record import Record
from vdiff.reporting.wording import amount, counted, duration, megabytes, number


def lineage(record: Record) -> Markup:
    """The models in order, each with its hash and whether its teacher is the one that is there."""
    hashes = {card["name"]: card["hash"] for card in record.cards.values()}
    return tag("ol", [_model(card, hashes) for card in _models(record)], class_="lineage")


def time_and_cost(record: Record, price_per_hour: float | None) -> Markup:
    """A row per stage: how far it is, and how long it took; what it cost where a price is known."""
    seconds = record.status["seconds"] if record.status else {}
    heads = [
        "stage",
        "steps",
        "updates",
        "state",
        "time",
        *(["cost"] if price_per_hour is not None else []),
    ]
    head = tag(
        "tr",
        [
            tag("th", text, scope="col", class_=None if text in ("stage", "state") else "n")
            for text in heads
        ],
    )
    rows = [
        _stage_row(row, seconds.get(row["name"]), price_per_hour) for row in _all_stages(record)
    ]
    total = sum(seconds.get(row["name"], 0) for row in _all_stages(record))
    cells = [
        tag("th", "together", scope="row"),
        *(tag("td") for _ in range(3)),
        tag("td", duration(total), class_="n"),
    ]
    if price_per_hour is not None:
        cells.append(tag("td", _money(total, price_per_hour), class_="n"))
    foot = tag("tfoot", tag("tr", cells)) if total else None
    caption = tag(
        "caption", "Stages of the chain; time is wall-clock time at work, in all sittings together."
    )
    inside = tag(
        "table", caption, tag("thead", head), tag("tbody", rows), foot, class_="numbers stages"
    )
    return tag(
        "div",
        inside,
        class_="wide",
        tabindex=0,
        role="region",
        aria_label="Time and cost per stage",
    )


def untimed(record: Record) -> list[str]:
    """Finished stages whose time nobody has written down."""
    seconds = record.status["seconds"] if record.status else {}
    return [name for name in record.cards if name not in seconds]


def facts(record: Record, gallery_device: str) -> Markup:
    """Data, versions and machine, as the last model's card tells them."""
    card = record.students[-1] if record.students else record.base
    status, table = record.status, record.table
    found: dict[str, Any] = {}
    if card is not None:
        channels, height, width = card["shape"]
        data = card["data"]
        found["Pictures"] = f"{channels} × {height} × {width}, {_classes(card['num_classes'])}"
        found["Data"] = (
            f"{_count(data.get('num_images'))} pictures, fingerprint ",
            code(str(data.get("fingerprint"))),
        )
        found["Network"] = f"{card['network']}, {amount(card['num_parameters'])} parameters"
        found["Noise"] = _brief(card["diffusion"])
        found["Made by"] = ", ".join(
            [card["made_by"], *(f"{name} {text}" for name, text in card["versions"].items())]
        )
    if status is not None:
        found["Trained on"] = status["machine"] or "not recorded by the vdiff that trained it"
        found["Last worked"] = f"{status['changed'].replace('T', ' ')} on {status['host']}"
    if table is not None:
        found["Evaluated"] = f"{table.made.replace('T', ' ')} by {table.made_by} on {table.machine}"
    if gallery_device:
        found["Pictures drawn on"] = gallery_device
    rows = joined((tag("dt", name), tag("dd", value)) for name, value in found.items())
    return tag("dl", rows, class_="facts")


def recipe(text: str) -> Markup:
    """The recipe as it is in the run."""
    summary = tag("summary", f"recipe.yaml, {len(text.splitlines())} lines")
    return tag(
        "details", summary, tag("pre", escaped(text), tabindex=0), class_="recipe", open=True
    )


def _models(record: Record) -> list[Mapping[str, Any]]:
    return sorted(record.cards.values(), key=lambda card: (card["stage"], -card["num_steps"]))


def _model(card: Mapping[str, Any], hashes: Mapping[str, str]) -> Markup:
    head = tag("h3", card["name"], tag("span", counted(card["num_steps"]), class_="aside"))
    parts = f"{amount(card['num_parameters'])} parameters, {amount(card['updates'])} updates, {megabytes(card['bytes'])}"
    return tag(
        "li",
        head,
        tag("p", parts),
        tag("p", "weights ", code(card["hash"])),
        _teacher(card, hashes),
    )


def _teacher(card: Mapping[str, Any], hashes: Mapping[str, str]) -> Markup:
    parent = card["parent"]
    if parent is None:
        return tag("p", "learned from pictures", class_="aside")
    words = f"distilled from {parent['name']}, {counted(parent['num_steps'])}, "
    if hashes.get(parent["name"]) == parent["hash"]:
        return tag(
            "p", words, "whose hash is the one above ", tag("b", "✓", class_="good"), class_="aside"
        )
    if parent["hash"] in hashes.values():
        return tag("p", words, code(parent["hash"]), class_="aside")
    return tag(
        "p",
        words,
        code(parent["hash"]),
        tag("b", ", which is not in this run", class_="bad"),
        class_="aside",
    )


def _all_stages(record: Record) -> list[dict[str, Any]]:
    """What is finished or begun, and what the recipe asks for beside."""
    rows = [dict(row) for row in record.rows]
    names = {row["name"] for row in rows}
    working = (
        record.status["stage"] if record.status and record.status["state"] == "running" else None
    )
    for row in rows:
        if row["name"] == working and row["state"] != "whole" and record.status:
            row |= {
                "state": "running",
                "updates": record.status["update"],
                "planned_updates": record.status["updates"],
            }
    for stage in record.stages:
        if stage.name not in names:
            is_working = stage.name == working and record.status is not None
            updates = record.status["update"] if is_working and record.status else 0
            state = "running" if is_working else "waiting"
            row = {
                "name": stage.name,
                "stage": stage.index,
                "num_steps": stage.num_steps,
                "updates": updates,
            }
            rows.append(row | {"planned_updates": stage.settings.updates, "state": state})
    return sorted(rows, key=lambda row: (row["stage"] is None, row["stage"] or 0))


def _stage_row(
    row: Mapping[str, Any], seconds: float | None, price_per_hour: float | None
) -> Markup:
    done, planned = row["updates"], row["planned_updates"]
    updates = amount(done) if planned in (done, None) else f"{amount(done)} of {amount(planned)}"
    steps = amount(row["num_steps"])
    cells = [
        tag("th", row["name"], scope="row"),
        tag("td", steps, class_="n"),
        tag("td", updates, class_="n"),
    ]
    cells.append(tag("td", tag("span", row["state"], class_=f"state {row['state']}")))
    cells.append(tag("td", duration(seconds), class_="n"))
    if price_per_hour is not None:
        cells.append(tag("td", _money(seconds, price_per_hour), class_="n"))
    return tag("tr", cells)


def _money(seconds: float | None, price_per_hour: float) -> str:
    return "–" if seconds is None else f"{seconds / 3600 * price_per_hour:,.2f}"


def _classes(count: int) -> str:
    return f"{count} classes" if count else "no classes"


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else "?"


def _brief(value: Any) -> str:
    """Nested facts on one line."""
    if isinstance(value, Mapping):
        parts = (
            f"{name} {_brief(inner)}" if name != "kind" else _brief(inner)
            for name, inner in value.items()
        )
        return ", ".join(parts)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_brief, value[:8])) + (", ..." if len(value) > 8 else "")
    return number(value) if isinstance(value, float) else str(value)


def sentences(lines: Sequence[str], class_: str) -> Markup | None:
    """Sentences one below the other; nothing for none."""
    return tag("ul", [tag("li", spoken(line)) for line in lines], class_=class_) if lines else None
