"""A model that takes the place of another one:
what was distilled from that one stays, and so does its teacher, under another name.
"""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from vdiff.disk import whole_folder
from vdiff.errors import ModelFileError
from vdiff.model_folder.card import MODEL, ModelCard, is_model_folder, read_card
from vdiff.runs.folder import RunFolder


def students(run: RunFolder, name: str, but: Collection[str] = ()) -> list[str]:
    """Names of the models in the run that were distilled from the one with this name, and from
    those in turn; none of those that are made again.

    but: those that are to be made again, too.
    Nothing is known of a model whose card is damaged.
    """
    teachers = {card.hash for card in _cards(run, [name])}
    found = []
    # in the order of the chain, so that a teacher comes before its students
    others = [other for other in run.models() if other not in (name, *but)]
    for card in _cards(run, [other for other in others if not run.is_anew(other)]):
        if card.parent is not None and card.parent["hash"] in teachers:
            teachers.add(card.hash)
            found.append(card.name)
    return found


def _cards(run: RunFolder, names: Sequence[str]) -> Iterator[ModelCard]:
    for name in names:
        try:
            yield read_card(run.model(name))
        except ModelFileError:
            continue


def place_aside(run: RunFolder, card: ModelCard) -> Path:
    """Where a model goes that has students and is replaced."""
    return run.earlier / f"{card.name}-{card.hash[:8]}"


def warning(run: RunFolder, name: str, made: Collection[str], again: str) -> str:
    """What is to be said before a model is made that will replace another one; empty for nothing.

    made: names of all stages that are made.   again: the command that makes the students anew.
    """
    kept = students(run, name, made) if is_model_folder(run.model(name)) else []
    if not kept:
        return ""
    names = ", ".join(f"`{student}`" for student in kept)
    aside = place_aside(run, read_card(run.model(name)))
    return (
        f"{names}: distilled from the `{name}` that is there, and kept; when the new one is whole, "
        f"the old one goes to `{aside}`, and `{again}` makes anew what follows"
    )


def set_aside(run: RunFolder, name: str) -> Path | None:
    """Keep a model that is about to be replaced, if it has students;
    where it is now too, None for nothing to keep.

    Errors: MachineError; UsageError for what vdiff did not make.
    """
    if not is_model_folder(run.model(name)) or not students(run, name):
        return None
    aside = place_aside(run, read_card(run.model(name)))
    if not is_model_folder(aside):
        whole_folder.keep_as(run.model(name), aside, MODEL)
    return aside


def forget_equal(run: RunFolder, name: str, aside: Path) -> None:
    """Forget what `set_aside` has kept if the new model has the same weights:
    its students have their teacher still.
    """
    if read_card(run.model(name)).hash != read_card(aside).hash:
        return
    whole_folder.remove(aside, MODEL)
    with contextlib.suppress(OSError):  # others lie there
        run.earlier.rmdir()
