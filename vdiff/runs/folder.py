"""The run folder: where recipe, log, model folders and saves of one chain lie,
and who works in it.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from vdiff.disk import lock, whole_folder
from vdiff.errors import MachineError, ModelFileError
from vdiff.model_folder.card import CONFIG, MANIFEST, MODEL, WEIGHTS, is_model_folder, read_card
from vdiff.runs import contents as run_contents
from vdiff.runs.contents import AGAIN, ANEW, LOG, RECIPE, SAVE, SAVES, STATE, STATUS

__all__ = ["SAVE", "STATE", "RunFolder", "points"]


class RunFolder:
    """`runs/<name>/`: recipe.yaml, log.jsonl, original/, base_0/, ...;
    previews/, saves/, evaluation/, tracker/, earlier/.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / RECIPE
        self.log = path / LOG
        self.status = path / STATUS
        self.previews = path / "previews"
        self.tracker = path / "tracker"
        self.evaluation = path / "evaluation"
        self.table = self.evaluation / "table.json"
        self.earlier = path / "earlier"

    def model(self, name: str) -> Path:
        """The model folder of a stage, there or not."""
        return self.path / name

    def saves(self, name: str) -> Path:
        """Where the stage's savepoints lie while it is not complete."""
        if self.is_anew(name):
            return self.anew(name)
        return self.kept_saves(name)

    def kept_saves(self, name: str) -> Path:
        """Where they lie of a stage that is not made again, and stay of one that is."""
        return self.path / "saves" / name

    def anew(self, name: str) -> Path:
        """Where they lie of a stage that is made again, beside what is there of it."""
        return self.path / "saves" / f"{name}{ANEW}"

    def is_anew(self, name: str) -> bool:
        """Whether a command has begun to make the stage again, and it is not complete."""
        sign = self.anew(name) / AGAIN
        return sign.is_file() and not sign.is_symlink()

    def points(self, name: str) -> list[Path]:
        """The stage's savepoints, newest first."""
        return points(self.saves(name))

    def unfinished(self) -> list[str]:
        """Names of the stages that have savepoints and are not finished,
        or being made longer.
        """
        found = {path.name.removesuffix(ANEW) for path in (self.path / "saves").glob("*")}
        return sorted(name for name in found if self.points(name) and self.is_behind(name))

    def is_behind(self, name: str) -> bool:
        """Whether there is no model folder of the stage, or one that has seen fewer updates than
        its newest save.
        """
        if not is_model_folder(self.model(name)):
            return name not in self.without_manifest()  # which is damaged, not unfinished
        if self.is_anew(name):
            return True
        try:
            done = read_card(self.model(name)).updates
        except ModelFileError:
            return True
        return any(int(point.name) > done for point in self.points(name))

    def is_begun(self) -> bool:
        """Whether a run has worked here: a recipe alone does not make a run."""
        return any((self.path / name).exists() for name in (lock.FILE, LOG, "saves")) or bool(
            self.models()
        )

    def models(self) -> list[str]:
        """Names of the finished model folders: the base first, then the students in order."""
        if not self.path.is_dir():
            return []
        names = [path.name for path in self.path.glob("*") if is_model_folder(path)]
        # by length first: base_10 comes after base_9
        return sorted(names, key=lambda name: (name.startswith("base_"), len(name), name))

    def without_manifest(self) -> list[str]:
        """Names of what was a model folder and has lost its manifest:
        nobody can tell whether the rest of it is whole.
        """
        parts = (CONFIG, WEIGHTS, "model_index.json")
        found = [
            path
            for path in self.path.glob("[!.]*")
            if any((path / part).is_file() for part in parts)
        ]
        return sorted(path.name for path in found if not is_model_folder(path))

    def find(self, checkpoint: str) -> Path:
        """The model folder with this name in the run, or at this path.

        Errors: ModelFileError listing the names.
        """
        for folder in (self.model(checkpoint), Path(checkpoint)):
            if is_model_folder(folder):
                return folder
        problem = f"there is no model folder `{checkpoint}`"
        for folder in (self.model(checkpoint), Path(checkpoint)):
            if folder.is_dir():
                problem = (
                    f"`{folder}` has no {MANIFEST}, which vdiff writes last: "
                    "it is no model folder of vdiff, or not whole"
                )
                break
        fix = "run `vdiff train` first"
        names = self.models()
        if names:
            fix = f"take one of: {', '.join(names)}"
        raise ModelFileError(problem, fix, self.path)

    @contextlib.contextmanager
    def lock(self, say: Callable[[str], None] = lambda text: None) -> Iterator[None]:
        """Keep other runs out of the folder; what a killed one left half-written is removed.

        say: told of a damaged file that is kept under another name.
        Errors: InUseError; MachineError for a link in the place of a folder that is written to;
        UsageError for anything there that vdiff did not make.
        Folders that were made for it go again when nothing was written into them.
        """
        with lock.held(self.path):
            own = (self.path / "saves", *(self.path / "saves").glob("[!.]*"))
            written = (self.previews, self.tracker, self.evaluation, self.earlier, self.log)
            _refuse_links([*own, *written])
            run_contents.refuse_strangers(self.path, say)
            whole_folder.clean(self.path, MODEL, files=run_contents.FILES)
            whole_folder.clean(self.earlier, MODEL)
            whole_folder.clean(own[0], SAVES)
            for folder in own[1:]:
                whole_folder.clean(folder, SAVE)
            whole_folder.clean(self.previews)
            yield

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Keep other evaluations out, while a training may go on.

        Errors: InUseError, MachineError as in `lock`.
        """
        _refuse_links(
            [self.evaluation, *self.evaluation.glob("*"), *self.evaluation.glob("samples/*")]
        )
        run_contents.refuse_strange_evaluation(self.path)
        with lock.held(self.evaluation):
            for folder in (
                self.evaluation,
                *self.evaluation.glob("*/"),
                *self.evaluation.glob("samples/*/"),
            ):
                whole_folder.clean(folder)
            yield

    def refuse_to_replace(self, stages: Sequence[str], recipe: str) -> None:
        """UsageError for what vdiff did not make and these stages would replace, or delete.

        recipe: to be written.
        """
        for name in stages:
            MODEL.refuse_stranger(self.model(name), run_contents.OTHER_RUN)
            for saves in (self.kept_saves(name), self.anew(name)):
                run_contents.refuse_strange_saves(saves)
        run_contents.check_recipe(self.path, recipe)

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
    """The savepoints in a stage's folder of saves, newest first by update number:
    clocks jump.
    """
    named = (path for path in saves.glob("[0-9]*") if re.fullmatch(r"\d{9,}", path.name))
    return sorted((path for path in named if path.is_dir() and not path.is_symlink()), reverse=True)
