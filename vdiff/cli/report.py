"""`vdiff report`: what a run has come to, on one page."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vdiff.cli import completion, outputs
from vdiff.cli.options import DryRunOption, ForceOption, RecipeOption, mode, open_recipe
from vdiff.cli.session import DeviceOption, run_folder
from vdiff.errors import UsageError, VdiffError

if TYPE_CHECKING:
    from vdiff.reporting.pictures import Gallery
    from vdiff.reporting.record import Record

Out = Annotated[
    Path | None, typer.Option("--out", metavar="PATH", help="The HTML file [RUN/report.html]")
]
Count = Annotated[int, typer.Option("-n", min=1, max=16, help="Pictures per model, from seed 0 on")]
Steps = Annotated[
    int | None,
    typer.Option("--steps", min=1, help="Steps of the original's pictures [its own number]"),
]
NoPictures = Annotated[
    bool, typer.Option("--no-pictures", help="Draw nothing: quick, also for large models")
]
Known = Annotated[
    str | None,
    typer.Option(
        "--published", metavar="cifar10|imagenet64", help="Show the paper's FID beside one's own"
    ),
]
Price = Annotated[
    float | None, typer.Option("--price-per-hour", min=0, help="Price of the machine, for the cost")
]


def report(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN", help="Run folder [that of the recipe]", autocompletion=completion.runs
        ),
    ] = None,
    out: Out = None,
    num_images: Count = 8,
    steps: Steps = None,
    no_pictures: NoPictures = False,
    published: Known = None,
    price_per_hour: Price = None,
    recipe: RecipeOption = None,
    device: DeviceOption = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Show a run on one page that works offline

    One HTML file: pictures of all stages from the same noise, quality against steps, losses,
    lineage, time and cost. Works on a run that is still going. An earlier report is replaced, and
    no other file.

    Examples:
      vdiff report
      vdiff report runs/celeba_u --out celeba.html --price-per-hour 2.5
    """
    from vdiff.cli import console
    from vdiff.reporting.page import is_ours
    from vdiff.reporting.published import CURVES

    if published is not None and published not in CURVES:
        raise UsageError(
            f"nothing is published for `{published}`",
            f"choose one of: {', '.join(CURVES)}",
            "--published",
        )
    folder = _run(run, recipe)
    target = out
    if target is None:
        target = folder / "report.html"
    outputs.check_file(target, is_ours, force=True)
    if dry_run:
        _tell(folder, target, "would make the report of")
        return
    count = num_images
    if no_pictures:
        count = 0
    more = {"published": published, "price_per_hour": price_per_hour}
    write(folder, target, count=count, steps=steps, device=device, say=console.say, **more)
    _tell(folder, target, "made the report of")


def write(
    folder: Path,
    target: Path,
    *,
    count: int = 8,
    steps: int | None = None,
    device: str | None = None,
    say: Callable[[str], None] = lambda text: None,
    **more: Any,
) -> None:
    """Leave the page of a run in a file.

    count: pictures per model, 0 for none.   say: told what is being drawn.
    more: see `reporting.report`.
    """
    from vdiff.disk import whole_folder
    from vdiff.reporting import record as records
    from vdiff.reporting.page import is_ours
    from vdiff.reporting.report import report as made

    record = records.read(folder)
    gallery = None
    computer = ""
    if not count:
        undrawn = "Left out, as `--no-pictures` asks."
    elif record.base is not None:
        gallery, undrawn, computer = _gallery(record, count, steps, device, say)
    elif record.cards:
        # a run may begin with a model folder from elsewhere: `vdiff distill --from PATH`
        undrawn = "The base network is not here."
    else:
        undrawn = "There is no base network to draw with yet."
    whole_folder.write_text(
        target, made(record, gallery, undrawn=undrawn, device=computer, **more), is_ours
    )


def _gallery(
    record: "Record", count: int, steps: int | None, device: str | None, say: Callable[[str], None]
) -> "tuple[Gallery | None, str, str]":
    """The pictures; or why there are none, and on what they were drawn."""
    from vdiff.cli import console
    from vdiff.machine.machine import pick_device
    from vdiff.reporting.pictures import Studio

    where = pick_device(device)
    base = record.base
    assert base is not None
    folders = {name: Path(card["path"]) for name, card in record.cards.items()}
    students = [card["name"] for card in record.students if card["shape"] == base["shape"]]
    try:
        studio = Studio(folders, record.folder.evaluation / "report", range(count), where, say)
        return studio.gallery(base["name"], students, steps), "", str(where)
    except VdiffError as err:
        # numbers and losses are worth a page of their own
        console.warn(f"no pictures: {err.problem}")
        return None, f"No pictures: {err.problem}.", ""


def _run(run: Path | None, recipe: str | None) -> Path:
    """The run folder; UsageError where nothing has begun."""
    from vdiff.runs.folder import RunFolder

    folder = run
    if folder is None:
        parsed, _ = open_recipe(recipe, None)
        folder = run_folder(parsed, None).path
    if not RunFolder(folder).is_begun():
        problem = f"there is no run in `{folder}`"
        raise UsageError(
            problem, "name a run folder, as in `vdiff report runs/NAME`, or run `vdiff train` first"
        )
    return folder


def _tell(folder: Path, target: Path, did: str) -> None:
    from vdiff.cli import console

    console.say(f"{did} `{folder}`: `{target}`", "green")
    if mode.json:
        console.emit_json({"run": str(folder), "out": str(target)})
