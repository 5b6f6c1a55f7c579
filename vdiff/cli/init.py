"""`vdiff init`: a recipe to start from, which editors understand."""

import itertools
import json
from pathlib import Path
from typing import Annotated

import typer

from vdiff.cli import completion, outputs
from vdiff.cli.options import DryRunOption, ForceOption, mode
from vdiff.errors import UsageError

_OF_DIGITS = ("digits", "digits_classes")
"""Recipes whose pictures are in the package."""

SCHEMA = Path(".vdiff") / "recipe.schema.json"
"""The JSON schema of recipes, beside the recipe that points to it."""


def init(
    name: Annotated[
        str,
        typer.Argument(
            help="Shipped recipe to copy, see `vdiff recipes ls`", autocompletion=completion.shipped
        ),
    ] = "digits",
    output: Annotated[Path, typer.Option("-o", "--out", help="File to write")] = Path(
        "recipe.yaml"
    ),
    force: ForceOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Write a recipe to start from

    The copy's first line points editors at the JSON schema of recipes, which is written beside it,
    in .vdiff/. Of `digits` and `digits_classes`, the pictures are written too.

    Examples:
      vdiff init digits
      vdiff init celeba_u -o faces.yaml
    """
    from vdiff.cli import console, failures
    from vdiff.recipe import text as recipe_text

    shipped = recipe_text.shipped()
    if name not in shipped:
        near = failures.nearest(name, shipped)
        raise UsageError(
            f"there is no shipped recipe `{name}`{near}", f"take one of: {', '.join(shipped)}"
        )
    outputs.check_file(output, _is_our_recipe, force)
    outputs.check_file(output.parent / SCHEMA, _is_schema, force=True)
    if name in _OF_DIGITS:
        _check_digits(output.parent / "digits")
    if not dry_run:
        _keep_edited(output)
        _write(shipped[name].read_text("utf-8"), output)
        if name in _OF_DIGITS:
            _write_digits(output.parent / "digits")
    did = "wrote"
    if dry_run:
        did = "would write"
    console.say(f"{did} `{output}` and `{output.parent / SCHEMA}`", "green")
    if mode.json:
        console.emit_json(
            {"recipe": str(output), "schema": str(output.parent / SCHEMA), "dry_run": dry_run}
        )


def _check_digits(folder: Path) -> None:
    from vdiff.digits import check_folder

    check_folder(folder)


def _write_digits(folder: Path) -> None:
    """The pictures of this recipe ship with vdiff."""
    from vdiff.cli import console
    from vdiff.digits import write_folder

    console.say(f"wrote {write_folder(folder):,} pictures to `{folder}`", "green")


def _keep_edited(output: Path) -> None:
    """Put a recipe that somebody has changed aside before another one takes its place."""
    from vdiff.cli import console
    from vdiff.recipe import text as recipe_text

    if not output.is_file():
        return
    shipped = [path.read_text("utf-8") for path in recipe_text.shipped().values()]
    # as it lies in vdiff, or as this command writes it
    unchanged = [text.encode() for text in (*shipped, *map(_with_schema, shipped))]
    if output.read_bytes() in unchanged:
        return
    free = (
        output.with_name(f"{output.stem}-{number}{output.suffix}") for number in itertools.count(1)
    )
    kept = next(path for path in free if not path.exists() and not path.is_symlink())
    # with --force too: nothing that somebody wrote is lost
    output.rename(kept)
    console.say(f"the recipe that was there, and was changed, is kept as `{kept}`")


def _write(text: str, output: Path) -> None:
    from vdiff.cli.recipes import schema_text
    from vdiff.disk import whole_folder

    whole_folder.write_text(output.parent / SCHEMA, schema_text(), _is_schema)
    whole_folder.write_text(output, _with_schema(text), _is_our_recipe)


def _with_schema(text: str) -> str:
    """A shipped recipe whose first line points editors at the schema beside it."""
    lines = [
        line
        for line in text.splitlines(keepends=True)
        if not line.startswith("# yaml-language-server:")
    ]
    return "".join([f"{_FIRST_LINE}\n", *lines])


_FIRST_LINE = f"# yaml-language-server: $schema={SCHEMA.as_posix()}"


def _is_our_recipe(path: Path) -> bool:
    """Whether a recipe was written by this command, and maybe changed,
    or is a shipped one word for word.
    """
    from vdiff.recipe import text as recipe_text

    data = path.read_bytes()
    is_shipped = any(data == shipped.read_bytes() for shipped in recipe_text.shipped().values())
    return is_shipped or data.startswith(_FIRST_LINE.encode())


def _is_schema(path: Path) -> bool:
    """Whether a file is the schema of recipes, of this version or another one."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return False
    if not isinstance(content, dict):
        return False
    properties = content.get("properties")
    if not isinstance(properties, dict):
        return False
    return {"data", "network", "diffusion", "train", "distill"} <= properties.keys()
