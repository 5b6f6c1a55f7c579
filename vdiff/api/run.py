"""A run, as its folder tells of it: models, log, recipe, report. Nothing in it is changed."""

import os
from dataclasses import dataclass
from pathlib import Path

from vdiff.api.model import Model, load
from vdiff.api.paths import path_of, reading
from vdiff.api.recipe import read_recipe
from vdiff.disk import whole_folder
from vdiff.errors import DataError, ModelFileError, UsageError
from vdiff.machine.machine import Precision
from vdiff.model_folder.card import ModelCard, is_model_folder, read_card
from vdiff.recipe.recipe import Recipe
from vdiff.reporting import record
from vdiff.reporting.chart import Axis, Line, Point, chart, suits_log
from vdiff.reporting.markup import Markup, tag
from vdiff.reporting.page import is_ours
from vdiff.reporting.report import report
from vdiff.runs import status
from vdiff.runs.folder import RunFolder

_NUMBERS = ("loss", "grad_norm", "learning_rate", "skipped")
_HEIGHT = 720
"""Pixels of a report in the cell of a notebook, where it scrolls."""

_STYLE = tag(
    "style",
    Markup(
        ".vdiff-run .losses { display: flex; flex-wrap: wrap; gap: 1rem; } .vdiff-run .losses > "
        "div { width: 20rem; }.vdiff-run svg { max-width: 24rem; overflow: visible; }.vdiff-run "
        "svg text { font-size: 11.5px; fill: currentColor; opacity: .7; }.vdiff-run .up { "
        "text-anchor: end; } .vdiff-run .across, .vdiff-run .axis { text-anchor: middle; "
        "}.vdiff-run .rule { stroke: currentColor; opacity: .2; }.vdiff-run .line { fill: none; "
        "stroke: currentColor; stroke-width: 1.4; }"
    ),
)
"""Of the charts: the colour of the text, so that they are seen in light and in dark notebooks."""


@dataclass(frozen=True, repr=False)
class Report:
    """The page of `vdiff report`, without new pictures. In a notebook it shows itself.

    html: the page, which needs nothing else.
    """

    html: str

    def save(self, path: str | os.PathLike[str], force: bool = False) -> Path:
        """Write the page as an HTML file, whole or not at all; gives the path.

        path: of the file.   force: replace a report of vdiff; nothing else is ever replaced.
        Errors: UsageError, MachineError.
        """
        place = path_of(path)
        if os.path.lexists(place) and not force:
            fix = "`save(path, force=True)` replaces what vdiff made; or name another place"
            raise UsageError(f"`{place}` is there already", fix, place)
        whole_folder.make(place.parent)
        whole_folder.write_text(place, self.html, is_ours)
        return place

    def __repr__(self) -> str:
        return f"Report({len(self.html):,} characters of HTML)"

    def _repr_html_(self) -> str:
        # a frame keeps the styles of the page and those of the notebook apart
        look = f"width: 100%; height: {_HEIGHT}px; border: 0"
        return tag("iframe", srcdoc=self.html, style=look, title="vdiff report")


class Run:
    """A run folder, read anew with every question: also of a run that is still going. `run` makes
    it.

    path: the folder.
    """

    path: Path

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder = RunFolder(path)

    @property
    def models(self) -> dict[str, ModelCard]:
        """The finished models by name, the base first, then the students in the order of the chain.

        One whose card cannot be read is left out; `report` tells what is wrong with it.
        """
        found = {}
        with reading(self.path):
            for name in self._folder.models():
                try:
                    found[name] = read_card(self._folder.model(name))
                except ModelFileError:
                    continue
        return dict(sorted(found.items(), key=lambda item: (item[1].stage, -item[1].num_steps)))

    @property
    def recipe(self) -> Recipe:
        """The recipe that the run was begun with.

        Errors: UsageError for none, or for one with mistakes.
        """
        if not self._folder.recipe.is_file():
            raise UsageError(
                f"there is no recipe in `{self.path}`", "`vdiff train` leaves one there", self.path
            )
        return read_recipe(self._folder.recipe)

    @property
    def log(self) -> list[dict[str, str | float | None]]:
        """What the trainings told, a row per line of the log: `pandas.DataFrame(run.log)`.

        stage: the name of the model.   update: optimizer updates done in this stage, from 1 on.
        loss: mean over the updates since the row before, with the recipe's weighting; None where
        none was finite.
        grad_norm: norm of the gradient before clipping, mean likewise.
        learning_rate: of this update.
        skipped: updates of the stage until here whose loss or gradient was not finite.
        Lines that are damaged are left out.   Errors: MachineError.
        """
        with reading(self.path):
            return [
                {"stage": entry["stage"], "update": entry["update"]}
                | {name: _number(entry.get(name)) for name in _NUMBERS}
                for entry in record.entries(self._folder.log)
                if "loss" in entry
            ]

    @property
    def trends(self) -> list[dict[str, str | float | None]]:
        """What was measured while networks learned (`evaluate.every` in the recipe),
        a row per number.

        stage, update: as in `log`.   metric: as `vdiff evaluate` names it.
        value: in the metric's unit.
        num_images: how many were drawn for it; numbers of different numbers of images cannot be
        compared.
        """
        with reading(self.path):
            return [
                {
                    "stage": entry["stage"],
                    "update": entry["update"],
                    "metric": str(metric),
                    "value": _number(value),
                    "num_images": _number(entry.get("num_images")),
                }
                for entry in record.entries(self._folder.log)
                if isinstance(entry.get("trend"), dict)
                for metric, value in entry["trend"].items()
            ]

    @property
    def state(self) -> str | None:
        """`running`, `done`, `stopped`, `failed` or `killed`; None where the run says nothing."""
        found = status.read(self._folder.status)
        if found is None:
            return None
        return found.state

    def load(
        self, name: str, *, device: str | None = None, precision: Precision | None = None
    ) -> Model:
        """The model with this name, as in `models`; see `vdiff.load`.

        Errors: ModelFileError naming the others.
        """
        return load(self._folder.model(name), device=device, precision=precision)

    def report(self) -> Report:
        """The page of `vdiff report`: quality, losses, lineage, time.

        `vdiff report` also draws pictures for it.
        """
        with reading(self.path):
            undrawn = (
                f"`vdiff report {self.path}` draws pictures of all stages from the same noise."
            )
            return Report(report(record.read(self.path), None, undrawn=undrawn))

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {', '.join(self.models) or 'no models yet'})"

    def _repr_html_(self) -> str:
        left = {"style": "text-align: left"}
        head = tag(
            "tr",
            [
                tag("th", name, **left)
                for name in ("model", "steps", "updates", "weights", "SHA-256")
            ],
        )
        rows = [
            tag(
                "tr",
                [
                    tag("td", value, **left)
                    for value in (
                        name,
                        f"{card.num_steps:,}",
                        f"{card.updates:,}",
                        f"{card.num_parameters:,}",
                        card.hash[:16],
                    )
                ],
            )
            for name, card in self.models.items()
        ]
        title = str(self.path)
        if self.state:
            title = f"{self.path} ({self.state})"
        return tag(
            "div",
            _STYLE,
            tag("b", title),
            tag("table", head, rows),
            self._losses(),
            class_="vdiff-run",
        )

    def _losses(self) -> Markup:
        """The losses of all stages, a chart each: those of different stages cannot be compared."""
        drawn = []
        for stage, points in record.losses(self._folder.log).items():
            values = [value for _, value in points]
            y = Axis("loss")
            if suits_log(values):
                y = Axis("loss", log=10)
            line = Line(stage, "plain", [Point(*point) for point in points], marked=False)
            drawn.append(
                tag(
                    "div",
                    tag("p", f"{stage}: loss"),
                    chart(f"Loss of {stage}", [line], Axis("update"), y),
                )
            )
        return tag("div", drawn, class_="losses")


def run(path: str | os.PathLike[str]) -> Run:
    """A run, finished or still going.

    path: the folder that `vdiff train` works in, as in `runs/x`.
    Errors: DataError where nothing has begun; MachineError for a folder that cannot be read.

    >>> tiny = run("runs/tiny")
    >>> list(tiny.models)
    ['original', 'base_0', 'base_1', 'base_2']
    >>> sorted(tiny.log[0])
    ['grad_norm', 'learning_rate', 'loss', 'skipped', 'stage', 'update']
    """
    place = path_of(path)
    with reading(place):
        if RunFolder(place).is_begun():
            return Run(place)
    if is_model_folder(place):
        fix = f"load it with vdiff.load({str(place)!r}), or name the folder it lies in"
        raise DataError(f"`{place}` is a model folder, not a run", fix)
    raise DataError(
        f"there is no run in `{place}`",
        "name a folder that `vdiff train` works in, as in runs/celeba_u",
    )


def _number(value: object) -> float | None:
    """A number of the log; None for what is none, or no finite one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # NaN, too, is not below infinity
    if not abs(value) < float("inf"):
        return None
    return value
