"""How good are the students of a digits run? Frechet distance of pixels, a row per number of steps.

    python benchmarks/digits_quality.py vdiff-demo/runs/digits

Protocol: mean and covariance of the 64 pixels in [-1, 1], projected on the 48 first principal
components of the reference; 2,048 pictures from seeds 0 to 2047, DDIM without clipping, clamped to
[-1, 1] and rounded to 8 bits as any picture is; all 1,797 digits as the reference. Two halves of
the digits do not have distance 0: see `floor`.
"""

import argparse
from pathlib import Path

import torch

from vdiff import digits
from vdiff.images.images import to_float, to_uint8
from vdiff.metrics.frechet import PixelFrechet
from vdiff.model_folder import checkpoint
from vdiff.runs.folder import RunFolder
from vdiff.samplers.ddim import Ddim
from vdiff.samplers.draw import draw

NUM_SAMPLES = 2048
NUM_COMPONENTS = 48


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    run = RunFolder(parser.parse_args().run)
    reference = to_float(torch.from_numpy(digits.load()[0]))
    measure = PixelFrechet(reference, NUM_COMPONENTS)
    base = checkpoint.load(run.model("original"))
    students = [checkpoint.load(run.model(name)) for name in run.models() if name != "original"]
    teacher_steps = base.card.num_steps
    teacher = distance(measure, base, teacher_steps)
    print(
        f"fd_pixel, {NUM_COMPONENTS} components, n = {NUM_SAMPLES}, seeds 0-{NUM_SAMPLES - 1}, "
        "reference 1,797 digits"
    )
    print(f"model {base.card.hash[:12]}, {base.card.num_parameters:,} parameters")
    print(f"floor ({NUM_SAMPLES} digits drawn with replacement): {floor(measure, reference):.4f}\n")
    print("| steps | undistilled | student | student / teacher |\n|---|---|---|---|")
    print(f"| {teacher_steps} | {teacher:.4f} (the teacher) | - | - |")
    for student in students:
        steps = student.card.num_steps
        found = distance(measure, student, steps)
        print(
            f"| {steps} | {distance(measure, base, steps):.4f} | {found:.4f} | "
            f"{found / teacher:.2f} |",
            flush=True,
        )


def distance(measure: PixelFrechet, model: checkpoint.Checkpoint, num_steps: int) -> float:
    """The Frechet distance of a model sampled in `num_steps` steps."""
    card = model.card
    arguments = (model.denoiser, Ddim(), range(NUM_SAMPLES), card.shape, num_steps)
    return measure.distance(
        to_float(to_uint8(draw(*arguments, model_steps=card.times, batch_size=256)))
    )


def floor(measure: PixelFrechet, reference: torch.Tensor) -> float:
    """The mean distance of ten samples of real digits: what no model can be expected to beat."""
    drawn = [
        torch.randint(len(reference), (NUM_SAMPLES,), generator=torch.Generator().manual_seed(seed))
        for seed in range(10)
    ]
    return sum(measure.distance(reference[chosen]) for chosen in drawn) / len(drawn)


if __name__ == "__main__":
    main()
