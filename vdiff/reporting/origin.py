"""Where everything comes from: the line of models, time and cost, data, versions,
machine and recipe.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vdiff.chain.plan import Stage
from vdiff.model_folder import origin as imported
from vdiff.reporting.markup import Child, Markup, code, escaped, joined, spoken, tag
from vdiff.reporting.record import Record
from vdiff.reporting.wording import amount, count, counted, duration, megabytes, number


def lineage(record: Record) -> Markup:
    """The models in order, each with its hash and whether its teacher is the one that is there.

    Before them stands the file that the first one was imported from, if it was.
    """
    hashes = {card["name"]: card["hash"] for card in record.cards.values()}
    models = _models(record)
    files = _without_repeats(card["origin"] for card in models if card["origin"])
    links = [_file(told) for told in files] + [_model(card, hashes) for card in models]
    return tag("ol", links, class_="lineage")


def time_and_cost(record: Record, price_per_hour: float | None) -> Markup:
    """A row per stage: how far it is, and how long it took; what it cost where a price is known."""
    seconds = _seconds(record)
    heads = [
        tag("th", "stage", scope="col"),
        tag("th", "steps", scope="col", class_="n"),
        tag("th", "updates", scope="col", class_="n"),
        tag("th", "state", scope="col"),
        tag("th", "time", scope="col", class_="n"),
    ]
    if price_per_hour is not None:
        heads.append(tag("th", "cost", scope="col", class_="n"))
    head = tag("tr", heads)
    rows = [
        _stage_row(row, seconds.get(row["name"]), price_per_hour) for row in _all_stages(record)
    ]
    total = sum(seconds.get(row["name"], 0) for row in _all_stages(record))
    foot = None
    # an older vdiff wrote no times down: a sum of 0 s would be a lie
    if total:
        foot = tag("tfoot", _sum_row(total, price_per_hour))
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


def _sum_row(seconds: float, price_per_hour: float | None) -> Markup:
    cells = [
        tag("th", "together", scope="row"),
        *(tag("td") for _ in range(3)),
        tag("td", duration(seconds), class_="n"),
    ]
    if price_per_hour is not None:
        cells.append(tag("td", _money(seconds, price_per_hour), class_="n"))
    return tag("tr", cells)


def _seconds(record: Record) -> Mapping[str, float]:
    """Stage -> its time at work, as far as status.json tells."""
    if record.status is None:
        return {}
    times: Mapping[str, float] = record.status["seconds"]
    return times


def untimed(record: Record) -> list[str]:
    """Finished stages whose time nobody has written down."""
    seconds = _seconds(record)
    return [name for name in record.cards if name not in seconds]


def origin_tables(record: Record, gallery_device: str) -> Markup:
    """Data, versions and machine, as the last model's card tells them."""
    card = record.base
    if record.students:
        card = record.students[-1]
    status = record.status
    table = record.table
    lines: dict[str, Child] = {}
    if card is not None:
        lines |= _card_facts(card)
    if status is not None:
        lines["Trained on"] = status["machine"] or "not recorded by the vdiff that trained it"
        lines["Last worked"] = f"{status['changed'].replace('T', ' ')} on {status['host']}"
    if table is not None:
        lines["Evaluated"] = f"{table.made.replace('T', ' ')} by {table.made_by} on {table.machine}"
    if gallery_device:
        lines["Pictures drawn on"] = gallery_device
    rows = joined((tag("dt", name), tag("dd", value)) for name, value in lines.items())
    return tag("dl", rows, class_="facts")


def _card_facts(card: Mapping[str, Any]) -> dict[str, Child]:
    channels, height, width = card["shape"]
    data = card["data"]
    fingerprint = code(str(data.get("fingerprint")))
    packages = [f"{name} {version}" for name, version in card["versions"].items()]
    return {
        "Pictures": f"{channels} × {height} × {width}, {_classes(card['num_classes'])}",
        "Data": (f"{_pictures(data.get('num_images'))}, fingerprint ", fingerprint),
        "Network": f"{card['network']}, {amount(card['num_parameters'])} parameters",
        "Noise": _brief(card["diffusion"]),
        "Made by": ", ".join([card["made_by"], *packages]),
    }


def recipe(text: str) -> Markup:
    """The recipe as it is in the run."""
    summary = tag("summary", f"recipe.yaml, {count(len(text.splitlines()), 'line')}")
    return tag(
        "details", summary, tag("pre", escaped(text), tabindex=0), class_="recipe", open=True
    )


def _models(record: Record) -> list[Mapping[str, Any]]:
    return sorted(record.cards.values(), key=lambda card: (card["stage"], -card["num_steps"]))


def _without_repeats(origins: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Students repeat the origin of their base."""
    found: list[Mapping[str, Any]] = []
    for told in origins:
        if told not in found:
            found.append(told)
    return found


def _file(told: Mapping[str, Any]) -> Markup:
    """The file that a base was imported from."""
    lines = imported.lines(told)
    head = tag("h3", lines.pop("imported from"), tag("span", "imported", class_="aside"))
    facts = [_fact_of_file(name, text) for name, text in lines.items()]
    return tag("li", head, facts, class_="file")


def _fact_of_file(name: str, text: str) -> Markup:
    if name in ("its SHA-256", "revision"):
        return tag("p", f"{name.removeprefix('its ')} ", code(text))
    return tag("p", f"{name}: ", spoken(text))


def _model(card: Mapping[str, Any], hashes: Mapping[str, str]) -> Markup:
    head = tag("h3", card["name"], tag("span", counted(card["num_steps"]), class_="aside"))
    parts = ", ".join(
        (
            f"{amount(card['num_parameters'])} parameters",
            _updates(None if card["origin"] and not card["parent"] else card["updates"]),
            megabytes(card["bytes"]),
        )
    )
    return tag(
        "li",
        head,
        tag("p", parts),
        tag("p", "weights ", code(card["hash"])),
        _teacher(card, hashes),
    )


def _teacher(card: Mapping[str, Any], hashes: Mapping[str, str]) -> Markup:
    parent = card["parent"]
    if parent is None and card["origin"]:
        return tag("p", "imported from the file above", class_="aside")
    if parent is None:
        return tag("p", "learned from pictures", class_="aside")
    words = f"distilled from {parent['name']}, {counted(parent['num_steps'])}, "
    # The name alone proves nothing: a teacher that was trained anew keeps it.
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
    rows += [_waiting_row(stage) for stage in record.stages if stage.name not in names]
    for row in rows:
        _mark_running(row, record.status)
    return sorted(rows, key=lambda row: (row["stage"] is None, row["stage"] or 0))


def _waiting_row(stage: Stage) -> dict[str, Any]:
    return {
        "name": stage.name,
        "stage": stage.index,
        "num_steps": stage.num_steps,
        "updates": 0,
        "planned_updates": stage.settings.updates,
        "state": "waiting",
    }


def _mark_running(row: dict[str, Any], status: Mapping[str, Any] | None) -> None:
    """Put into the row of the stage that works now how far it is; the save on the disk is older."""
    if status is None or status["state"] != "running" or row["name"] != status["stage"]:
        return
    # a whole model folder is finished, even where the process has not said so yet
    if row["state"] == "whole":
        return
    row["state"] = "running"
    row["updates"] = status["update"]
    row["planned_updates"] = status["updates"]


def _stage_row(
    row: Mapping[str, Any], seconds: float | None, price_per_hour: float | None
) -> Markup:
    done = row["updates"]
    planned = row["planned_updates"]
    updates = amount(done)
    if planned not in (done, None):
        updates = f"{amount(done)} of {amount(planned)}"
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
    if seconds is None:
        return "–"
    return f"{seconds / 3600 * price_per_hour:,.2f}"


def _updates(num_updates: int | None) -> str:
    # a model that came from another program does not tell how long it learned
    if num_updates is None:
        return f"{amount(None)} updates"
    return count(num_updates, "update")


def _classes(num_classes: int) -> str:
    if not num_classes:
        return "no classes"
    return count(num_classes, "class")


def _pictures(num_images: object) -> str:
    """As the card of a stranger's model tells it, which may hold anything."""
    if not isinstance(num_images, int):
        return "? pictures"
    return count(num_images, "picture")


def _brief(value: Any) -> str:
    """Nested facts on one line."""
    if isinstance(value, Mapping):
        return ", ".join(_named(name, inner) for name, inner in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        shown = [_brief(inner) for inner in value[:_MOST_OF_A_LIST]]
        if len(value) > _MOST_OF_A_LIST:
            # a table of betas has a thousand numbers
            shown.append("...")
        return ", ".join(shown)
    if isinstance(value, float):
        return number(value)
    return str(value)


_MOST_OF_A_LIST = 8


def _named(name: str, value: Any) -> str:
    # `schedule cosine` reads better than `schedule kind cosine`
    if name == "kind":
        return _brief(value)
    return f"{name} {_brief(value)}"


def sentences(lines: Sequence[str], class_: str) -> Markup | None:
    """Sentences one below the other; nothing for none."""
    if not lines:
        return None
    return tag("ul", [tag("li", spoken(line)) for line in lines], class_=class_)
