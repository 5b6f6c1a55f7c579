"""An imported model and its recipe in a run folder."""

import shlex
from collections.abc import Callable
from pathlib import Path

from vdiff.data.seal import is_store
from vdiff.errors import ModelFileError
from vdiff.exchange import bring
from vdiff.exchange.recipe import recipe_text
from vdiff.model_folder.card import BASE, ModelCard
from vdiff.runs import contents, replacing
from vdiff.runs.folder import RunFolder


def run_name(path: Path) -> str:
    """What the run of an imported file or folder is called, if nobody says otherwise.

    Errors: ModelFileError for links that lead nowhere.
    """
    try:
        place = path.resolve()
    except (OSError, RuntimeError) as err:
        raise ModelFileError("a link leads back to itself", "check the path", path) from err
    return place.name if place.is_dir() else place.stem


def write(
    brought: bring.Brought, source: Path, run: Path, data: Path | None, say: Callable[[str], None]
) -> ModelCard:
    """Leave the model as `original` in `run`, and a recipe that distills it beside it.

    data: the pictures it was compared with; a store of them goes into the recipe.
    say: told of what is kept.
    Errors: InUseError, MachineError; UsageError for what vdiff did not make.
    """
    store = data if data is not None and is_store(data) else None
    recipe = recipe_text(brought.model, run.resolve().name, store)
    folder = RunFolder(run)
    contents.check_recipe(run, recipe)
    with folder.lock(say):
        place = shlex.quote(str(run))
        again = f"vdiff distill -r {place}/recipe.yaml --run {place} --from {BASE} --force"
        told = replacing.warning(folder, BASE, [BASE], again)
        if told:
            say(told)
        aside = replacing.set_aside(folder, BASE)
        card = bring.write(brought, source, folder.model(BASE), recipe)
        if aside is not None:
            replacing.forget_equal(folder, BASE, aside)
        contents.write_recipe(run, recipe, say)
    return card
