"""List, show and check recipes"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from vdiff.cli import completion
from vdiff.cli.options import SetOption, mode
from vdiff.errors import UsageError, VdiffError


def ls() -> None:
    """List the recipes that come with vdiff

    Examples:
      vdiff recipes ls
      vdiff recipes ls --json
    """
    from vdiff.cli import console
    from vdiff.recipe import text as recipe_text

    columns = ("name", "about", "path")
    rows = [(name, _headline(path), str(path)) for name, path in recipe_text.shipped().items()]
    if mode.json:
        console.emit_json({"recipes": [dict(zip(columns, row, strict=True)) for row in rows]})
    else:
        console.table(columns, rows)


def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="PATH|NAME",
            help="Recipe file, or a shipped recipe",
            autocompletion=completion.recipes,
        ),
    ],
) -> None:
    """Print the text of a recipe

    Examples:
      vdiff recipes show digits
      vdiff recipes show runs/celeba
    """
    from vdiff.cli import console
    from vdiff.recipe import text as recipe_text

    recipe = recipe_text.find(name)
    if mode.json:
        console.emit_json({"name": recipe.name, "text": recipe.text, "recipe": recipe.data})
    else:
        console.write(recipe.text.rstrip("\n"))


def check(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH|NAME",
            help="Recipes to check [./recipe.yaml]",
            autocompletion=completion.recipes,
        ),
    ] = None,
    assignments: SetOption = None,
) -> None:
    """Find all mistakes of recipes

    Examples:
      vdiff recipes check
      vdiff recipes check faces.yaml --set train.updates=1000
    """
    from vdiff.chain.plan import doubts, plan
    from vdiff.cli import console
    from vdiff.cli.options import open_recipe
    from vdiff.data import SOURCES
    from vdiff.formats import FORMATS
    from vdiff.recipe.recipe import tables

    good: list[str] = []
    warnings: list[str] = []
    wrong: list[VdiffError] = []
    for name in names or (None,):
        try:
            recipe, text = open_recipe(name, assignments)
            good.append(text.name)
            warnings += doubts(plan(recipe))
        except UsageError as err:
            wrong.append(err)
    warnings += [doubt for table in (*tables(), SOURCES, FORMATS) for doubt in table.doubts()]
    for name in good:
        console.say(f"`{name}` is a valid recipe", "green")
    for warning in warnings:
        console.warn(warning)
    if wrong:
        raise _together(wrong)
    if mode.json:
        console.emit_json({"valid": good, "warnings": warnings})


def schema() -> None:
    """Print the JSON schema of recipes

    Editors that know it complete and explain the keys of a recipe.

    Examples:
      vdiff recipes schema > recipe.schema.json
      vdiff recipes schema | jq .properties.train
    """
    from vdiff.cli import console
    from vdiff.recipe.recipe import tables

    for doubt in (doubt for table in tables() for doubt in table.doubts()):
        console.warn(doubt)
    console.write(schema_text())


RECIPES = {"ls": ls, "show": show, "check": check, "schema": schema}
"""The commands of the group."""


def schema_text() -> str:
    """The JSON schema of a recipe; imports every kind of every part."""
    from vdiff.recipe.recipe import Recipe

    return json.dumps(Recipe.model_json_schema(), indent=2)


def _headline(path: Path) -> str:
    """The first line of a recipe's header."""
    comments = (
        line.removeprefix("#").strip()
        for line in path.read_text("utf-8").splitlines()
        if line[:1] == "#"
    )
    return next(
        (line for line in comments if line and not line.startswith("yaml-language-server")), ""
    )


def _together(errors: Sequence[VdiffError]) -> VdiffError:
    if len(errors) == 1:
        return errors[0]
    lines = []
    for err in errors:
        # several mistakes of one recipe are lines with their places already
        if "\n" in err.where:
            lines.append(err.where)
        else:
            lines.append(f"{err.where}  {err.problem}".strip())
    return UsageError(f"{len(errors)} recipes are wrong", errors[0].fix, "\n".join(lines))
