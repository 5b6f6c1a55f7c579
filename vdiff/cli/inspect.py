"""`vdiff inspect`: what any run, model folder, store, recipe or foreign file holds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vdiff.cli import completion
from vdiff.cli.options import RecipeOption, mode, open_recipe
from vdiff.cli.session import RunOption, run_folder
from vdiff.errors import ModelFileError, UsageError, VdiffError


def inspect(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH",
            help="Run, model folder or its name in the run, store, recipe, model file, "
            "hf://owner/name [the run]",
            autocompletion=completion.anything,
        ),
    ] = None,
    recipe: RecipeOption = None,
    run: RunOption = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every byte and compare it with its checksum")
    ] = False,
) -> int | None:
    """Describe runs, models, stores, recipes and foreign files

    Without a path: every model folder of the run. Nothing is changed, and no file is trusted: none
    of the code that may be in one is run. What is damaged is named, and gives exit code 4.
    With --json: the facts as one object; of several paths, as the list `inspected` in one.

    Examples:
      vdiff inspect
      vdiff inspect base_6 data/celeba_256 checkpoint.pt --verify
    """
    from vdiff.cli import console, description

    if paths:
        places = [_place(path, recipe, run) for path in paths]
    else:
        places = [_run(recipe, run)]
    # all of them before anything is printed: an error must not come below half of the facts
    things = [_described(place, verify) for place in places]
    if mode.json and len(things) == 1:
        console.emit_json(things[0])
    elif mode.json:
        console.emit_json({"inspected": things})
    elif len(things) == 1:
        description.show(things[0])
    else:
        _show_each(things)
    return _conclude(things, verify)


def _show_each(things: Sequence[dict[str, Any]]) -> None:
    """Several things below each other, each under its path."""
    from vdiff.cli import console, description

    for place, thing in enumerate(things):
        if place > 0:
            console.write("")
        console.write(f"{thing['path']}:")
        description.show(thing)


def _run(recipe: str | None, run: Path | None) -> Path:
    """The run folder, there or not; mistakes in a recipe do not hide its run,
    as long as it has a name.
    """
    from vdiff.recipe import text as recipe_text

    if run is not None:
        if not run.is_dir():
            raise UsageError(
                f"there is no run folder `{run}`",
                "leave out --run for the run of the recipe",
                "--run",
            )
        return run
    # the name alone, unchecked: a run must be seen when its recipe has a mistake
    name = recipe_text.find(recipe).data.get("name")
    if isinstance(name, str) and name[:1].isalnum() and Path(name).name == name:
        return Path("runs") / name
    return run_folder(open_recipe(recipe, None)[0], None).path


def _place(given: str, recipe: str | None, run: Path | None) -> Path:
    """What an argument means: something that exists, a model on a hub,
    or the name of a model in the run.
    """
    from vdiff.cli.taking_in import fetched
    from vdiff.runs.folder import RunFolder

    if given.startswith("hf://"):
        return fetched(given)
    path = Path(given)
    if path.exists():
        return path
    try:
        place = RunFolder(_run(recipe, run))
    except UsageError as err:
        fix = "name a run, a model folder, an image store, a recipe or a model file"
        raise UsageError(f"there is no `{path}`", fix, "vdiff inspect") from err
    return place.find(str(path))


def _described(path: Path, verify: bool) -> dict[str, Any]:
    """The facts about what lies at `path`, all texts in it safe for a terminal."""
    try:
        facts: dict[str, Any] = _safe(_describe(path, verify))
    except VdiffError as err:
        raise type(err)(_safe(err.problem), _safe(err.fix), _safe(err.where)) from err
    return facts


def _describe(path: Path, verify: bool) -> dict[str, Any]:
    from vdiff.data.seal import FILE, SEAL, is_store
    from vdiff.model_folder.card import MANIFEST, is_model_folder
    from vdiff.reporting import inspection
    from vdiff.runs.folder import RunFolder

    folder = path
    # the TAB key leads into a folder, to the one file in it that people know
    if path.name in (MANIFEST, FILE, SEAL):
        folder = path.parent
    if is_model_folder(folder):
        return inspection.model(folder, verify)
    if is_store(folder) or (folder / SEAL).is_file():
        return inspection.store(folder, verify)
    if RunFolder(path).is_begun() or not path.exists():
        return inspection.run(path, verify)
    recipe = path
    if path.is_dir():
        recipe = path / "recipe.yaml"
    if recipe.is_file() and recipe.suffix in (".yaml", ".yml"):
        return inspection.recipe(recipe)
    return _foreign(path)


def _foreign(path: Path) -> dict[str, Any]:
    from vdiff.formats import foreign

    file = foreign.describe(path)
    return {
        "kind": "foreign",
        "path": str(path),
        "format": file.kind,
        "num_parameters": file.num_parameters,
        **file.facts,
        "num_tensors": len(file.tensors),
        "tensors": [
            {"name": tensor.name, "shape": tensor.shape, "dtype": tensor.dtype}
            for tensor in file.tensors
        ],
    }


def _safe(value: Any) -> Any:
    """`value` with the control characters of all texts inside it escaped, but for line breaks."""
    from vdiff.system.printable import printable

    if isinstance(value, str):
        return "\n".join(map(printable, value.split("\n")))
    if isinstance(value, dict):
        return {_safe(key): _safe(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_safe(inner) for inner in value]
    return value


def _conclude(things: Sequence[dict[str, Any]], verify: bool) -> int | None:
    """Say how the files are; with --json the object on stdout has said it."""
    from vdiff.cli import console

    # a run stands for its models
    rows = [row for thing in things for row in thing.get("models", [thing])]
    damage = [f"{row['path']}: {line}" for row in rows for line in row.get("problems", [])]
    if damage:
        problem = "a file is damaged"
        if len(damage) > 1:
            problem = f"{len(damage)} files are damaged"
        err = ModelFileError(
            problem,
            "copy them again from where they came from, or make them again",
            "\n".join(damage),
        )
        if not mode.json:
            raise err
        # raised, it would put a second object on stdout, which scripts could not read
        console.warn(f"{problem}: {'; '.join(damage)}")
        return err.exit_code
    if verify:
        for thing in things:
            _say_verified(thing)
    return None


def _say_verified(thing: dict[str, Any]) -> None:
    from vdiff.cli import console

    if not thing.get("verified"):
        console.warn(f"`{thing['path']}` tells no checksums to compare with")
        return
    what = "file"
    if thing["kind"] == "store":
        # pages of the store's file that hold no picture have no checksum
        what = "picture"
    console.say(f"every {what} of `{thing['path']}` is as it was written", "green")
