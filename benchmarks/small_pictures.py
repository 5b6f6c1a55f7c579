"""What does vdiff's own drawing cost for small pictures on a CPU, beside an older tree and others?

    python -m benchmarks.small_pictures [--before ../older] [--rounds 31] [--others]

The network of the recipe `digits` with random weights, 4 steps of DDIM, one thread. Each party is
a process of its own, and all of them draw in turn. Medians of CPU time and of wall time, in
milliseconds per batch, and the ratio of CPU times to the first party. `--others` adds ONNX
Runtime (with the extra `[onnx]`) and torch.export.

Parties: `before` is the older tree; `steps` draws step by step, as the first batches of a shape
are drawn; `recorded` is what draws from then on. Pictures of the first three must have equal
bits.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

COUNTS = (1, 64)
STEPS = 4
SHAPE = (1, 8, 8)
_HERE = Path(__file__).resolve().parents[1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--others", action="store_true")
    parser.add_argument("--party", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.party is not None:
        work(given.party)
        return
    trees = {"steps": _HERE, "recorded": _HERE}
    if given.before is not None:
        trees = {"before": given.before.resolve(), **trees}
    if given.others:
        trees |= {"ONNX Runtime": _HERE, "torch.export": _HERE}
    parties = {name: Party(name, tree) for name, tree in trees.items()}
    print("| pictures | who | CPU ms | wall ms | CPU against the first | picture |")
    print("|---" * 6 + "|")
    for count in COUNTS:
        found: dict[str, list[list[float]]] = {name: [] for name in parties}
        marks = {name: party.ask({"mark": count}) for name, party in parties.items()}
        for _ in range(given.rounds):
            for name, party in parties.items():
                found[name].append(party.ask({"draw": count}))
        first = ""
        for name, times in found.items():
            cpu, wall = (1e3 * statistics.median(each) for each in zip(*times, strict=True))
            first = first or name
            ratio = statistics.median(
                mine[0] / theirs[0] for mine, theirs in zip(times, found[first], strict=True)
            )
            cells = [str(count), name, f"{cpu:.2f}", f"{wall:.2f}", f"{ratio:.2f}", marks[name]]
            print("| " + " | ".join(cells) + " |", flush=True)
    for party in parties.values():
        party.close()


class Party:
    """A process that draws with one tree in one way."""

    def __init__(self, name: str, tree: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--party", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def ask(self, question: dict[str, int]) -> Any:
        """The answer to `{"draw": count}`, seconds of CPU and wall time, or `{"mark": count}`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """No more questions."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def work(name: str) -> None:
    """Answer questions until there are no more."""
    with tempfile.TemporaryDirectory() as folder:
        draw = ways(name, Path(folder))
        for line in sys.stdin:
            question = json.loads(line)
            if "mark" in question:
                for _ in range(5):
                    pictures = draw(range(question["mark"]))
                answer: Any = hashlib.sha256(pictures.numpy().tobytes()).hexdigest()[:8]
            else:
                cpu = time.process_time()
                wall = time.perf_counter()
                draw(range(question["draw"]))
                answer = [time.process_time() - cpu, time.perf_counter() - wall]
            print(json.dumps(answer), flush=True)


def ways(name: str, folder: Path) -> Callable[[Sequence[int]], Any]:
    """What draws the pictures of seeds, uint8 [n, C, H, W], as the party with this name does."""
    import torch

    from vdiff.diffusion.denoiser import Denoiser
    from vdiff.diffusion.process import DiffusionSection
    from vdiff.images.images import to_uint8
    from vdiff.machine import memory
    from vdiff.machine.machine import frozen
    from vdiff.recipe import text as recipe_text
    from vdiff.recipe.recipe import Recipe
    from vdiff.samplers.ddim import Ddim
    from vdiff.samplers.draw import draw

    torch.set_num_threads(1)
    memory.set_malloc_policy(sparing=False)
    digits = recipe_text.validate(Recipe, recipe_text.find("digits"))
    torch.manual_seed(0)
    network = digits.network.build(8, 1)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.03 * torch.randn_like(weight))
    section = DiffusionSection.model_validate({"schedule": "cosine", "predicts": "v"})
    denoiser = Denoiser(
        frozen(network, torch.device("cpu"), "fp32"), section.schedule.build(), section.predicts
    )
    if name in ("before", "steps", "recorded"):
        if name != "before":
            from vdiff.samplers import recorded

            recorded.BATCHES_BEFORE = 2 if name == "recorded" else sys.maxsize
        return lambda seeds: to_uint8(draw(denoiser, Ddim(), seeds, SHAPE, STEPS, model_steps=4))
    run = graph_of(name, denoiser, section.model_dump(mode="json"), folder)
    return lambda seeds: to_uint8(run(seeds))


def graph_of(name: str, denoiser: Any, diffusion: Any, folder: Path) -> Callable[..., Any]:
    """What draws with an exported sampler: float32 [n, C, H, W]."""
    import torch

    from vdiff.formats.adapter import ForeignModel
    from vdiff.formats.onnx_format import OnnxFormat
    from vdiff.formats.torch_export_format import TorchExportFormat
    from vdiff.randomness import Randomness

    model = ForeignModel(denoiser, "unet", diffusion, SHAPE, 0, STEPS, True)
    place = folder / "graphs"
    run: Any
    if name == "torch.export":
        TorchExportFormat().write(model, place, {})
        run = torch.export.load(place / "sampler.pt2").module()
    else:
        import onnxruntime

        OnnxFormat().write(model, place, {})
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            place / "sampler.onnx", options, providers=["CPUExecutionProvider"]
        )

        def run(noise: Any) -> Any:
            return torch.from_numpy(session.run(None, {"noise": noise.numpy()})[0])

    for file in sorted(place.iterdir()):
        print(f"{file.name}: {file.stat().st_size:,} bytes", file=sys.stderr)

    @torch.no_grad()
    def drawn(seeds: Sequence[int]) -> Any:
        chosen = torch.tensor(list(seeds), dtype=torch.int64)
        return run(Randomness.for_images(chosen).normal(*SHAPE))

    return drawn


if __name__ == "__main__":
    main()
