"""`vdiff demo`: handwritten digits, from pictures to a one-step sampler,
without network and GPU.
"""

import os
import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from vdiff.cli import hints, outputs
from vdiff.cli.options import mode
from vdiff.disk.ours import anything, is_picture, nothing

RECIPE = "recipe.yaml"
PICTURE = "digits.png"
REPORT = "report.html"


def demo(
    out: Annotated[
        Path, typer.Option("--out", help="Folder to work in; a demo that was stopped goes on there")
    ] = Path("vdiff-demo"),
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SECTION.KEY=VALUE",
            help="Change one key of the recipe; may be repeated",
        ),
    ] = None,
) -> None:
    """Go the whole way with handwritten digits

    Trains a small model on 1,797 digits that ship with vdiff, distills it to one step and shows
    both side by side, as a picture and as a page.
    A few minutes on two CPU cores. Stopped anywhere, the same command goes on.

    Examples:
      vdiff demo
      vdiff demo --out /tmp/digits --set train.updates=500
    """
    from vdiff.cli import console, displays, session
    from vdiff.cli.options import open_recipe
    from vdiff.digits import write_folder

    begun = time.monotonic()
    _check(out)
    out.mkdir(parents=True, exist_ok=True)
    # the recipe names its paths from here, and the commands that the demo prints at the end work
    os.chdir(out)
    _recipe_here()
    # a mistake in `--set` is told before anything is made
    open_recipe(RECIPE, changes)
    console.say(f"{write_folder(Path('digits')):,} handwritten digits: `{out}/digits`")
    _prepare(changes)
    with session.chain("recipe.yaml", changes, None, "cpu", displays.fit_progress) as chain:
        chain.train()
        chain.leave_if_asked(chain.stages[0])
    with session.chain("recipe.yaml", changes, None, "cpu", displays.chain_progress) as chain:
        cards = chain.distill()
    run = chain.run
    _picture(
        run.model("original"),
        [run.model(card.name) for card in cards if card.num_steps in (4, 2, 1)],
    )
    _report(run.path)
    console.say(
        f"done in {time.monotonic() - begun:.0f} s; look at `{out}/{PICTURE}` and `{out}/{REPORT}`",
        "green",
    )
    look = hints.command(["sample", "--checkpoint", cards[-1].name], (None, changes, None))
    console.say(f"next: `cd {shlex.quote(str(out))}`, then `vdiff inspect` or `{look}`")
    if mode.json:
        stages = [session.summary(card, run) for card in cards]
        console.emit_json(
            {"picture": str(out / PICTURE), "report": str(out / REPORT), "stages": stages}
        )


def _check(out: Path) -> None:
    """UsageError for what vdiff did not make, in the place of anything that the
    demo leaves in its folder.
    """
    from vdiff.digits import check_folder
    from vdiff.reporting.page import is_ours

    outputs.check_parents(out / RECIPE)
    # any recipe is kept, also one that somebody wrote
    if not (out / RECIPE).is_file():
        outputs.check_file(out / RECIPE, anything, force=True)
    check_folder(out / "digits")
    outputs.check_file(out / PICTURE, is_picture, force=True)
    outputs.check_file(out / REPORT, is_ours, force=True)


def _recipe_here() -> None:
    """The shipped recipe in this folder; one that somebody has changed is kept."""
    from vdiff.disk import whole_folder
    from vdiff.recipe import text as recipe_text

    here = Path(RECIPE)
    if not here.exists():
        whole_folder.write_text(here, recipe_text.shipped()["digits"].read_text("utf-8"), nothing)


def _prepare(changes: list[str] | None) -> None:
    from vdiff.cli import displays
    from vdiff.cli.options import open_recipe
    from vdiff.data.lmdb_images import LmdbImagesSection
    from vdiff.data.prepare import prepare

    data = open_recipe("recipe.yaml", changes)[0].data
    assert isinstance(data, LmdbImagesSection), "the demo's recipe names the kind `lmdb`"
    with displays.prepare_progress() as shown:
        prepare(
            Path("digits"),
            data.path,
            sizes=[data.size],
            channels=data.channels,
            on_progress=lambda progress: shown.update(
                progress.done, progress.skipped, progress.total
            ),
        )


def _picture(base: Path, students: list[Path]) -> None:
    from vdiff.cli import console
    from vdiff.reporting.comparison import compare

    compare(base, students, Path(PICTURE), say=console.say)


def _report(run: Path) -> None:
    from vdiff.cli import console
    from vdiff.cli.report import write

    console.say(f"making the report of `{run}`")
    write(run, Path(REPORT), device="cpu", say=lambda text: None)
