"""How good is the undistilled base of a digits run by each solver, at each number of calls?

    python benchmarks/solvers.py vdiff-demo/runs/digits

Protocol: that of `digits_quality.py`.
"""

import argparse
from pathlib import Path

import torch

from vdiff import digits
from vdiff.drawing.pictures import draw_with
from vdiff.images.images import to_float, to_uint8
from vdiff.metrics.frechet import PixelFrechet
from vdiff.model_folder import checkpoint
from vdiff.runs.folder import RunFolder
from vdiff.samplers import SAMPLERS

SOLVERS = ["unipc", "dpmpp", "ipndm", "heun"]
GRIDS = ["uniform", "logsnr", "karras"]
CALLS = [1, 2, 3, 4, 5, 6, 8, 10, 16]


def main() -> None:
    """Print the table, a line per solver and grid."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    base = checkpoint.load(RunFolder(parser.parse_args().run).model("original"))
    measure = PixelFrechet(to_float(torch.from_numpy(digits.load()[0])), 48)

    def distance(section: dict[str, str], calls: int) -> str:
        sampler = SAMPLERS.section(section["kind"]).model_validate(section).build()
        steps = max(n for n in range(1, calls + 1) if sampler.calls(n) <= calls)
        x = draw_with(base, range(2048), steps, sampler=sampler, batch_size=256)
        return f"{sampler.calls(steps)}: {measure.distance(to_float(to_uint8(x))):.3f}"

    found = [distance({"kind": "ddim"}, calls) for calls in [*CALLS, 64]]
    print("ddim", ", ".join(found), flush=True)
    for kind in SOLVERS:
        for grid in GRIDS:
            found = [distance({"kind": kind, "grid": grid}, calls) for calls in CALLS]
            print(kind, grid, ", ".join(found), flush=True)


if __name__ == "__main__":
    main()
