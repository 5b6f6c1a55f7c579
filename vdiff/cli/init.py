"""`vdiff init`: a recipe to start from, which editors understand."""

from pathlib import Path
from typing import Annotated

import typer

from vdiff.cli import completion
from vdiff.cli.options import DryRunOption, ForceOption, mode
from vdiff.errors import UsageError

SCHEMA = Path(".vdiff") / "recipe.schema.json"
"""The JSON schema of recipes, beside the recipe that points to it."""


def init(
    name: Annotated[
        str, typer.Argument(help="Shipped recipe to copy, see `vdiff recipes ls`", autocompletion=completion.shipped)
    ] = "digits",
    output: Annotated[Path, typer.Option("-o", "--out", help="File to write")] = Path("recipe.yaml"),
    force: ForceOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Write a recipe to start from

    The copy's first line points editors at the JSON schema of recipes, which is written beside it, in .vdiff/.

    Examples:
      vdiff init digits
      vdiff init celeba_u -o faces.yaml
    """
    from vdiff import recipe_text
    from vdiff.cli import console, failures

    shipped = recipe_text.shipped()
    if name not in shipped:
        near = failures.nearest(name, shipped)
        raise UsageError(f"there is no shipped recipe `{name}`{near}", f"take one of: {', '.join(shipped)}")
    if output.exists() and not force:
        raise UsageError(f"`{output}` is there already", "`--force` overwrites it, `--out` names another file", output)
    if not dry_run:
        _write(shipped[name].read_text("utf-8"), output)
        if name == "digits":
            _write_digits(output.parent / "digits")
    console.say(f"{'would write' if dry_run else 'wrote'} `{output}` and `{output.parent / SCHEMA}`", "green")
    if mode.json:
        console.emit_json({"recipe": str(output), "schema": str(output.parent / SCHEMA), "dry_run": dry_run})


def _write_digits(folder: Path) -> None:
    """The pictures of this recipe ship with vdiff."""
    from vdiff.cli import console
    from vdiff.digits import write_folder

    console.say(f"wrote {write_folder(folder):,} pictures to `{folder}`", "green")


def _write(text: str, output: Path) -> None:
    from vdiff import whole_folder
    from vdiff.cli.recipes import schema_text

    lines = [line for line in text.splitlines(keepends=True) if not line.startswith("# yaml-language-server:")]
    whole_folder.write_text(output.parent / SCHEMA, schema_text())
    whole_folder.write_text(output, "".join([f"# yaml-language-server: $schema={SCHEMA.as_posix()}\n", *lines]))
