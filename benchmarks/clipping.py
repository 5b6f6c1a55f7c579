"""What clipping does to pictures of digits: distances, and a strip of the same seeds.

    python benchmarks/clipping.py vdiff-demo/runs/digits docs/clipping.png

The measure of digits_quality.py; a row per model, a column per sampler. In brackets the spread of a
pixel over the pictures (its standard deviation, mean over the pixels); the last row is that of the
digits themselves.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.digits_quality import NUM_COMPONENTS, NUM_SAMPLES
from vdiff import digits
from vdiff.chain.plan import counted
from vdiff.images.images import ImageRow, to_float, to_uint8, write_rows
from vdiff.metrics.frechet import PixelFrechet
from vdiff.model_folder import checkpoint
from vdiff.model_folder.checkpoint import Checkpoint
from vdiff.runs.folder import RunFolder
from vdiff.samplers.ddim import Ddim
from vdiff.samplers.draw import draw
from vdiff.samplers.sampler import Sampler

SAMPLERS = {
    "free": Ddim(),
    "--clipped": Ddim(clip=1.2),
    "--clip-noise 1.2": Ddim(clip=1.2, clip_noise=1.2),
}
SHOWN = 16


def main() -> None:
    """Print the table and write the strip."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("picture", type=Path)
    given = parser.parse_args()
    run = RunFolder(given.run)
    reference = to_float(torch.from_numpy(digits.load()[0]))
    measure = PixelFrechet(reference, NUM_COMPONENTS)
    models = [checkpoint.load(run.model(name)) for name in run.models()]
    rows: list[ImageRow] = []
    print(f"| model | steps | {' | '.join(SAMPLERS)} |\n|---|---|{'---|' * len(SAMPLERS)}")
    for model in (
        each for each in models if each.card.num_steps == 4 or not each.card.is_distilled
    ):
        drawn = {name: pictures(model, sampler) for name, sampler in SAMPLERS.items()}
        found = [
            f"{measure.distance(each):.4f} ({spread(each):.3f})"
            for each in map(to_float, drawn.values())
        ]
        print(f"| {model.card.name} | {model.card.num_steps} | {' | '.join(found)} |", flush=True)
        for number, (name, each) in enumerate(drawn.items()):
            label = f"{counted(model.card.num_steps)}, {name}"
            rows.append(ImageRow(label, each[:SHOWN], gap=number == 0 and bool(rows)))
    print(f"| digits | - | ({spread(reference):.3f}) |")
    write_rows(given.picture, rows)


def pictures(model: Checkpoint, sampler: Sampler) -> torch.Tensor:
    """NUM_SAMPLES pictures of a model at its own number of steps, uint8."""
    card = model.card
    arguments = (model.denoiser, sampler, range(NUM_SAMPLES), card.shape, card.num_steps)
    return to_uint8(draw(*arguments, model_steps=card.times, batch_size=256))


def spread(images: torch.Tensor) -> float:
    """How much a pixel varies from picture to picture."""
    return float(images.std(0).mean())


if __name__ == "__main__":
    main()
