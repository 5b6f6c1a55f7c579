"""The run folder: where recipe, log, model folders and saves of one chain lie, and who works in it."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from vdiff import lock, whole_folder
from vdiff.errors import MachineError, ModelFileError
from vdiff.model_card import CONFIG, WEIGHTS, is_model_folder, read_card

STATE = "state.json"
"""The file of a point to resume from that tells its update and its files."""


class RunFolder:
    """`runs/<name>/`: recipe.yaml, log.jsonl, original/, base_0/, ...; previews/, saves/, evaluation/, tracker/."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.log = path / "log.jsonl"
        self.status = path / "status.json"
        self.previews = path / "previews"
        self.tracker = path / "tracker"
        self.evaluation = path / "evaluation"
        self.table = self.evaluation / "table.json"

    def model(self, name: str) -> Path:
        """The model folder of a stage, there or not."""
        return self.path / name

    def saves(self, name: str) -> Path:
        """Where the stage's points to resume from lie while it is not complete."""
        return self.path / "saves" / name

    def points(self, name: str) -> list[Path]:
        """The stage's points to resume from, newest first."""
        return points(self.saves(name))

    def unfinished(self) -> list[str]:
        """Names of the stages that have points to resume from and are not finished, or being made longer."""
        begun = (path.name for path in (self.path / "saves").glob("*") if self.points(path.name))
        return sorted(name for name in begun if self.is_behind(name))

    def is_behind(self, name: str) -> bool:
        """Whether there is no model folder of the stage, or one that has seen fewer updates than its newest save."""
        if not is_model_folder(self.model(name)):
            return name not in self.unmarked()  # which is damaged, not unfinished
        try:
            done = read_card(self.model(name)).updates
        except ModelFileError:
            return True
        return any(int(point.name) > done for point in self.points(name))

    def is_begun(self) -> bool:
        """Whether a run has worked here: a recipe alone does not make a run."""
        return any((self.path / name).exists() for name in (lock.FILE, "log.jsonl", "saves")) or bool(self.models())

    def models(self) -> list[str]:
        """Names of the finished model folders: the base first, then the students in order."""
        found = [path.name for path in self.path.glob("*") if is_model_folder(path)] if self.path.is_dir() else []
        return sorted(found, key=lambda name: (name.startswith("base_"), len(name), name))

    def unmarked(self) -> list[str]:
        """Names of what was a model folder and has lost its mark: nobody can tell whether the rest of it is whole."""
        parts = (CONFIG, WEIGHTS, "model_index.json")
        found = [path for path in self.path.glob("[!.]*") if any((path / part).is_file() for part in parts)]
        return sorted(path.name for path in found if not is_model_folder(path))

    def find(self, checkpoint: str) -> Path:
        """The model folder with this name in the run, or at this path.   Errors: ModelFileError listing the names."""
        for folder in (self.model(checkpoint), Path(checkpoint)):
            if is_model_folder(folder):
                return folder
        names = self.models()
        raise ModelFileError(
            f"there is no model folder `{checkpoint}`",
            f"take one of: {', '.join(names)}" if names else "run `vdiff train` first",
            self.path,
        )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other runs out of the folder; what a killed one left half-written is removed.

        Errors: InUseError; MachineError for a link in the place of a folder that is written to.
        Folders that were made for it go again when nothing was written into them.
        """
        with lock.held(self.path):
            own = (self.path / "saves", *(self.path / "saves").glob("[!.]*"))
            _refuse_links([*own, self.previews, self.tracker, self.evaluation, self.log])
            for folder in (self.path, *own):
                whole_folder.clean(folder)
            yield

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Keep other evaluations out, while a training may go on.   Errors: InUseError, MachineError as in `lock`."""
        _refuse_links([self.evaluation, *self.evaluation.glob("*"), *self.evaluation.glob("samples/*")])
        with lock.held(self.evaluation):
            for folder in (self.evaluation, *self.evaluation.glob("*/"), *self.evaluation.glob("samples/*/")):
                whole_folder.clean(folder)
            yield

    def is_at_work(self) -> bool:
        """Whether a process holds the lock."""
        return lock.is_held(self.path)


def _refuse_links(paths: Sequence[Path]) -> None:
    """MachineError for a link: what is written or deleted through it would lie outside the run."""
    for path in paths:
        if path.is_symlink():
            fix = "put a folder in its place; to keep a run on another disk, name that with `--run`"
            raise MachineError(f"`{path}` is a link out of the run", fix)


def points(saves: Path) -> list[Path]:
    """The points to resume from in a stage's folder of saves, newest first by update number: clocks jump."""
    return sorted((path for path in saves.glob("[0-9]*") if path.is_dir() and not path.is_symlink()), reverse=True)
