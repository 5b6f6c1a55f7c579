"""What <TAB> offers: recipes, runs, models and samplers that are there, and folders to walk into.

No torch here.
"""

import glob
from collections.abc import Iterable
from pathlib import Path

import typer

from vdiff.errors import VdiffError
from vdiff.system.home import NoHome, expanded


def shipped(incomplete: str) -> list[str]:
    """Recipes that come with vdiff."""
    from vdiff.recipe import text as recipe_text

    return _beginning(recipe_text.shipped(), incomplete)


def recipes(incomplete: str) -> list[str]:
    """Recipe files here, and the shipped ones."""
    return [*shipped(incomplete), *_paths(incomplete, suffixes=(".yaml", ".yml"))]


def runs(incomplete: str) -> list[str]:
    """Run folders here, and folders that may hold some."""
    known = [str(path) for path in sorted(Path("runs").glob("*")) if path.is_dir()]
    return _once([*_beginning(known, incomplete), *_paths(incomplete)])


def models(ctx: typer.Context, incomplete: str) -> list[str]:
    """Models of the run that the command means, and folders to walk into."""
    from vdiff.runs.folder import RunFolder

    run = _run(ctx)
    names: list[str] = []
    if run is not None:
        names = list(RunFolder(run).models())
    return [*_beginning(names, incomplete), *_paths(incomplete)]


def models_and_runs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Runs too."""
    return _once([*models(ctx, incomplete), *runs(incomplete)])


def anything(ctx: typer.Context, incomplete: str) -> list[str]:
    """What `vdiff inspect` can describe: models, runs, recipes, model files, stores."""
    files = _paths(
        incomplete, suffixes=(".yaml", ".yml", ".pt", ".pth", ".ckpt", ".bin", ".safetensors")
    )
    return _once([*models(ctx, incomplete), *runs(incomplete), *files])


def samplers(incomplete: str) -> list[str]:
    """Kinds of samplers."""
    from vdiff.samplers import SAMPLERS

    return _beginning(SAMPLERS, incomplete)


GRIDS = ("uniform", "logsnr", "karras")
"""Of solvers; a test holds them to `samplers.grids`, which nobody waits for here."""


def grids(incomplete: str) -> list[str]:
    """Where a solver's steps are."""
    return _beginning(GRIDS, incomplete)


def _run(ctx: typer.Context) -> Path | None:
    """The run of `--run`, or of the recipe; its name is read,
    the rest of the recipe is not checked.
    """
    from vdiff.recipe import text as recipe_text

    given = ctx.params.get("run")
    if given is not None:
        return Path(str(given))
    try:
        name = recipe_text.find(ctx.params.get("recipe")).data.get("name")
    except (VdiffError, OSError):
        # a recipe with a mistake offers nothing: a message would land in the middle of the line
        return None
    if not isinstance(name, str):
        return None
    return Path("runs") / name


def _once(words: Iterable[str]) -> list[str]:
    """Without what is offered twice, with and without a slash."""
    kept: dict[str, str] = {}
    for word in words:
        kept.setdefault(word.rstrip("/"), word)
    return list(kept.values())


def _beginning(words: Iterable[str], incomplete: str) -> list[str]:
    # a name with an escape sequence in it would act on the terminal that lists it
    return [word for word in words if word.startswith(incomplete) and word.isprintable()]


def _paths(incomplete: str, suffixes: tuple[str, ...] = ()) -> list[str]:
    """Folders, with a slash, and files with one of the suffixes,
    that a path begun like this may mean.
    """
    try:
        start = expanded(incomplete)
    except NoHome:
        return []
    matching = glob.glob(f"{glob.escape(start)}*")
    paths = sorted(Path(path) for path in matching if path.isprintable())
    # with a slash, so that the next TAB walks into it
    offered = [f"{path}/" for path in paths if path.is_dir()]
    offered += [str(path) for path in paths if path.suffix in suffixes and path.is_file()]
    if start == incomplete:
        return offered
    # a shell takes only what begins as it was typed: `~/runs` is offered, not /home/x/runs
    typed = incomplete.partition("/")[0]
    home = expanded(typed)
    return [typed + path.removeprefix(home) for path in offered]
