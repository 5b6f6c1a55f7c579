"""What share of an evaluation is spent in the network?

    python benchmarks/evaluate_share.py vdiff-demo/runs/digits --data vdiff-demo/data/digits

Draws with one student of a run and measures fd_pixel, swd: the work of `vdiff evaluate`
for one row, from reading the model to the finished row, in this process and without its imports.
The time inside the network is that of its forward passes alone; the noise, the sampler's own
arithmetic, the pictures' way to the disk and back, and all metrics count as the rest.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from vdiff.data.lmdb_images import LmdbImages
from vdiff.data.store import ImageStore
from vdiff.evaluation.evaluate import Evaluation
from vdiff.evaluation.known_rows import KnownRows
from vdiff.evaluation.samples import SampleRequest
from vdiff.evaluation.subjects import Subject, of_run
from vdiff.machine.machine import Machine
from vdiff.metrics.metric import named
from vdiff.networks.unet import UNet
from vdiff.runs.folder import RunFolder
from vdiff.samplers.ddim import DdimSection


def main() -> None:
    """Print the share."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    given = parser.parse_args()
    subject = next(
        each for each in of_run(RunFolder(given.run)) if each.card.num_steps == given.steps
    )
    channels, size = subject.card.shape[0], subject.card.shape[-1]
    images = LmdbImages(ImageStore(given.data), size, channels, 0)
    machine = Machine("fp32")
    clock = Clock(machine.device)
    UNet.forward = clock.around(UNet.forward)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        parts = work(subject, images, machine, Path(folder), given.n, given.batch_size)
        whole = time.perf_counter() - begun
    print(
        f"n = {given.n:,}, {given.steps} steps, batches of {given.batch_size}, "
        f"{torch.get_num_threads()} threads"
    )
    print(
        f"whole {whole:.2f} s, inside the network {clock.seconds:.2f} s: "
        f"{clock.seconds / whole:.1%}"
    )
    print(", ".join(f"{name} {seconds:.2f} s" for name, seconds in parts.items()))


def work(
    subject: Subject,
    images: LmdbImages,
    machine: Machine,
    folder: Path,
    num_images: int,
    batch_size: int,
) -> dict[str, float]:
    """One row; the seconds of its parts."""
    wanted = SampleRequest(DdimSection(), num_images, 0, batch_size)
    evaluation = Evaluation([subject], named(["fd_pixel:48", "swd"]), wanted, images, folder)
    times = [time.perf_counter()]
    metrics = evaluation.ready(machine.device)
    times.append(time.perf_counter())
    evaluation.draw(machine, lambda count: None, KnownRows())
    times.append(time.perf_counter())
    evaluation.table(metrics, machine, lambda row: None, KnownRows())
    times.append(time.perf_counter())
    spent = [after - before for before, after in pairwise(times)]
    return dict(zip(("reference", "drawing", "metrics"), spent, strict=True))


class Clock:
    """Seconds spent inside a function, the device's work included."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        self._device = device

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **named_: Any) -> Any:
            self._wait()
            begun = time.perf_counter()
            result = function(*given, **named_)
            self._wait()
            self.seconds += time.perf_counter() - begun
            return result

        return timed

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


if __name__ == "__main__":
    main()
