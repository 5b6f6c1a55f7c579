"""Two models side by side: their pictures from the same noise,
and their numbers where these may be compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vdiff.chain.own_recipe import sampler_of
from vdiff.drawing import guidance as guidance_of
from vdiff.drawing.guidance import UNASKED, Guidance
from vdiff.drawing.pictures import draw_with
from vdiff.errors import DataError, VdiffError
from vdiff.images.images import ImageRow, write_rows
from vdiff.metrics import table as tables
from vdiff.metrics.agreement import AgreementSection
from vdiff.metrics.metric import Means, ordered
from vdiff.metrics.pair_metric import PairMetricSection, Pairs, measures_of
from vdiff.metrics.table import EvaluationRow, EvaluationTable, PairNumbers, Protocol, Value
from vdiff.model_folder import checkpoint
from vdiff.model_folder.card import ModelCard
from vdiff.reporting import quality, side_by_side
from vdiff.reporting.markup import Markup, joined, spoken, tag
from vdiff.reporting.page import page, section
from vdiff.reporting.pictures import Strip
from vdiff.reporting.wording import amount, count, counted, number, signed_range
from vdiff.runs.folder import RunFolder


@dataclass(frozen=True)
class Side:
    """One of the two. name: for people.

    row: its numbers, if its run has been evaluated at this number of steps and this guidance.
    guidance: g; None for a model that is not guided.
    """

    name: str
    folder: Path
    card: ModelCard
    strip: Strip
    table: EvaluationTable | None
    row: EvaluationRow | None
    guidance: float | None = None

    @property
    def protocol(self) -> Protocol | None:
        """That of its numbers, if it has any."""
        if self.table is None or self.row is None:
            return None
        return self.table.protocol


@dataclass(frozen=True)
class Pair:
    """Both, drawn from the same seeds. compared:
    what each metric of pairs says, after rounding to 8 bits, by name.
    """

    a: Side
    b: Side
    seeds: Sequence[int]
    compared: Mapping[str, Mapping[str, float | None]]

    @property
    def protocol(self) -> Protocol | None:
        """That of both sides' numbers; None where they must not be compared."""
        one = self.a.protocol
        other = self.b.protocol
        if one is None or other is None or one.difference(other) is not None:
            return None
        return one.joined_with(other)


def check_alike(a: ModelCard, b: ModelCard, names: tuple[str, str]) -> None:
    """DataError for models whose pictures cannot be put beside one another."""
    if a.shape != b.shape:
        problem = f"`{names[0]}` draws {_shape(a)}, `{names[1]}` draws {_shape(b)}"
        raise DataError(problem, "compare two models of one size and number of channels")
    if a.num_classes != b.num_classes:
        problem = (
            f"`{names[0]}` knows {count(a.num_classes, 'class')}, "
            f"`{names[1]}` knows {b.num_classes}"
        )
        raise DataError(
            problem,
            "compare two models of the same classes: from the same noise they draw the same things",
        )


def drawn(
    folders: tuple[Path, Path],
    names: tuple[str, str],
    seeds: Sequence[int],
    steps: int | None = None,
    device: torch.device | str = "cpu",
    metrics: Sequence[PairMetricSection] = (AgreementSection(),),
    guidance: Guidance = UNASKED,
) -> Pair:
    """Draw with both and compare. steps: of both; None for each model's own number.

    guidance: of both.
    Errors: ModelFileError, DataError, MachineError; UsageError for one that cannot be guided so.
    """
    a, b = (
        _side(folder, name, seeds, steps, device, guidance)
        for folder, name in zip(folders, names, strict=True)
    )
    compared = {
        section.name: Pairs([section], Means(device=device)).compare(
            a.strip.pictures, b.strip.pictures
        )
        for section in metrics
    }
    return Pair(a, b, seeds, compared)


def write_grid(path: Path, pair: Pair) -> None:
    """A PNG with a row for each of the two."""
    rows = [ImageRow(_said(side), side.strip.pictures) for side in (pair.a, pair.b)]
    write_rows(path, rows, {"vdiff.models": f"{pair.a.card.hash} {pair.b.card.hash}"})


def html(pair: Pair) -> str:
    """The two under a divider, and their numbers."""
    a = pair.a
    b = pair.b
    said = (
        f"On {count(len(pair.seeds), 'picture')}, `{a.name}` in {counted(a.strip.num_steps)} and "
        f"`{b.name}` in {counted(b.strip.num_steps)} agree to {in_words(pair)}."
    )
    head = (
        tag("p", tag("span", "vdiff compare"), class_="eyebrow"),
        tag("h1", f"{a.name} and {b.name}"),
    )
    lead = (
        f"Both sides start from the same noise: {a.name} on the left of the divider, "
        f"{b.name} on the right."
    )
    sections = [
        section(
            "pictures",
            "Side by side",
            lead,
            side_by_side.slider(a.strip, [b.strip], pair.seeds, a.name),
        ),
        section("models", "The models", None, _models(pair)),
        section("numbers", "Evaluations", *_evaluations(pair)),
    ]
    return page(
        f"{a.name} and {b.name} · vdiff compare",
        [*head, tag("p", spoken(said), class_="verdict")],
        sections,
    )


def in_words(pair: Pair) -> str:
    """`PSNR 23.1 dB, SSIM 0.92, mean squared error 0.0123`."""
    numbers: dict[str, float | None] = {}
    for of_metric in pair.compared.values():
        numbers |= of_metric
    phrases = []
    for measure in measures_of([PairNumbers(name="", hash="", num_steps=1, numbers=numbers)]):
        value = numbers[measure.name]
        if value is None:
            # the PSNR of equal pictures is infinite, which JSON cannot hold
            phrases.append("equal pixels")
        else:
            phrases.append(f"{measure.brief} {quality.amount_of(measure, value)}")
    return ", ".join(phrases)


def as_json(pair: Pair) -> dict[str, Any]:
    """All of it for JSON; `psnr` is null for equal pictures.

    `pairs`: metrics of pairs beside agreement, by name.
    """
    compared = {name: dict(numbers) for name, numbers in pair.compared.items()}
    content: dict[str, Any] = {
        "a": _side_facts(pair.a),
        "b": _side_facts(pair.b),
        "num_images": len(pair.seeds),
    }
    if "agreement" in compared:
        # by itself, as before there were other metrics of pairs: scripts read it there
        content["agreement"] = compared.pop("agreement")
    if compared:
        content["pairs"] = compared
    content["same_protocol"] = pair.protocol is not None
    return content


def _side_facts(side: Side) -> dict[str, Any]:
    evaluation = None
    if side.row is not None:
        evaluation = side.row.model_dump(mode="json")
    protocol = None
    if side.protocol is not None:
        protocol = side.protocol.model_dump(mode="json")
    return {
        "name": side.name,
        "path": str(side.folder),
        "hash": side.card.hash,
        "num_steps": side.strip.num_steps,
        "guidance": side.guidance,
        "num_parameters": side.card.num_parameters,
        "evaluation": evaluation,
        "protocol": protocol,
    }


def words(pair: Pair) -> list[tuple[str, str, str]]:
    """Rows of (what, of A, of B) for a terminal."""
    # unequal protocols: two numbers in one line would be compared, whatever is written below
    if pair.protocol is None or pair.a.row is None or pair.b.row is None:
        return _facts(pair)
    a = pair.a.row.metrics
    b = pair.b.row.metrics
    return _facts(pair) + [(name, _value(a, name), _value(b, name)) for name in ordered({**a, **b})]


def _facts(pair: Pair) -> list[tuple[str, str, str]]:
    a = pair.a
    b = pair.b
    guided = []
    if a.guidance is not None or b.guidance is not None:
        guided.append(("guidance", _strength(a), _strength(b)))
    return [
        ("steps", f"{a.strip.num_steps:,}", f"{b.strip.num_steps:,}"),
        *guided,
        ("parameters", amount(a.card.num_parameters), amount(b.card.num_parameters)),
        ("weights", a.card.hash[:8], b.card.hash[:8]),
    ]


def _strength(side: Side) -> str:
    if side.guidance is None:
        return "none"
    return guidance_of.number(side.guidance)


def _value(metrics: Mapping[str, Value], name: str) -> str:
    if name not in metrics:
        return "–"
    value = metrics[name]
    interval = signed_range(value.low, value.high)
    if not interval:
        return number(value.value)
    return f"{number(value.value)} ({interval})"


def _side(
    folder: Path,
    name: str,
    seeds: Sequence[int],
    steps: int | None,
    device: torch.device | str,
    guidance: Guidance,
) -> Side:
    model = checkpoint.load(folder, device)
    card = model.card
    num_steps = steps or card.num_steps
    sampler = sampler_of(card, folder)
    pictures = draw_with(model, seeds, num_steps, sampler=sampler, device=device, guidance=guidance)
    table = _table(folder)
    g = None
    if card.guidance is not None or guidance_of.way(card, guidance) != "none":
        g = guidance_of.strength(card, guidance)
    row = _row(table, card, num_steps, g)
    strip = Strip(name, "student", num_steps, model.codec.decode(pictures, name))
    return Side(name, folder, card, strip, table, row, g)


def _row(
    table: EvaluationTable | None, card: ModelCard, num_steps: int, g: float | None
) -> EvaluationRow | None:
    """The numbers of a model at this number of steps and this guidance, by its weights: names are
    used again.
    """
    if table is None:
        return None
    for row in table.rows:
        if (row.hash, row.num_steps, row.guidance) == (card.hash, num_steps, g):
            return row
    return None


def _table(folder: Path) -> EvaluationTable | None:
    try:
        return tables.read(RunFolder(folder.resolve().parent).table)
    except VdiffError:
        # a damaged table is no reason to show no pictures; `vdiff report` tells what is wrong
        return None


def _said(side: Side) -> str:
    return f"{side.name}, {counted(side.strip.num_steps)}"


def _shape(card: ModelCard) -> str:
    return " x ".join(map(str, card.shape))


def _models(pair: Pair) -> Markup:
    sides = (pair.a, pair.b)
    rows = [
        tag(
            "tr",
            tag("th", what, scope="row"),
            tag("td", of_a, class_="n"),
            tag("td", of_b, class_="n"),
        )
        for what, of_a, of_b in _facts(pair)
    ]
    heads = [
        tag("th", "", scope="col"),
        *(tag("th", side.name, scope="col", class_="n") for side in sides),
    ]
    caption = tag("caption", f"Pictures: ddim eta=0, seeds {pair.seeds[0]} to {pair.seeds[-1]}.")
    inside = tag(
        "table", caption, tag("thead", tag("tr", heads)), tag("tbody", rows), class_="numbers"
    )
    return tag("div", inside, class_="wide", tabindex=0, role="region", aria_label="The models")


def _evaluations(pair: Pair) -> tuple[str | Markup, Markup]:
    sides = [side for side in (pair.a, pair.b) if side.row and side.table]
    if not sides:
        return (
            "Neither has been evaluated at this number of steps: vdiff evaluate RUN does it.",
            Markup(""),
        )
    if pair.protocol is not None and pair.a.table:
        rows = tuple(side.row for side in sides if side.row)
        joint = pair.a.table.model_copy(update={"rows": rows, "protocol": pair.protocol})
        return "Both under one protocol.", quality.numbers(joint)
    tables_apart = []
    for side in sides:
        if side.table and side.row:
            apart = side.table.model_copy(update={"rows": (side.row,)})
            tables_apart.append(joined((tag("h3", side.name), quality.numbers(apart))))
    return spoken(f"Not to be compared: {difference(pair)}."), joined(tables_apart)


def difference(pair: Pair) -> str:
    """Why the numbers of two evaluations must not be compared."""
    a = pair.a
    b = pair.b
    if a.protocol is None or b.protocol is None:
        missing = " and ".join(f"`{side.name}`" for side in (a, b) if side.protocol is None)
        return f"{missing} has no evaluation at this number of steps"
    return f"of the two protocols, {a.protocol.difference(b.protocol)}"
