"""Two models side by side: their pictures from the same noise, and their numbers where these may be compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vdiff.drawing.pictures import draw_with
from vdiff.errors import DataError, VdiffError
from vdiff.images.images import Row as PictureRow
from vdiff.images.images import write_rows
from vdiff.metrics import table as tables
from vdiff.metrics.agreement import AgreementSection
from vdiff.metrics.metric import Means, ordered
from vdiff.metrics.pair_metric import PairMetricSection, Pairs, measures_of
from vdiff.metrics.table import EvaluationTable, PairNumbers, Protocol, Row, Value
from vdiff.model_folder import checkpoint
from vdiff.model_folder.card import ModelCard
from vdiff.reporting import quality, side_by_side
from vdiff.reporting.markup import Markup, joined, spoken, tag
from vdiff.reporting.page import page, section
from vdiff.reporting.pictures import Strip
from vdiff.reporting.wording import amount, counted, number, signed_range
from vdiff.runs.folder import RunFolder


@dataclass(frozen=True)
class Side:
    """One of the two. name: for people.   row: its numbers, if its run has been evaluated at this number of steps."""

    name: str
    folder: Path
    card: ModelCard
    strip: Strip
    table: EvaluationTable | None
    row: Row | None

    @property
    def protocol(self) -> Protocol | None:
        """That of its numbers, if it has any."""
        return self.table.protocol if self.table is not None and self.row is not None else None


@dataclass(frozen=True)
class Pair:
    """Both, drawn from the same seeds. compared: what each metric of pairs says, after rounding to 8 bits, by name."""

    a: Side
    b: Side
    seeds: Sequence[int]
    compared: Mapping[str, Mapping[str, float | None]]

    @property
    def protocol(self) -> Protocol | None:
        """That of both sides' numbers; None where they must not be compared."""
        one, other = self.a.protocol, self.b.protocol
        return one.joined_with(other) if one and other and one.difference(other) is None else None


def check_alike(a: ModelCard, b: ModelCard, names: tuple[str, str]) -> None:
    """DataError for models whose pictures cannot be put beside one another."""
    if a.shape != b.shape:
        problem = f"`{names[0]}` draws {_shape(a)}, `{names[1]}` draws {_shape(b)}"
        raise DataError(problem, "compare two models of one size and number of channels")
    if a.num_classes != b.num_classes:
        problem = f"`{names[0]}` knows {a.num_classes} classes, `{names[1]}` knows {b.num_classes}"
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
) -> Pair:
    """Draw with both and compare. steps: of both; None for each model's own number.

    Errors: ModelFileError, DataError, MachineError.
    """
    a, b = (
        _side(folder, name, seeds, steps, device)
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
    rows = [PictureRow(_said(side), side.strip.pictures) for side in (pair.a, pair.b)]
    write_rows(path, rows, {"vdiff.models": f"{pair.a.card.hash} {pair.b.card.hash}"})


def html(pair: Pair) -> str:
    """The two under a divider, and their numbers."""
    a, b = pair.a, pair.b
    said = (
        f"On {len(pair.seeds)} pictures, `{a.name}` in {counted(a.strip.num_steps)} and `{b.name}` in "
        f"{counted(b.strip.num_steps)} agree to {in_words(pair)}."
    )
    head = (
        tag("p", tag("span", "vdiff compare"), class_="eyebrow"),
        tag("h1", f"{a.name} and {b.name}"),
    )
    lead = f"Both sides start from the same noise: {a.name} on the left of the divider, {b.name} on the right."
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
    numbers = {name: value for each in pair.compared.values() for name, value in each.items()}
    said = []
    for measure in measures_of([PairNumbers(name="", hash="", num_steps=1, numbers=numbers)]):
        value = numbers[measure.name]
        said.append(
            "equal pixels"
            if value is None
            else f"{measure.brief} {quality.amount_of(measure, value)}"
        )
    return ", ".join(said)


def facts(pair: Pair) -> dict[str, Any]:
    """All of it for JSON; `psnr` is null for equal pictures. `pairs`: metrics of pairs beside agreement, by name."""
    compared = {name: dict(numbers) for name, numbers in pair.compared.items()}
    agreed = {"agreement": compared.pop("agreement")} if "agreement" in compared else {}
    others = {"pairs": compared} if compared else {}
    sides = {}
    for key, side in (("a", pair.a), ("b", pair.b)):
        sides[key] = {
            "name": side.name,
            "path": str(side.folder),
            "hash": side.card.hash,
            "num_steps": side.strip.num_steps,
            "num_parameters": side.card.num_parameters,
            "evaluation": side.row.model_dump(mode="json") if side.row else None,
            "protocol": side.protocol.model_dump(mode="json") if side.protocol else None,
        }
    return {
        **sides,
        "num_images": len(pair.seeds),
        **agreed,
        **others,
        "same_protocol": pair.protocol is not None,
    }


def words(pair: Pair) -> list[tuple[str, str, str]]:
    """Rows of (what, of A, of B) for a terminal."""
    if pair.protocol is None:
        return _facts(pair)
    a, b = (side.row.metrics if side.row else {} for side in (pair.a, pair.b))
    return _facts(pair) + [(name, _value(a, name), _value(b, name)) for name in ordered({**a, **b})]


def _facts(pair: Pair) -> list[tuple[str, str, str]]:
    a, b = pair.a, pair.b
    return [
        ("steps", f"{a.strip.num_steps:,}", f"{b.strip.num_steps:,}"),
        ("parameters", amount(a.card.num_parameters), amount(b.card.num_parameters)),
        ("weights", a.card.hash[:8], b.card.hash[:8]),
    ]


def _value(metrics: Mapping[str, Value], name: str) -> str:
    if name not in metrics:
        return "–"
    found = metrics[name]
    interval = signed_range(found.low, found.high)
    return number(found.value) + (f" ({interval})" if interval else "")


def _side(
    folder: Path, name: str, seeds: Sequence[int], steps: int | None, device: torch.device | str
) -> Side:
    model = checkpoint.load(folder, device)
    card = model.card
    num_steps = steps or card.num_steps
    pictures = draw_with(model, seeds, num_steps, device=device)
    table = _table(folder)
    found = (
        [row for row in table.rows if (row.hash, row.num_steps) == (card.hash, num_steps)]
        if table
        else []
    )
    strip = Strip(name, "student", num_steps, model.codec.decode(pictures, name))
    return Side(name, folder, card, strip, table, found[0] if found else None)


def _table(folder: Path) -> EvaluationTable | None:
    try:
        return tables.read(RunFolder(folder.resolve().parent).table)
    except VdiffError:
        return None  # `vdiff report` tells what is wrong with it


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
        both = tuple(side.row for side in sides if side.row)
        joint = pair.a.table.model_copy(update={"rows": both, "protocol": pair.protocol})
        return "Both under one protocol.", quality.numbers(joint)
    found = []
    for side in sides:
        if side.table and side.row:
            apart = side.table.model_copy(update={"rows": (side.row,)})
            found.append(joined((tag("h3", side.name), quality.numbers(apart))))
    return spoken(f"Not to be compared: {difference(pair)}."), joined(found)


def difference(pair: Pair) -> str:
    """Why the numbers of two evaluations must not be compared."""
    a, b = pair.a, pair.b
    if a.protocol is None or b.protocol is None:
        missing = " and ".join(f"`{side.name}`" for side in (a, b) if side.protocol is None)
        return f"{missing} has no evaluation at this number of steps"
    return f"of the two protocols, {a.protocol.difference(b.protocol)}"
