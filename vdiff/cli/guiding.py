"""Of which classes `vdiff sample` draws, and how strongly it is guided to them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from vdiff.cli import completion, session
from vdiff.errors import UsageError

if TYPE_CHECKING:
    from vdiff.diffusion.condition import Condition
    from vdiff.drawing.guidance import Guidance, Guide
    from vdiff.evaluation.subjects import Subject
    from vdiff.machine.machine import Machine
    from vdiff.machine.processes import Processes
    from vdiff.model_folder.card import ModelCard
    from vdiff.recipe.recipe import Recipe

GuidanceOption = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        metavar="G",
        help="Lead to the class: x_u + G (x_c - x_u); 1 is none, others' w is G - 1",
    ),
]
IntervalOption = Annotated[
    str | None,
    typer.Option(
        "--guidance-interval",
        metavar="LOW,HIGH",
        help="Noise levels sigma/alpha in which it acts, as 0.28,2.9 [all]",
    ),
]
GuideOption = Annotated[
    str | None,
    typer.Option(
        "--guide-with",
        metavar="NAME|PATH",
        help="Lead away from a weaker model instead; works without classes",
        autocompletion=completion.models,
    ),
]
PerClassOption = Annotated[
    int | None,
    typer.Option(
        "--per-class", min=1, metavar="N", help="N pictures of every class, from the same N seeds"
    ),
]
ClassOption = Annotated[
    str | None,
    typer.Option(
        "--class", metavar="3|0-9|cat", help="Classes by number or name, in turn [all, by seed]"
    ),
]

MOST_ROWS = 256
"""Of a grid: a picture with more is too large to be looked at."""


class Asked(NamedTuple):
    """What the options say of guidance, before any model is known."""

    strength: float | None
    interval: str | None
    guide: str | None

    def by(self, guides: Sequence[str]) -> "Asked":
        """The same with the guide that was taken in, if any was named."""
        return self._replace(guide=next(iter(guides), None))

    def models(self, checkpoint: str) -> list[str]:
        """Both models that are named."""
        return [each for each in (checkpoint, self.guide) if each is not None]

    def options(self) -> dict[str, object]:
        """As they are typed."""
        return {
            "--guidance": self.strength,
            "--guidance-interval": self.interval,
            "--guide-with": self.guide,
        }

    def of(
        self, others: "Processes | None", recipe: "Recipe", run: Path | None, card: "ModelCard"
    ) -> "Guidance":
        """The same, looked at whether this model can be given it; its guide is not loaded yet.

        others: None where this process decides for itself.   Errors: UsageError, ModelFileError.
        """
        from vdiff.drawing import guidance

        guide: guidance.Guide | None = None
        if self.guide is not None:
            guide = _guide(others, self.guide, recipe, run)
        interval = None
        if self.interval is not None:
            interval = guidance.interval_of(self.interval, "--guidance-interval")
        asked = guidance.Guidance(self.strength, interval, guide)
        guidance.way(card, asked)
        return asked


def _guide(others: "Processes | None", given: str, recipe: "Recipe", run: Path | None) -> "Guide":
    from vdiff.drawing import guidance
    from vdiff.model_folder import card
    from vdiff.runs import telling

    def find() -> str:
        return str(session.run_folder(recipe, run).find(given))

    if others is None:
        folder = Path(find())
        return guidance.Guide(folder, card.read_card(folder))
    folder = Path(others.told(find))
    return guidance.Guide(folder, telling.card(others, lambda: card.read_card(folder)))


def loaded(asked: "Guidance", others: "Processes", machine: "Machine") -> "Guidance":
    """The same with its guide on the device that draws."""
    from dataclasses import replace

    from vdiff.runs import telling

    if asked.guide is None:
        return asked
    denoiser = telling.model(others, asked.guide.folder).denoiser
    machine.freeze(denoiser.network)
    return replace(asked, guide=replace(asked.guide, denoiser=denoiser))


def in_name(card: "ModelCard", asked: "Guidance") -> str:
    """What the file that vdiff chooses is called by."""
    from vdiff.drawing import guidance

    told = guidance.facts(card, asked) if asked.strength is not None else {}
    name = ""
    if "guidance" in told:
        name += f"-g{told['guidance']}"
    if "guidance_interval" in told:
        name += f"-in-{told['guidance_interval']}"
    if "guide" in told:
        name += f"-by-{told['guide'][:8]}"
    return name


def told(card: "ModelCard", asked: "Guidance", per_class: int | None) -> dict[str, str]:
    """What shapes the pictures, by the words that messages call it."""
    from vdiff.drawing import guidance

    found = guidance.facts(card, asked)
    names = ("guidance", "guidance_interval", "guide")
    return {
        **{name.replace("_", "-"): found.get(name, "none") for name in names},
        "per-class": "none" if per_class is None else str(per_class),
    }


class Chosen(NamedTuple):
    """What is drawn.

    seeds: one per picture.   condition: the class of each.
    rows: names of the classes, of which each has as many pictures, one after another; or none.
    """

    seeds: list[int]
    condition: "Condition"
    rows: Sequence[str] = ()


def chosen(
    card: "ModelCard",
    classes: str | None,
    per_class: int | None,
    seeds: list[int],
    count: Callable[[], int],
) -> Chosen:
    """The pictures that are asked for: the named classes in turn, or so many of each; else each
    seed's own, as `compare` and `evaluate` have it.

    seeds: none for the first ones.   count: how many there are where nobody says it.
    Errors: UsageError.
    """
    import torch

    from vdiff.diffusion.condition import NOTHING, Condition, of_seeds
    from vdiff.drawing import classes as of_card

    if classes is None and per_class is None:
        seeds = seeds or list(range(count()))
        if not card.num_classes:
            return Chosen(seeds, NOTHING)
        return Chosen(seeds, of_seeds(seeds, card.num_classes))
    of_card.check(card, "--class" if classes is not None else "--per-class")
    wanted = list(range(card.num_classes))
    if classes is not None:
        wanted = of_card.listed(card, classes, "--class")
    if per_class is None:
        seeds = seeds or list(range(count()))
        labels = [wanted[place % len(wanted)] for place in range(len(seeds))]
        return Chosen(seeds, Condition(torch.tensor(labels)))
    seeds = seeds or list(range(per_class))
    if len(seeds) != per_class:
        problem = f"--per-class {per_class} takes as many seeds, and {len(seeds)} are named"
        raise UsageError(problem, f"name {per_class} seeds, or none", "--seeds")
    labels = [label for label in wanted for _ in seeds]
    rows = of_card.names_of(card, wanted)
    return Chosen(seeds * len(wanted), Condition(torch.tensor(labels)), rows)


def check(per_class: int | None, num_images: int | None) -> None:
    """UsageError for two options that say how many pictures."""
    if per_class is not None and num_images is not None:
        problem = "-n and --per-class both say how many pictures"
        raise UsageError(problem, "leave one of them out", "--per-class")


def check_rows(rows: Sequence[str], target: Path) -> None:
    """UsageError for a grid that would be too large to look at."""
    if target.suffix == ".png" and len(rows) > MOST_ROWS:
        fix = "name some with --class, or leave the pictures in a folder: --out PATH/"
        raise UsageError(f"{len(rows):,} classes do not fit into one grid", fix, "--per-class")


def guidable(
    found: "list[Subject]", strength: float | None
) -> "tuple[list[Subject], list[Subject]]":
    """What is evaluated, and what cannot be guided like that, of which it is told."""
    from vdiff.cli import console
    from vdiff.drawing.guidance import Guidance
    from vdiff.evaluation import subjects

    able, others = subjects.guidable(found, Guidance(strength))
    names = list(dict.fromkeys(each.card.name for each in others if each.is_shown))
    if names:
        listed = ", ".join(f"`{name}`" for name in names)
        console.say(f"left out, as they cannot be guided so: {listed}")
    for card in {each.card.hash: each.card for each in able if each.is_shown}.values():
        held = card.guidance or {}
        if held.get("kind") == "baked" and strength is None:
            g = f"{held['value']:g}"
            console.warn(
                f"`{card.name}` has guidance {g} inside, and its teacher is drawn without: "
                f"`vdiff evaluate --guidance {g}` sets them beside each other"
            )
    return able, others
