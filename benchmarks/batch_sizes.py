"""How much does the batch size change the pictures of the same seeds? Drawn alone, by 7 and all at
once.

    python -m benchmarks.batch_sizes MODEL-FOLDER [MODEL-FOLDER ...] [--count 64]

For each model, in its own number of steps by DDIM on one thread: the largest difference of the
float32 pictures, and how many 8-bit values are another shade. In one thread a sum is taken in
another order where the batch is another.
"""

import argparse
from pathlib import Path

import torch

from vdiff.diffusion.condition import of_seeds
from vdiff.images.images import to_uint8
from vdiff.model_folder import checkpoint
from vdiff.samplers.ddim import Ddim
from vdiff.samplers.draw import draw


def main() -> None:
    """Print a row per model and batch size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL-FOLDER")
    parser.add_argument("--count", type=int, default=64, help="pictures, seeds 0 to COUNT - 1")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"| model | batches of | largest difference to {options.count} at once | 8-bit "
        "values of another shade |"
    )
    print("|---" * 4 + "|")
    for folder in options.models:
        for size, (difference, shades, values) in compared(folder, options.count).items():
            print(
                f"| {folder.name} | {size} | {difference:.1e} | {shades} of {values:,} |",
                flush=True,
            )


def compared(folder: Path, count: int) -> dict[int, tuple[float, int, int]]:
    """For batches of 1 and of 7 against all at once:
    the largest difference, other shades, and of how many values.
    """
    model = checkpoint.load(folder)
    card = model.card
    drawn = {
        size: draw(
            model.denoiser,
            Ddim(),
            range(count),
            card.shape,
            card.num_steps,
            model_steps=card.times,
            condition=of_seeds(range(count), card.num_classes),
            batch_size=size,
        )
        for size in (1, 7, count)
    }
    together = drawn.pop(count)
    found = {}
    for size, pictures in drawn.items():
        shades = int((to_uint8(pictures) != to_uint8(together)).sum())
        found[size] = (float((pictures - together).abs().max()), shades, pictures.numel())
    return found


if __name__ == "__main__":
    main()
