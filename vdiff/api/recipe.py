"""Recipes, read and checked."""

import os

from vdiff.api.paths import path_of, reading
from vdiff.errors import UsageError
from vdiff.recipe import text as recipe_text
from vdiff.recipe.recipe import Recipe


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """A recipe, with every value checked and every default filled in. It is frozen.

    path: a YAML file, the name of a recipe that comes with vdiff, a run folder or a model folder.
    Errors: UsageError with all mistakes of the recipe, each with its line; MachineError for a file
    that cannot be read.

    >>> recipe = read_recipe("digits")
    >>> recipe.data.size, recipe.distill.start_steps
    (8, 64)
    """
    place = path_of(path)
    with reading(place):
        try:
            found = recipe_text.find(str(place))
        except UsageError as err:
            # the place of a mistake is told; the option of a command, which is said otherwise, is
            # not
            where = "" if err.where.startswith("-") else err.where
            raise UsageError(err.problem, err.fix, where) from err
    return recipe_text.validate(Recipe, found)
