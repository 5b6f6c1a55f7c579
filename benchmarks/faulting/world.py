"""Where a campaign works: pictures, recipe, the commands,
and the states of an undisturbed chain to begin at.
"""

import shutil
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from .process import HANG_SECONDS, TORCHRUN, VDIFF, Process
from .service import Service, stop_when
from .state import RUN, SAMPLES, STORE, Seen, look

RECIPE = """\
name: digits
seed: 0
precision: fp32
data: {kind: lmdb, source: ../../pictures, path: data/digits, size: 8, channels: 1}
network: {kind: unet, width: 8, multipliers: [1], blocks: 1, dropout: 0.1}
diffusion: {schedule: {kind: cosine, grid: 64}}
train: {updates: 48, batch_size: 8, learning_rate: 2.0e-3, ema: 0.99, warmup_updates: 10,
        log_every: 7, save_every: 6, preview_every: 20}
distill: {start_steps: 4, end_steps: 1, updates: 28, batch_size: 8, learning_rate: 5.0e-4,
          log_every: 7, save_every: 5}
sample: {num_images: 4, batch_size: 4}
"""
FORMS = ("pictures.png", "pictures.npz", "pictures.zip", "pictures")
MODELS = ("original", "base_0", "base_1")
BY_TWO = ("train --gpus 2", "torchrun train")


@dataclass(frozen=True)
class Program:
    """A command that is struck.

    begins: the state it starts from.   ends: the state it must lead to, in these `parts` of what
    `look` sees.
    works: a file that is there once it does more than import.
    marks: files that appear while it works, to aim at.
    """

    name: str
    command: tuple[str, ...]
    begins: str
    ends: str
    parts: tuple[str, ...]
    works: str
    marks: tuple[str, ...]


_SAVES = f"{RUN}/saves/*"
_FIT = (
    f"{_SAVES}/.*partial*",
    f"{_SAVES}/.*partial*",
    f"{_SAVES}/[0-9]*",
    f"{RUN}/.*partial*",
    f"{RUN}/*/vdiff.json",
    f"{RUN}/log.partial",
)
_TRAINED = ("models", "log", "store")


def _sample(form: str) -> Program:
    arguments = (
        "sample",
        "--checkpoint",
        "base_1",
        "-n",
        "96",
        "--batch-size",
        "4",
        "--out",
        f"{SAMPLES}/{form}",
        "--force",
        "--device",
        "cpu",
    )
    marks = (f"{SAMPLES}", f"{SAMPLES}/.*", f"{SAMPLES}/*", f"{SAMPLES}/*/.*")
    return Program(
        f"sample {form}",
        (*VDIFF, *arguments),
        "complete",
        f"sampled {form}",
        (*_TRAINED, "pictures"),
        str(SAMPLES),
        marks,
    )


_PROGRAMS = [
    Program(
        "prepare",
        (*VDIFF, "prepare"),
        "empty",
        "prepared",
        ("store",),
        f"{STORE}.partial",
        (f"{STORE}.partial/*", f"{STORE}.partial/preview.png", f"{STORE}/data.mdb"),
    ),
    Program(
        "train",
        (*VDIFF, "train", "--device", "cpu"),
        "prepared",
        "trained",
        _TRAINED,
        f"{RUN}/.lock",
        _FIT,
    ),
    Program(
        "distill",
        (*VDIFF, "distill", "--device", "cpu"),
        "trained",
        "complete",
        _TRAINED,
        f"{RUN}/.lock",
        _FIT,
    ),
    Program(
        "train --gpus 2",
        (*VDIFF, "train", "--gpus", "2", "--device", "cpu"),
        "prepared",
        "trained by two",
        _TRAINED,
        f"{RUN}/.lock",
        _FIT,
    ),
    Program(
        "torchrun train",
        (*TORCHRUN, "train", "--device", "cpu"),
        "prepared",
        "trained by two",
        _TRAINED,
        f"{RUN}/.lock",
        _FIT,
    ),
    *map(_sample, FORMS),
]
PROGRAMS = {program.name: program for program in _PROGRAMS}


class World:
    """A folder with the pictures, and `states/<name>`:
    working folders at known points of an undisturbed chain.
    """

    def __init__(self, root: Path, service: Service) -> None:
        self.root = root
        self.durations: dict[str, float] = {}
        self._service = service
        (root / "states").mkdir(parents=True)
        (root / "episodes").mkdir()

    def build(self, programs: Collection[str]) -> None:
        """Go the chain once without any fault, and stop twice within a stage.

        programs: what will be struck; of samples and of several processes only what these need is
        made.
        """
        first = self._new("empty")
        self._run(first, "init", "digits", "--out", str(self.root / "recipe.yaml"))
        (self.root / "digits").rename(self.root / "pictures")
        (first / "recipe.yaml").write_text(RECIPE)
        self._state("prepared", "empty", "prepare")
        self._state("trained", "prepared", "train")
        self._stopped("stopped in original", "prepared", "train", f"{RUN}/saves/original/000000030")
        self._state("complete", "trained", "distill")
        self._stopped("stopped in base_1", "trained", "distill", f"{RUN}/saves/base_1/000000015")
        for form in FORMS:
            if f"sample {form}" in programs:
                self._state(f"sampled {form}", "complete", f"sample {form}")
        if {*BY_TWO} & {*programs}:
            self._by_two()

    def seen(self, state: str) -> Seen:
        """What lies in a state."""
        return look(self.root / "states" / state)

    def begin(self, state: str, name: str) -> Path:
        """A new working folder that is in this state."""
        folder = self.root / "episodes" / name
        shutil.copytree(self.root / "states" / state, folder, symlinks=True)
        return folder

    def _new(self, state: str) -> Path:
        folder = self.root / "states" / state
        folder.mkdir()
        return folder

    def _state(self, state: str, before: str, program: str) -> None:
        folder = self._copy(state, before)
        began = time.monotonic()
        self._run(folder, *PROGRAMS[program].command[len(VDIFF) :])
        self.durations[program] = self._service.import_seconds + time.monotonic() - began

    def _stopped(self, state: str, before: str, program: str, point: str) -> None:
        folder = self._copy(state, before)
        stop = stop_when((folder / point).exists)
        ended = self._service(folder, *PROGRAMS[program].command[len(VDIFF) :], meanwhile=stop)
        if ended.code != 143:
            raise RuntimeError(f"a signal was not obeyed: {ended}")

    def _by_two(self) -> None:
        folder = self._copy("trained by two", "prepared")
        began = time.monotonic()
        process = Process(PROGRAMS["train --gpus 2"].command, folder)
        if not process.wait(4 * HANG_SECONDS) or process.code != 0:
            process.kill()
            raise RuntimeError(
                f"the undisturbed training by two processes failed: {process.output}"
            )
        self.durations["train --gpus 2"] = self.durations["torchrun train"] = (
            time.monotonic() - began
        )

    def _copy(self, state: str, before: str) -> Path:
        folder = self.root / "states" / state
        shutil.copytree(self.root / "states" / before, folder)
        return folder

    def _run(self, folder: Path, *arguments: str) -> None:
        ended = self._service(folder, *arguments, timeout=4 * HANG_SECONDS)
        if ended.code != 0:
            raise RuntimeError(f"the undisturbed `vdiff {' '.join(arguments)}` failed: {ended}")
