"""`vdiff compare`: two models, same noise, side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vdiff.cli import completion, outputs
from vdiff.cli.options import DryRunOption, ForceOption, RecipeOption, mode, open_recipe
from vdiff.cli.session import DeviceOption, RunOption, run_folder
from vdiff.disk.ours import is_picture
from vdiff.errors import UsageError
from vdiff.system.plural import count

if TYPE_CHECKING:
    from vdiff.metrics.pair_metric import PairMetricSection
    from vdiff.model_folder.card import ModelCard
    from vdiff.reporting.pair import Pair

MOST = 64
Model = "A run (its last stage), a model folder, or its name in the run"


def compare(
    a: Annotated[
        str, typer.Argument(metavar="A", help=Model, autocompletion=completion.models_and_runs)
    ],
    b: Annotated[
        str, typer.Argument(metavar="B", help="Likewise", autocompletion=completion.models_and_runs)
    ],
    seeds: Annotated[
        str, typer.Option("--seeds", metavar="0-15", help="One seed per picture")
    ] = "0-15",
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Steps of both [each model's own number]")
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option("--guidance", metavar="G", help="Guide both to their classes; 1 is none"),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", help="compare.png, or .html for a page with a divider")
    ] = Path("compare.png"),
    metrics: Annotated[
        str, typer.Option("--metrics", metavar="A,B", help="Which metrics of pairs")
    ] = "agreement",
    recipe: RecipeOption = None,
    run: RunOption = None,
    device: DeviceOption = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Show two models side by side, from the same noise

    Says how far their pictures agree, and puts the numbers of their evaluations together where the
    protocols are equal.

    Examples:
      vdiff compare original base_4
      vdiff compare runs/digits runs/digits_2 --seeds 0-7 --out compare.html
    """
    from vdiff.cli.sample import numbers_in
    from vdiff.cli.taking_in import all_taken_in
    from vdiff.drawing.guidance import Guidance, way
    from vdiff.model_folder import card as model_card

    numbers = numbers_in(seeds, "--seeds", 2**63)
    if len(numbers) > MOST:
        raise UsageError(
            f"{len(numbers)} pictures do not fit beside one another",
            f"ask for at most {MOST}",
            "--seeds",
        )
    a, b = all_taken_in(None, [a, b], not dry_run)
    folders = (_folder(a, recipe, run), _folder(b, recipe, run))
    cards = (model_card.read_card(folders[0]), model_card.read_card(folders[1]))
    names = _names(folders)
    _check(cards, names, steps)
    strongly = Guidance(guidance)
    for card in cards:
        way(card, strongly)
    sections = _metrics(metrics)
    _check_target(out, force)
    if dry_run:
        _tell_plan(names, out, len(numbers))
        return
    from vdiff.machine.machine import pick_device
    from vdiff.reporting import pair

    models = pair.drawn(folders, names, numbers, steps, pick_device(device), sections, strongly)
    _write(models, out)
    _tell(models, out)


def _folder(given: str, recipe: str | None, run: Path | None) -> Path:
    """The model folder that is meant.   Errors: UsageError, ModelFileError."""
    from vdiff.model_folder.card import is_model_folder
    from vdiff.runs.folder import RunFolder

    path = Path(given)
    if is_model_folder(path):
        return path
    place = RunFolder(path)
    if path.is_dir() and place.is_begun():
        names = place.models()
        if not names:
            raise UsageError(f"no model of `{given}` is finished yet", "run `vdiff train` first")
        return place.model(names[-1])
    if run is not None:
        return RunFolder(run).find(given)
    parsed, _ = open_recipe(recipe, None)
    return run_folder(parsed, None).find(given)


def _names(folders: tuple[Path, Path]) -> tuple[str, str]:
    """The folders' names, with their runs' before them where they are equal."""
    a, b = (folder.resolve() for folder in folders)
    if a.name != b.name:
        return a.name, b.name
    return f"{a.parent.name}/{a.name}", f"{b.parent.name}/{b.name}"


def _check(cards: "tuple[ModelCard, ModelCard]", names: tuple[str, str], steps: int | None) -> None:
    from vdiff.model_folder.card import check_steps
    from vdiff.reporting.pair import check_alike

    check_alike(*cards, names)
    for card, name in zip(cards, names, strict=True):
        if steps is not None:
            check_steps(card, steps, name)


def _metrics(given: str) -> "list[PairMetricSection]":
    """The metrics that are named.   Errors: UsageError for one that compares no pairs."""
    from vdiff.metrics.metric import named
    from vdiff.metrics.pair_metric import PairMetricSection

    sections = []
    for section in named(given.split(",")):
        if not isinstance(section, PairMetricSection):
            problem = (
                f"the metric `{section.name}` compares sets of pictures, "
                "not the pictures of two models"
            )
            raise UsageError(
                problem, "name metrics of pairs, as in --metrics agreement", "--metrics"
            )
        sections.append(section)
    return sections


def _check_target(out: Path, force: bool) -> None:
    from vdiff.reporting.page import is_ours

    if out.suffix not in (".png", ".html"):
        raise UsageError(
            f"`{out.name}` names no form that a comparison has", "end it in .png or .html", "--out"
        )
    if out.suffix == ".html":
        # a page says who made it, so an earlier one may go; a PNG may be anybody's
        outputs.check_file(out, is_ours, force=True)
    else:
        outputs.check_file(out, is_picture, force)


def _write(models: "Pair", out: Path) -> None:
    from vdiff.disk import whole_folder
    from vdiff.reporting import pair
    from vdiff.reporting.page import is_ours

    if out.suffix == ".png":
        pair.write_grid(out, models)
    else:
        whole_folder.write_text(out, pair.html(models), is_ours)


def _tell_plan(names: tuple[str, str], out: Path, num_images: int) -> None:
    from vdiff.cli import console

    pictures = count(num_images, "picture")
    console.say(f"would draw {pictures} each with `{names[0]}` and `{names[1]}`: `{out}`", "green")
    if mode.json:
        plan = {"dry_run": True, "a": names[0], "b": names[1], "num_images": num_images}
        console.emit_json({**plan, "out": str(out)})


def _tell(models: "Pair", out: Path) -> None:
    from vdiff.cli import console
    from vdiff.reporting import pair

    names = (models.a.name, models.b.name)
    if mode.json:
        console.emit_json({"out": str(out), **pair.as_json(models)})
    else:
        console.table(("", *names), pair.words(models), right=names)
        if models.protocol is not None:
            console.write("")
            console.prose(models.protocol.line())
    pictures = count(len(models.seeds), "picture")
    console.say(f"on {pictures} they agree to {pair.in_words(models)}")
    # two that were never evaluated have nothing that somebody could compare by mistake
    if models.a.row and models.b.row and models.protocol is None:
        console.warn(f"their evaluations are not to be compared: {pair.difference(models)}")
    console.say(f"drew both: `{out}`", "green")
