"""`vdiff prepare`: pictures become an image store."""

import os
from collections import Counter
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vdiff.cli import hints
from vdiff.cli.acknowledging import acknowledging
from vdiff.cli.options import DryRunOption, ForceOption, RecipeOption, SetOption, mode, open_recipe
from vdiff.cli.signals import StopRequest
from vdiff.data import SOURCES
from vdiff.errors import Stopped, UsageError
from vdiff.system.plural import count

if TYPE_CHECKING:
    from vdiff.cli.progress import PrepareProgress
    from vdiff.data.prepare import Forecast, PrepareCounts, PrepareSummary
    from vdiff.data.sources import Group

Job = dict[str, Any]
"""The arguments that `data.prepare.forecast` and `data.prepare.prepare` share."""


def prepare(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="SOURCE", help=f"Pictures, as one of: {', '.join(SOURCES)} [data.source]"
        ),
    ] = None,
    sizes: Annotated[
        list[int] | None,
        typer.Option(
            "--size",
            metavar="PIXELS",
            help="Height and width in pixels; may be repeated [data.size]",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="PATH", help="Folder of the image store [data.path]"),
    ] = None,
    recipe: RecipeOption = None,
    changes: SetOption = None,
    channels: Annotated[
        int | None,
        typer.Option(metavar="1|3|4", help="1 grey, 3 colour, 4 with transparency [data.channels]"),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            metavar="png|webp|jpeg", help="File format inside; jpeg loses [data.encoding]"
        ),
    ] = None,
    quality: Annotated[
        int | None, typer.Option(metavar="1-100", help="Quality of jpeg [data.quality]")
    ] = None,
    resampling: Annotated[
        str | None,
        typer.Option(metavar="lanczos|box|bicubic", help="Filter for resizing [data.resampling]"),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(metavar="8-16", help="Bits that 16-bit grey pictures use [data.depth]"),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="auto|folders|none|FILE", help="Where classes come from [data.labels]"
        ),
    ] = None,
    max_bad: Annotated[
        str,
        typer.Option(metavar="SHARE", help="Share of unreadable pictures to skip, as 1% or 0.01"),
    ] = "1%",
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Threads [one per core, at most 16]")
    ] = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Turn a folder of pictures into an image store

    Class folders, or a dataset.json, give labels; with --labels folders the topmost folders do, and
    pictures outside of them are left out; with --labels FILE.csv its lines do, name,class (or a
    .json object). Stopped anywhere, the same command goes on. Unreadable
    pictures are listed in skipped.tsv, other files in left_out.tsv. With a source, a size and
    --out, no recipe is needed.

    Examples:
      vdiff prepare --size 256
      vdiff prepare pictures.zip --size 64 --size 128 --out data/faces
    """
    given = {
        "channels": channels,
        "encoding": encoding,
        "quality": quality,
        "resampling": resampling,
        "depth": depth,
    }
    given |= {"labels": labels}
    data = _data_section(recipe, changes, is_needed=not (source and sizes and out))
    job = _job(data, source, out, sizes, given)
    share = _share(max_bad)
    if dry_run:
        _show_plan(job)
    else:
        how = {"max_bad": share, "num_threads": workers, "force": force}
        _tell_next(_run(job, how), data, (recipe, changes, None))


def _data_section(recipe: str | None, changes: list[str] | None, is_needed: bool) -> Any:
    """`data:` of the recipe; None where there is no recipe and none is needed."""
    from vdiff.recipe import text as recipe_text

    is_there = (
        recipe or changes or os.environ.get(recipe_text.VARIABLE) or Path("recipe.yaml").is_file()
    )
    if not is_needed and not is_there:
        return None
    return open_recipe(recipe, changes)[0].data


def _job(
    data: Any, source: Path | None, out: Path | None, sizes: list[int] | None, given: dict[str, Any]
) -> Job:
    """What the options say, and `data` where they say nothing."""
    places = {
        "source": source or getattr(data, "source", None),
        "out": out or getattr(data, "path", None),
    }
    for name, key, option in (("source", "source", "SOURCE"), ("out", "path", "--out")):
        if places[name] is None:
            raise UsageError(
                f"the recipe has no `data.{key}`", f"name it: {option}", "vdiff prepare"
            )
    defaults = {name: getattr(data, name) for name in given if hasattr(data, name)}
    chosen = {name: value for name, value in given.items() if value is not None}
    return {**places, "sizes": sizes or [data.size], **defaults, **chosen}


def _share(text: str) -> float:
    """`1%` and `0.01` as 0.01."""
    number = text.strip()
    try:
        share = float(number.removesuffix("%"))
    except ValueError:
        share = -1.0
    if number.endswith("%"):
        share /= 100
    if not 0 <= share <= 1:
        raise UsageError(
            f"`{text}` is not a share between 0 and 1", "write it as 1% or 0.01", "--max-bad"
        )
    return share


def _show_plan(job: Job) -> None:
    from vdiff.cli import console, description
    from vdiff.data.prepare import forecast
    from vdiff.data.sources.classes import some

    planned = forecast(**job)
    if mode.json:
        console.emit_json(
            {"dry_run": True, "source": job["source"], "store": job["out"], **asdict(planned)}
        )
        return
    names = planned.class_names
    classes = f"none: {planned.classes_told}"
    if names:
        classes = f"{len(names):,}: {some(names)} ({planned.classes_told})"
    console.write(
        f"source    {job['source']}\nstore     {job['out']}\npictures  {planned.num_images:,}"
    )
    console.write(f"classes   {classes}\nsizes     {', '.join(map(str, planned.sizes))}")
    console.write(
        f"MB        about {description.size(planned.estimated_bytes)}, "
        f"{description.size(planned.free_bytes)} free"
    )
    _tell_left_out(planned.left_out, None)
    for hint in planned.hints:
        console.warn(hint)
    if planned.already_done:
        console.say(
            f"the store is there already, by {planned.decided_by}: "
            "nothing would be done without `--force`"
        )
    else:
        console.say("nothing was written")
    _warn_of_space(planned)


def _warn_of_space(planned: "Forecast") -> None:
    from vdiff.cli import console

    if planned.estimated_bytes > planned.free_bytes and not planned.already_done:
        console.warn(
            "that does not fit on the disk: choose another one with --out, or --encoding jpeg"
        )


def _run(job: Job, how: dict[str, Any]) -> "PrepareSummary":
    from vdiff.cli import console, displays, signals
    from vdiff.data.prepare import prepare

    with displays.prepare_progress(mode.quiet) as progress, closing(_Watcher(progress)) as watcher:
        report = prepare(**job, **how, on_progress=watcher, tell=console.say)
        signals.work_is_done()
    if mode.json:
        console.emit_json({**asdict(report), "notes": dict(_kinds(report))})
    _tell(report)
    return report


class _Watcher:
    """Shows how far it is, and stops when a signal asks for it.

    Signals are only caught from the first pictures on: before them there is nothing to save, and
    the default is right.
    """

    def __init__(self, progress: "PrepareProgress") -> None:
        self._progress = progress
        self._request: StopRequest | None = None

    def __call__(self, now: "PrepareCounts") -> None:
        # the first call: from here on a stopped job goes on where it was
        self._request = self._request or StopRequest(say=acknowledging("these pictures"))
        self._progress.update(now.done, now.skipped, now.total)
        if number := self._request():
            pictures = count(now.total, "picture")
            done = f"{now.done + now.skipped:,} of {pictures} are done"
            raise Stopped(number, f"stopped: {done}; the same command goes on from there")

    def close(self) -> None:
        """Signals do again what they did before."""
        if self._request:
            self._request.close()


def _tell(report: "PrepareSummary") -> None:
    from vdiff.cli import console, description
    from vdiff.data.sources.classes import some
    from vdiff.system.printable import printable

    if report.already_done:
        done = (
            f"`{report.store}` holds these pictures already, by {report.decided_by}: nothing to do"
        )
        console.say(f"{done}; `--force` makes it again", "green")
    else:
        sizes = ", ".join(map(str, report.sizes))
        pictures = count(report.num_images, "picture")
        what = (
            f"{pictures} of {sizes} pixels in `{report.store}`, {description.size(report.bytes)} MB"
        )
        console.say(what, "green")
    if report.class_names:
        console.say(
            f"{count(len(report.class_names), 'class')}: "
            f"{some(report.class_names)} ({report.classes_told})"
        )
    else:
        console.say(f"no classes: {report.classes_told}")
    if report.anew:
        console.warn(f"all pictures were prepared anew: {printable(report.anew)}")
    if report.num_skipped:
        pictures = count(report.num_skipped, "picture")
        console.warn(f"{pictures} could not be read: see `{report.skipped_file}`")
    for kind, num_images in _kinds(report):
        console.warn(f"{count(num_images, 'picture')}: {kind}; see `{report.notes_file}`")
    _tell_left_out(report.left_out, report.left_out_file)
    for hint in report.hints:
        console.warn(hint)


def _tell_left_out(groups: "list[Group]", names: Path | None) -> None:
    """What else is in the source, a line for each reason;
    as a warning if pictures may be among it.
    """
    from vdiff.cli import console

    if not groups:
        return
    total = sum(group.count for group in groups)
    head = "1 file was left out"
    if total > 1:
        head = f"{total:,} files were left out"
    if names:
        # a dry run writes no list
        head = f"{head}, named in `{names}`"
    lines = [f"{head}:", *(f"  {group}" for group in groups)]
    if any(group.is_loss for group in groups):
        console.warn("\n".join(lines))
    else:
        console.say("\n".join(lines))


def _kinds(report: "PrepareSummary") -> list[tuple[str, int]]:
    """What was amiss with pictures that were taken all the same, without its details,
    and with how many.
    """
    # ten thousand notes that differ in a file's name are one line
    return Counter(words.partition(":")[0] for _, words in report.notes).most_common()


def _tell_next(report: "PrepareSummary", data: Any, given: hints.Given) -> None:
    """What to type now, when the recipe has this store and when it does not yet."""
    from vdiff.cli import console

    wanted = getattr(data, "size", None)
    changes = []
    if getattr(data, "path", None) != report.store:
        changes.append(f"data.path={hints.value(str(report.store))}")
    if wanted not in report.sizes:
        changes.append(f"data.size={report.sizes[-1]}")
    if data is None:
        console.say(
            f"next: `vdiff init`, set `path: {report.store}` under `data:` in recipe.yaml, "
            "then `vdiff train`"
        )
    else:
        recipe, before, run = given
        told = hints.command(["train"], (recipe, [*(before or []), *changes], run))
        console.say(f"next: `{told}`")
