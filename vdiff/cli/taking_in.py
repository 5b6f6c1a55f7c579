"""Models of other programs where a command takes a model:
each is imported once, into a run of its own.
"""

from pathlib import Path

from vdiff.errors import UsageError, VdiffError


def taken_in(given: str | None) -> str | None:
    """What an option names, or the model folder that was made of it if it is a file or folder of
    another program.

    It becomes `original` in `runs/<its name>`, as with `vdiff import`, unless that is there
    already.
    Errors: as `vdiff import`; UsageError where another model has that place.
    """
    if given is None or not _may_be_foreign(Path(given)):
        return given
    path = Path(given)
    from vdiff.cli import console
    from vdiff.exchange import bring, into_run
    from vdiff.model_folder.card import BASE, is_model_folder, read_card

    run = Path("runs") / into_run.run_name(path)
    folder = run / BASE
    if is_model_folder(folder):
        origin = read_card(folder).origin or {}
        if origin.get("sha256") != bring.digest(path):
            problem = f"`{folder}` is another model than `{path}`"
            fix = f"import it elsewhere first: vdiff import {path} --out RUN"
            raise UsageError(problem, fix, folder)
        return str(folder)
    try:
        brought = bring.read(bring.Source(path), console.warn)
    except VdiffError as err:
        # the options that its fix names are those of the import
        err.fix = f"import it first, `vdiff import {path}`: {err.fix}"
        raise
    into_run.write(brought, path, run, None, console.warn)
    told = f"imported `{path}` as `{folder}`, a model of {brought.format}"
    console.say(f"{told}: {brought.proof.told()}")
    return str(folder)


def _may_be_foreign(path: Path) -> bool:
    """Whether there is something that vdiff did not make and a format may know;
    a run's own names come first.
    """
    if not path.exists():
        return False
    if path.is_file():
        return True
    from vdiff.model_folder.card import MODEL

    # one that lost its manifest is vdiff's too: as a folder of diffusers it would know all times
    if MODEL.is_proven(path):
        return False
    return any((path / name).is_file() for name in _SIGNS)


_SIGNS = ("model_index.json", "config.json", "unet/config.json", "transformer/config.json")
"""Of folders of other programs."""
