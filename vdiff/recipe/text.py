"""Recipes as text: where they are found, every value with its place,
and what is wrong with them.
"""

import copy
import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from vdiff.config import Section
from vdiff.errors import UsageError
from vdiff.recipe import mistakes as recipe_mistakes
from vdiff.recipe import strict_yaml as recipe_yaml
from vdiff.recipe.mistakes import Mistake
from vdiff.recipe.strict_yaml import Keys
from vdiff.system.home import NoHome, expanded

VARIABLE = "VDIFF_RECIPE"
"""The environment variable that names a recipe."""

AnySection = TypeVar("AnySection", bound=Section)


@dataclass(frozen=True)
class RecipeText:
    """A recipe as it was written: plain values, and where each of them stands.

    name: what messages call it.   places: keys -> `recipe.yaml:3:5` or `--set train.updates`, in
    the order of the file.
    text: the file, word for word.   assignments: what `--set` changed in it.
    path: None when it is not a file.
    """

    data: dict[str | int, Any]
    places: dict[Keys, str]
    name: str
    text: str = ""
    assignments: tuple[str, ...] = ()
    path: Path | None = None


def parse(text: str, name: str, path: Path | None = None) -> RecipeText:
    """The recipe in `text`, called `name` in messages;
    UsageError for what `strict_yaml.parse` refuses.
    """
    values = recipe_yaml.parse(text, name)
    if not isinstance(values.data, dict):
        fix = "`vdiff recipes show digits` prints a recipe that works"
        raise UsageError(
            "a recipe should be a mapping of sections such as `data:` and `train:`",
            fix,
            f"{name}:1:1",
        )
    return RecipeText(values.data, values.places, name, text, path=path)


def set_values(recipe: RecipeText, assignments: Sequence[str]) -> RecipeText:
    """`recipe` with every `section.key=value` carried out, the later ones winning;
    values are YAML on one line.
    """
    data = copy.deepcopy(recipe.data)
    places = dict(recipe.places)
    for assignment in assignments:
        left, equals, right = assignment.partition("=")
        keys: Keys = tuple(map(_key, left.strip().split(".")))
        if not equals or "" in keys:
            fix = "write it like `--set train.updates=2000`"
            raise UsageError(f"`{assignment}` is not `section.key=value`", fix, "--set")
        place = f"--set {left.strip()}"
        values = recipe_yaml.read_line(right, place)
        _section_for(data, keys[:-1], place)[keys[-1]] = values.data
        # what stood inside the old value stands nowhere now
        _forget(places, keys)
        places |= {keys: place} | {(*keys, *inside): place for inside in values.places}
    return replace(
        recipe, data=data, places=places, assignments=(*recipe.assignments, *assignments)
    )


def _key(text: str) -> str | int:
    # `--set distill.overrides.1.updates=20_000`: stages are named by their number of steps
    if text.isdecimal():
        return int(text)
    return text


def validate(section: type[AnySection], recipe: RecipeText) -> AnySection:
    """`recipe` as a `section`; UsageError with all its mistakes,
    each with its place and the nearest valid key.
    """
    try:
        return section.model_validate(recipe.data)
    except ValidationError as err:
        raise _mistakes_error(recipe, recipe_mistakes.explain(err, section, recipe.data)) from err


def shipped() -> dict[str, Path]:
    """The recipes that come with vdiff: name -> file."""
    package = Path(__file__).parents[1]
    folder = package / "recipes"
    # a wheel has them inside, a checkout beside the package
    if not folder.is_dir():
        folder = package.parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(
    name_or_path: str | None, beside: Path | None = None, prefers_beside: bool = False
) -> RecipeText:
    """The recipe a command works with: the one named, `$VDIFF_RECIPE`, `./recipe.yaml`,
    or the one in folder `beside`.

    beside: a run folder, or a model folder with a recipe inside its `vdiff.json`.
    prefers_beside: its recipe goes before `./recipe.yaml`, which is not for that model.
    """
    named = name_or_path or _from_environment()
    if named:
        # the place where somebody has to look for the mistake
        where = f"${VARIABLE}"
        if name_or_path:
            where = "--recipe"
        return _named(named, where)
    here = Path("recipe.yaml")
    if here.is_file() and not (beside is not None and prefers_beside):
        return read_file(here)
    if beside is not None:
        recipe = _in_folder(beside)
        if recipe is not None:
            return recipe
    fix = "`vdiff init digits` writes `recipe.yaml`; `--recipe` names another one"
    raise UsageError("there is no recipe here", fix)


def read_file(path: Path) -> RecipeText:
    """The recipe in the file `path`; see `parse`."""
    with path.open("rb") as file:
        # no more than is allowed: the path may name a model of many GB, or /dev/zero
        raw = file.read(recipe_yaml.MAX_BYTES + 1)
    recipe_yaml.check_size(len(raw), str(path))
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as err:
        line = raw.count(b"\n", 0, err.start) + 1
        raise UsageError(
            "a recipe should be UTF-8 text", "save it as UTF-8", f"{path}:{line}"
        ) from err
    return parse(text, str(path), path)


def _from_environment() -> str:
    try:
        return expanded(os.environ.get(VARIABLE, ""))
    except NoHome as err:
        raise UsageError(err.problem, err.fix, f"${VARIABLE}") from err


def _named(named: str, where: str) -> RecipeText:
    path = Path(named)
    if path.is_file():
        return read_file(path)
    recipes = shipped()
    if named in recipes:
        return read_file(recipes[named])
    recipe = _in_folder(path)
    if recipe is not None:
        return recipe
    near = difflib.get_close_matches(named, recipes, n=1)
    hint = ""
    if near:
        hint = f"; did you mean `{near[0]}`?"
    fix = f"name a file or one of the recipes of vdiff: {', '.join(recipes)}"
    raise UsageError(f"there is no recipe `{named}`{hint}", fix, where)


def _in_folder(folder: Path) -> RecipeText | None:
    if (folder / "recipe.yaml").is_file():
        return read_file(folder / "recipe.yaml")
    from vdiff.disk import whole_folder
    from vdiff.model_folder.card import MANIFEST, is_model_folder

    if not is_model_folder(folder):
        return None
    text = whole_folder.read(folder, MANIFEST).get("recipe")
    # a model that came from another program has none
    if not isinstance(text, str):
        return None
    return parse(text, str(folder / MANIFEST))


def _mistakes_error(recipe: RecipeText, mistakes: Sequence[Mistake]) -> UsageError:
    fix = (
        "change this; `vdiff recipes schema` describes every key, "
        "`vdiff recipes show digits` prints a whole recipe"
    )
    # from top to bottom, as somebody goes through the file
    order = {place: index for index, place in enumerate(recipe.places.values())}
    in_order = sorted(mistakes, key=lambda mistake: order.get(_written(recipe, mistake.keys), -1))
    placed = [(_place(recipe, mistake.keys), str(mistake)) for mistake in in_order]
    if len(placed) == 1:
        [(place, problem)] = placed
        return UsageError(problem, fix, place)
    width = max(len(place) for place, _ in placed)
    lines = [f"{place:<{width}}  {problem}" for place, problem in placed]
    return UsageError(f"{len(placed)} mistakes in `{recipe.name}`", fix, "\n".join(lines))


def _place(recipe: RecipeText, keys: Keys) -> str:
    """Where the value at `keys` stands; of a section, also what `--set` has changed in it."""
    place = _written(recipe, keys)
    inside = [
        inner_place
        for known, inner_place in recipe.places.items()
        if known[: len(keys)] == keys and known != keys
    ]
    # a rule between two keys may be broken by the one that `--set` changed
    changed = [
        inner_place
        for inner_place in dict.fromkeys(inside)
        if inner_place.startswith("--set ") and inner_place != place
    ]
    return ", ".join([place, *changed[:_MOST_CHANGED]])


_MOST_CHANGED = 4


def _written(recipe: RecipeText, keys: Keys) -> str:
    while keys and keys not in recipe.places:
        inside = (place for known, place in recipe.places.items() if known[: len(keys)] == keys)
        # a section that only `--set` made has no place itself
        first = next(inside, None)
        if first is not None:
            return first
        keys = keys[:-1]
    return recipe.places.get(keys, f"{recipe.name}:1:1")


def _forget(places: dict[Keys, str], keys: Keys) -> None:
    for known in [known for known in places if known[: len(keys)] == keys]:
        del places[known]


def _section_for(data: dict[str | int, Any], keys: Keys, place: str) -> dict[str | int, Any]:
    """The mapping that `keys` lead to, made where there is none;
    a bare kind becomes a mapping with that kind.
    """
    for key in keys:
        inner = data.get(key)
        if isinstance(inner, str):
            inner = {"kind": inner}
        elif inner is None:
            inner = {}
        elif not isinstance(inner, dict):
            raise UsageError(
                f"`{key}` is a value, it has no keys of its own", f"set the whole of `{key}`", place
            )
        data[key] = inner
        data = inner
    return data
