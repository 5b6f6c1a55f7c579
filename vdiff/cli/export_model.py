"""`vdiff export`: a model as another program takes it."""

from pathlib import Path
from typing import Annotated

import typer

from vdiff.cli import completion
from vdiff.cli.options import DryRunOption, RecipeOption, mode
from vdiff.cli.session import RunOption
from vdiff.errors import UsageError


def export_model(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A name in the run or any model folder",
            autocompletion=completion.models,
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="diffusers, onnx, torch-export, seed, rosinality, safetensors",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="PATH", help="Place to write [exports/<model>...]"),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            "--guidance",
            metavar="G",
            help="Guidance that goes into the weights, for a model that takes it; 1 is none",
        ),
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Weights in half precision")] = False,
    recipe: RecipeOption = None,
    run: RunOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Write a model for another program

    What was written is compared at once with the model: by the program itself where it is
    installed, else by reading it back. One that came out different leaves nothing.

    Examples:
      vdiff export base_4 --to diffusers
      vdiff export runs/digits/base_4 --to onnx --guidance 1.5
    """
    from vdiff.cli import console, session
    from vdiff.exchange import bake, take
    from vdiff.formats import FORMATS
    from vdiff.model_folder import checkpoint as model

    name = _ALIASES.get(to, to)
    if name not in FORMATS:
        raise UsageError(FORMATS.unknown(to), f"choose one of: {', '.join(_ALIASES)}", "--to")
    _, folder, card = session.model_of(None, checkpoint, recipe, None, run)
    kind = FORMATS.find(name)
    run_name = folder.resolve().parent.name
    bake.check(card, guidance)
    for_one = "" if guidance is None else f"-g{guidance:g}"
    path = out or Path("exports") / f"{run_name}-{card.name}{for_one}-{to}{kind.suffix}"
    if dry_run:
        console.say(f"would export `{folder}` to `{path}`", "green")
        return
    asked = {"fp16": "true"} if fp16 else {}
    checked = take.write(model.load(folder), name, path, asked, guidance)
    console.say(checked.told())
    console.say(f"exported `{folder}` to `{path}`", "green")
    if mode.json:
        console.emit_json({"path": str(path), "format": name, "proof": checked.facts()})


_ALIASES = {
    "diffusers": "diffusers",
    "onnx": "onnx",
    "torch-export": "torch_export",
    "seed": "diffusion_distiller",
    "rosinality": "rosinality",
    "safetensors": "safetensors",
}
"""What people call a format -> its name in the table."""
