"""Options that several commands share, and the three that all of them have:
--json, --quiet, --debug.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vdiff.cli import completion
from vdiff.errors import UsageError
from vdiff.system.home import NoHome, expanded

if TYPE_CHECKING:
    from vdiff.recipe.recipe import Recipe
    from vdiff.recipe.text import RecipeText


@dataclass
class Mode:
    """How this process talks: one JSON object on stdout, errors only, tracebacks."""

    json: bool = False
    quiet: bool = False
    debug: bool = False


mode = Mode()
"""What --json, --quiet and --debug said, before or after the command."""

RecipeOption = Annotated[
    str | None,
    typer.Option(
        "-r",
        "--recipe",
        metavar="PATH|NAME",
        help="Recipe file, or the name of a shipped one [./recipe.yaml]",
        autocompletion=completion.recipes,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="SECTION.KEY=VALUE", help="Change one key of the recipe; may be repeated"
    ),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Replace what vdiff made there, and nothing else")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done, write nothing")
]


def open_recipe(
    named: str | None,
    assignments: list[str] | None,
    beside: Path | None = None,
    prefers_beside: bool = False,
) -> "tuple[Recipe, RecipeText]":
    """The recipe a command works with, checked, and its text; see `recipe_text.find`."""
    from vdiff.recipe import text as recipe_text
    from vdiff.recipe.recipe import Recipe

    text = recipe_text.set_values(
        recipe_text.find(named, beside, prefers_beside), assignments or []
    )
    return recipe_text.validate(Recipe, text), text


def with_mode(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as a command that also takes --json, --quiet and --debug
    and keeps them in `mode`.
    """

    @functools.wraps(function)
    def command(**given: Any) -> Any:
        for name in _MODE:
            # `vdiff --json inspect` and `vdiff inspect --json` mean the same
            setattr(mode, name, given.pop(name) or getattr(mode, name))
        return function(**{name: _at_home(value, name) for name, value in given.items()})

    # typer makes the options of a command out of its signature
    signature = inspect.signature(function, eval_str=True)
    parameters = [*signature.parameters.values(), *_MODE.values()]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command


def _at_home(value: Any, name: str) -> Any:
    """An option's value with the home folder for a leading `~`,
    which a shell leaves in `--run=~/x`.
    """
    if isinstance(value, list):
        return [_at_home(item, name) for item in value]
    if not isinstance(value, str | Path) or not str(value).startswith("~"):
        return value
    try:
        return type(value)(expanded(str(value)))
    except NoHome as err:
        raise UsageError(err.problem, err.fix, name) from err


def _mode_options(
    *,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error")] = False,
) -> None: ...


_MODE = inspect.signature(_mode_options).parameters
