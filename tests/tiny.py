"""Runs that take a moment: a recipe of a very small network, the chain that follows it,
and what it leaves behind.
"""

import hashlib
import signal
from dataclasses import dataclass, field
from pathlib import Path

from vdiff.chain.chain import Chain
from vdiff.chain.stage_run import Surroundings
from vdiff.cli.progress import FitLines
from vdiff.machine.machine import Machine
from vdiff.model_folder.checkpoint import ModelCard
from vdiff.recipe import text as recipe_text
from vdiff.recipe.recipe import Recipe
from vdiff.runs.folder import RunFolder

RECIPE = """\
name: tiny
seed: 3
data: {{path: {store}, size: 8, flip: true}}
network: {{width: 4, multipliers: [1], blocks: 1, dropout: 0.1, num_classes: 2}}
diffusion: {{schedule: {{kind: cosine, grid: 64}}}}
train: {{updates: 5, batch_size: 6, micro_batch: 64, warmup_updates: 2, ema: 0.9,
         learning_rate: 1.0e-2, log_every: 2, save_every: 2}}
distill: {{start_steps: 8, end_steps: 1, updates: 2, batch_size: 6, micro_batch: 64,
           learning_rate: 1.0e-2, log_every: 1}}
sample: {{num_images: 4, batch_size: 4}}
"""
"""All pictures go at once: to find a `micro_batch` takes longer than these trainings,
and has tests of its own.
"""


class StopAfter:
    """A stop request that comes during the update with this number,
    counted from where the run goes on.
    """

    def __init__(self, updates: int) -> None:
        self._left = updates

    def __call__(self) -> int:
        self._left -= 1
        return signal.SIGTERM if self._left <= 0 else 0


def never() -> int:
    return 0


@dataclass
class TinyRun:
    """A folder with a store and a recipe; chains work in sub-folders of it. said:
    what they told.
    """

    path: Path
    text: str
    said: list[str] = field(default_factory=list)

    def recipe(self, *changes: str) -> Recipe:
        text = recipe_text.set_values(recipe_text.parse(self.text, "recipe.yaml"), changes)
        return recipe_text.validate(Recipe, text)

    def folder(self, run: str = "run") -> RunFolder:
        return RunFolder(self.path / run)

    def chain(
        self,
        *changes: str,
        stop_after: int | None = None,
        run: str = "run",
        machine: Machine | None = None,
    ) -> Chain:
        stop = StopAfter(stop_after) if stop_after else never
        machine = machine or Machine("fp32", "cpu")
        progress = FitLines(self.said.append)
        return Chain(
            Surroundings(
                self.recipe(*changes), self.text, self.folder(run), machine, progress, stop
            )
        )

    def base(self, *changes: str, run: str = "run") -> ModelCard:
        return self.chain(*changes, run=run).train()

    def hashes(self, run: str = "run") -> dict[str, str]:
        """SHA-256 of every model's weights and of the log:
        what must not depend on how a run was interrupted.
        """
        place = self.folder(run)
        files = {
            name: place.model(name) / "unet/diffusion_pytorch_model.safetensors"
            for name in place.models()
        }
        return {name: sha256(path) for name, path in {**files, "log.jsonl": place.log}.items()}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
