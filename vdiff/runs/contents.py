"""What vdiff leaves in a run folder besides model folders, and how it is known there."""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from vdiff.disk import lock, whole_folder
from vdiff.disk.ours import Kind, beginning, free_name, is_picture, refuse_strange_file, strange
from vdiff.training.log_file import is_filled_log, is_log

RECIPE = "recipe.yaml"
LOG = "log.jsonl"
STATUS = "status.json"

STATE = "state.json"
"""The file of a savepoint that tells its update and its files."""

_SAVE = r"state\.json|(weights|average|optimizer|course|objective|pending)\.safetensors"
SAVE = Kind(STATE, re.compile(_SAVE))
"""How vdiff knows a savepoint that it made."""

SAVES = Kind(STATE, re.compile(rf"\d{{9,}}/({_SAVE})?"))
"""All those of a stage, as versions before 0.2 removed them together."""

ANEW = ".anew"
"""What the folder of a stage's savepoints is called besides, while the stage is made again."""

AGAIN = "again.json"
"""The file in it that says so."""

OTHER_RUN = "move it away, or choose another folder: --run PATH"

_DIGESTS = ".recipe.sha256"

FILES = (RECIPE, LOG, STATUS, _DIGESTS, "report.html")
"""What is written into the run folder itself."""

_FOLDERS = {
    "saves": ("*/*/state.json", "*/.*.partial-*", ".*.partial-*"),
    "previews": ("*-*.png",),
    "tracker": ("events.out.tfevents.*", "wandb*"),
    "evaluation": ("table.json", "samples", "reference", "report"),
    "profile": ("*.json.gz",),
    "earlier": ("*/vdiff.json",),
}
"""The folders of a run, and what one of them holds.
In all of them things are added, and only what is ours goes.
"""


def refuse_strangers(folder: Path, say: Callable[[str], None]) -> None:
    """UsageError for a file or folder of somebody else in the place of one
    that a training writes to.

    say: told of a damaged file of a run that is begun; it is kept under another name.
    """
    is_begun = is_run(folder)
    for name, is_ours in ((LOG, is_log), (STATUS, is_status)):
        path = folder / name
        if os.path.lexists(path) and not (_is_file(path) and is_ours(path)):
            if not (is_begun and _is_file(path)):
                raise strange(path, path, OTHER_RUN)
            _keep_beside(path, say)
    for name in _FOLDERS:
        _refuse_strange_folder(folder / name, is_begun)


def refuse_strange_evaluation(folder: Path) -> None:
    """As `refuse_strangers`, for what an evaluation writes to."""
    _refuse_strange_folder(folder / "evaluation", is_run(folder))


def refuse_strange_saves(folder: Path) -> None:
    """UsageError for what a stage cannot save beside. folder: of its savepoints."""
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
        raise strange(folder, folder, OTHER_RUN)
    for point in folder.glob("[0-9]*"):
        if re.fullmatch(r"\d{9,}", point.name):
            SAVE.refuse_stranger(point, OTHER_RUN)


def is_run(folder: Path) -> bool:
    """Whether a run of vdiff has worked in a folder: what only a run leaves is there."""
    known = ((_DIGESTS, _is_digests), (LOG, is_filled_log), (STATUS, is_status))
    is_begun = any(_is_file(folder / name) and is_ours(folder / name) for name, is_ours in known)
    return is_begun or any(
        SAVE.stranger(state.parent) is None for state in folder.glob(f"saves/*/[0-9]*/{STATE}")
    )


def is_status(path: Path) -> bool:
    """Whether a file is what a run says about itself."""
    return (
        re.match(rb'\{\s*"state": "(running|done|stopped|failed)"', beginning(path, 100))
        is not None
    )


def check_recipe(folder: Path, text: str) -> None:
    """UsageError for a recipe in the run that `write_recipe` could neither keep, nor replace,
    nor set aside.
    """
    path = folder / RECIPE
    if not _holds(path, text) and not (_is_file(path) and is_run(folder)):
        refuse_strange_file(path, _is_our_recipe, OTHER_RUN)


def write_recipe(folder: Path, text: str, say: Callable[[str], None]) -> None:
    """Leave the recipe of a run in its folder; one that was changed by hand is
    kept under another name.

    What was written is known by its SHA-256 in `.recipe.sha256`, as `sha256sum` writes it.
    say: told of what is kept.   Errors: UsageError for a file of somebody else, MachineError.
    """
    path = folder / RECIPE
    digests = folder / _DIGESTS
    if _holds(path, text):
        return
    check_recipe(folder, text)
    if os.path.lexists(path) and not _is_our_recipe(path):
        _keep_beside(path, say)
    line = f"{hashlib.sha256(text.encode()).hexdigest()}  {RECIPE}\n"
    before = ""
    if _is_file(digests):
        before = beginning(digests, _MOST_DIGESTS).decode("utf-8", "replace")
    # before the recipe: one of which nobody knows that it is ours would be kept for ever
    if line not in before:
        whole_folder.write_text(digests, before + line, _is_digests)
    whole_folder.write_text(path, text, _is_our_recipe)


def preview(folder: Path, stage: str, update: int) -> Path:
    """Where the preview of a stage at an update is left:
    never in the place of a picture that vdiff did not make.
    """
    path = folder / f"{stage}-{update:07d}.png"
    if _is_file(path) and is_picture(path):
        return path
    return free_name(path)


_MOST_DIGESTS = 2**20


def _is_digests(path: Path) -> bool:
    data = beginning(path, _MOST_DIGESTS)
    return re.fullmatch(rb"([0-9a-f]{64}  recipe\.yaml\n)+", data) is not None


def _is_our_recipe(path: Path) -> bool:
    digests = path.parent / _DIGESTS
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    return _is_file(digests) and found.encode() in beginning(digests, _MOST_DIGESTS)


def _refuse_strange_folder(path: Path, is_begun: bool) -> None:
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise strange(path, path, OTHER_RUN)
    is_known = is_begun or lock.is_signed(path)
    is_known |= any(next(path.glob(pattern), None) is not None for pattern in _FOLDERS[path.name])
    if not is_known and any(path.iterdir()):
        raise strange(path, path, OTHER_RUN)


def _keep_beside(path: Path, say: Callable[[str], None]) -> None:
    kept = free_name(path)
    path.rename(kept)
    say(f"`{path}` is not what vdiff left there: it is kept as `{kept.name}`")


def _holds(path: Path, text: str) -> bool:
    return _is_file(path) and path.read_bytes() == text.encode()


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()
