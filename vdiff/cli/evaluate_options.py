"""The options of `vdiff evaluate` that no other command has."""

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    Path | None, typer.Option("--data", metavar="STORE", help="Reference pictures [the recipe's]")
]
Count = Annotated[
    int,
    typer.Option("--n", min=2, help="Pictures drawn with each model; more narrow the intervals"),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        metavar="A,B",
        help="Which metrics, as in fd_pixel:48,fid [agreement,fd_pixel,swd]",
    ),
]
FirstSeed = Annotated[
    int, typer.Option("--first-seed", min=0, help="Seed of the first picture; the others follow")
]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", help="Feature extractor's weights, where there is no network"),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        help="Pictures at once; changes memory, and pictures by rounding only [64]",
    ),
]
Solvers = Annotated[
    bool,
    typer.Option("--solvers/--no-solvers", help="Whether the base is measured by solvers, too"),
]
GuidanceOption = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        metavar="G",
        help="Guided by G, those that can be, as rows of their own; 1 is none",
    ),
]
KeepSamples = Annotated[
    bool, typer.Option("--keep-samples", help="Leave the drawn pictures in the run's evaluation/")
]
