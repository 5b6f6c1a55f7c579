"""Where `vdiff sample` leaves its pictures, and whether it may; what it has drawn before."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vdiff.cli import outputs
from vdiff.disk import manifest
from vdiff.disk.ours import is_archive, is_picture
from vdiff.errors import UsageError
from vdiff.model_folder.card import MANIFEST

if TYPE_CHECKING:
    from vdiff.drawing.kept import KeptBatches

_LONG = 200


@dataclass(frozen=True)
class Form:
    """What `--strip` and `--gif` say: the way from noise to pictures instead of pictures."""

    strip: bool
    gif: bool

    @property
    def is_way(self) -> bool:
        """Whether the way is shown."""
        return self.strip or self.gif

    @property
    def ending(self) -> str:
        """Of a file that is only looked at."""
        if self.gif:
            return ".gif"
        return ".png"


def place(out: str | None, folder: Path, how: str, form: Form) -> Path:
    """The path that is asked for, or that vdiff chooses.

    folder: of the model.   how: it draws, in a word.
    Errors: UsageError for a name that says of no form.
    """
    if form.strip and form.gif:
        raise UsageError("--strip and --gif are two forms of one thing", "ask for one of them")
    ending = form.ending
    strip = "-strip" if form.strip else ""
    path = Path(out) if out else Path("samples") / f"{folder.resolve().name}-{how}{strip}{ending}"
    is_folder = _is_folder(path, out)
    if form.is_way and path.suffix != ending:
        raise UsageError(
            f"`{path.name}` cannot hold what {'--gif' if form.gif else '--strip'} makes",
            f"end it in {ending}",
            "--out",
        )
    if not is_folder and path.suffix not in (ending, ".npz", ".zip"):
        fix = "end it in .png (a grid), .npz or .zip, or in / for a folder"
        raise UsageError(f"`{path.name}` names no form that pictures can be left in", fix, "--out")
    return path


def may_keep(target: Path) -> bool:
    """Whether there can be anything beside the place where the pictures go."""
    parent = Path(os.path.abspath(target)).parent
    return not parent.is_dir() or os.access(parent, os.W_OK)


def about(model: Path, wanted: Mapping[str, str | int]) -> dict[str, str | int]:
    """All that shapes the pictures, as `KeptBatches` asks for it.

    model: its folder.   wanted: what else is asked for, by the words that messages call it.
    """
    from vdiff import __version__

    told: dict[str, str | int] = {
        "vdiff": __version__,
        "model": f"{model.resolve().name} {manifest.sha256_of(model / MANIFEST)[:16]}",
    }
    for name, value in wanted.items():
        # Of a million seeds, written one by one, the digest is told.
        if isinstance(value, str) and len(value) > _LONG:
            value = f"{value[:20]}... {hashlib.sha256(value.encode()).hexdigest()[:16]}"
        told[name] = value
    return told


def refuse_taken(path: Path, out: str | None, kept: "KeptBatches | None", force: bool) -> None:
    """UsageError, before anything is drawn, for a place where the pictures may not go.

    kept: what was drawn for this place before, of a drawing that can be gone on with.
    force: replace what vdiff made there, and give up another drawing.
    """
    may_replace = force
    is_folder = _is_folder(path, out)
    if kept is not None:
        kept.refuse_if_held()
        # It looks at what is there, and refuses what vdiff did not make.
        is_begun = kept.is_begun()
        if not force:
            kept.refuse_other()
        may_replace |= is_begun and (is_folder or kept.may_replace())
    if is_folder:
        outputs.check_folder_of_pictures(path, may_replace)
        return
    is_ours = is_picture
    if path.suffix in (".npz", ".zip"):
        is_ours = is_archive
    outputs.check_file(path, is_ours, may_replace)


def is_there(path: Path) -> bool:
    """Whether anything is at a place, and be it a link that leads nowhere."""
    return os.path.lexists(path)


def _is_folder(path: Path, out: str | None) -> bool:
    return path.suffix == "" or str(out).endswith("/")
