"""`vdiff import`: a model of another program becomes the base of a run, or a student in it."""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vdiff.cli import completion, hints, outputs, session
from vdiff.cli.options import DryRunOption, ForceOption, mode
from vdiff.errors import UsageError

if TYPE_CHECKING:
    from vdiff.exchange.bring import Brought, Source

Assume = Annotated[
    list[str] | None,
    typer.Option(
        "--assume",
        metavar="NAME=VALUE",
        help="What the file does not tell, see `--formats`; may be repeated",
    ),
]


def import_model(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            help="File or folder of another program, or hf://owner/name",
            autocompletion=completion.anything,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="RUN", help="Run folder [runs/<name of SOURCE>]")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="Pictures of its kind, a store or a folder, to prove the import with"
        ),
    ] = None,
    expected: Annotated[
        Path | None,
        typer.Option("--expected", help="Recorded outputs: an .npz of z, time, output (and label)"),
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="Whose file it is [found out]")
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="A released file by its name, as guided_64")
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", min=1, help="Pixels of its pictures")
    ] = None,
    heads: Annotated[
        int | None, typer.Option("--heads", min=1, help="Attention heads at every level")
    ] = None,
    head_dim: Annotated[
        int | None, typer.Option("--head-dim", min=1, help="Channels per attention head")
    ] = None,
    qkv_order: Annotated[
        str | None, typer.Option("--qkv-order", metavar="legacy|new", help="Order inside attention")
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option("--licence", metavar="NAME", help="Licence of the weights, for the lineage"),
    ] = None,
    assume: Assume = None,
    formats: Annotated[
        bool, typer.Option("--formats", help="List what can be imported and what to tell of it")
    ] = False,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Take in a model that another program made

    Leaves `original` in a run, with a recipe that `vdiff distill` goes on with. The import is
    proved at once: against the program itself where it is installed, recorded outputs, or real
    pictures. One that is off leaves nothing.

    Examples:
      vdiff import hf://google/ddpm-cifar10-32
      vdiff import ema_0.9999_500000.pt --data photographs/
    """
    from vdiff.cli import launch
    from vdiff.exchange import bring

    if formats:
        _list_formats()
        return
    if source is None:
        raise UsageError("there is nothing to import", "name a file or a folder", "SOURCE")
    told = _told(
        assume,
        {
            "preset": preset,
            "size": size,
            "heads": heads,
            "head_dim": head_dim,
            "qkv_order": qkv_order,
        },
    )
    given = bring.Source(Path(source), format, told, expected, data, licence)
    if not launch.is_worker():
        _take(source, given, out, force, dry_run)
        return
    # of several processes one imports, and the others wait
    with session.company("cpu", {}, "nothing was imported") as here:
        here.processes.told(lambda: _take(source, given, out, force, dry_run))


def _take(source: str, given: "Source", out: Path | None, force: bool, dry_run: bool) -> None:
    from vdiff.cli import console
    from vdiff.data.seal import is_store
    from vdiff.exchange import bring, into_run

    _refuse_name_of_hub(source)
    path, run, known = _found(source)
    run = out or run
    folder = _place(run, force)
    brought = bring.read(replace(given, path=path, known=known), console.warn)
    if not dry_run:
        into_run.write(brought, path, run, given.data, console.warn)
    has_store = given.data is not None and is_store(given.data)
    _tell(brought, folder, dry_run, has_store)


def _found(source: str) -> tuple[Path, Path, Mapping[str, str]]:
    """Where the source lies, the run that it makes if nobody says otherwise,
    and what is known of it.

    A model on a hub is fetched.
    """
    from vdiff.cli.taking_in import voice
    from vdiff.exchange import hub, hub_name, into_run
    from vdiff.model_folder.card import is_model_folder

    if not hub_name.is_on_hub(source):
        path = Path(source)
        return path, Path("runs") / into_run.run_name(path), {}
    name = hub_name.parse(source)
    fetched = hub.fetch(name, voice().say, voice().has_bars)
    if is_model_folder(fetched.path):
        problem = f"`{source}` is a model of vdiff already: there is nothing to import"
        word = shlex.quote(source)
        fix = f"use it: `vdiff sample --checkpoint {word}`, `vdiff distill --from {word}`"
        raise UsageError(problem, fix, "SOURCE")
    return fetched.path, Path("runs") / name.run, fetched.known


def _place(run: Path, force: bool) -> Path:
    """Where the model comes to lie.   Errors: UsageError where it must not."""
    from vdiff.model_folder.card import BASE
    from vdiff.runs.folder import RunFolder

    folder = RunFolder(run).model(BASE)
    outputs.check_parents(folder)
    if not force and folder.exists():
        raise UsageError(
            f"`{folder}` is there already",
            "`--force` replaces it; or name another run: --out",
            folder,
        )
    _refuse_trained(folder)
    return folder


def _refuse_name_of_hub(source: str) -> None:
    """UsageError for what is no path here, and may be the name of a model on a hub."""
    owner, slash, name = source.partition("/")
    is_name = bool(slash and owner and name) and "/" not in name
    if is_name and not Path(source).exists():
        problem = f"there is no `{source}` on this machine"
        fix = f"check the path; from a hub it comes with `vdiff import hf://{source}`"
        raise UsageError(problem, fix, "SOURCE")


def _refuse_trained(folder: Path) -> None:
    """UsageError where `--force` would replace a base that was trained here."""
    from vdiff.model_folder.card import is_model_folder, read_card

    if is_model_folder(folder) and not read_card(folder).is_imported:
        problem = f"`{folder}` was trained here, and an import would replace it"
        raise UsageError(problem, "name another run: --out RUN", folder)


def _told(assume: list[str] | None, named: dict[str, object]) -> dict[str, str]:
    """What the user says of the file: `--assume`, and the options for what is often asked."""
    told = {name: str(value) for name, value in named.items() if value is not None}
    for each in assume or []:
        name, equals, value = each.partition("=")
        if not equals or not name or not value:
            raise UsageError(
                f"`{each}` is not NAME=VALUE", "write it like `--assume theta=1000`", "--assume"
            )
        told[name.replace("-", "_")] = value
    return told


def _tell(brought: "Brought", folder: Path, dry_run: bool, has_store: bool) -> None:
    """has_store: whether the recipe that is left knows the store of its pictures."""
    from vdiff.cli import console
    from vdiff.model_folder import origin

    model = brought.model
    channels, height, width = model.shape
    checked = brought.proof
    for each in model.assumed:
        console.warn(f"not in the file, and taken for given: {each}")
    console.say(checked.told())
    if brought.known.get("licence") is None:
        console.warn(f"licence: {origin.UNKNOWN_LICENCE}")
    verb = "would import" if dry_run else "imported"
    kind = (
        f"{width} x {height}, {channels} channel{'s' * (channels != 1)}, "
        f"predicts {model.diffusion['predicts']}"
    )
    console.say(f"{verb} a model of {brought.format} ({kind}): `{folder}`", "green")
    if not dry_run:
        run = folder.parent
        look = hints.command(["sample", "--checkpoint", str(folder)])
        distill = hints.command(["distill"], (str(run / "recipe.yaml"), None, run))
        if has_store:
            console.say(f"next: `{look}`, or `{distill}`")
        else:
            prepare = hints.command(["prepare", "PICTURES", "-r", str(run / "recipe.yaml")])
            console.say(f"next: `{look}`; to distill it, `{prepare}` and then `{distill}`")
    if mode.json:
        console.emit_json(
            {
                "path": str(folder),
                "format": brought.format,
                "sha256": brought.sha256,
                "licence": None,
                **brought.known,
                "proof": checked.facts(),
                "assumed": list(model.assumed),
                "dry_run": dry_run,
            }
        )


def _list_formats() -> None:
    from vdiff.cli import console
    from vdiff.formats import FORMATS

    for name in FORMATS:
        kind = FORMATS.find(name)
        console.write(f"{name}: {(kind.__doc__ or '').strip().partition(chr(10))[0]}")
        for option, meaning in kind.options.items():
            console.write(f"  {option}: {meaning}")
