"""What an evaluation looks at: each model at its own number of steps, and the base at all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vdiff.checkpoint import ModelCard, read_card
from vdiff.errors import UsageError
from vdiff.metrics.table import Role
from vdiff.run_folder import RunFolder


@dataclass(frozen=True)
class Subject:
    """One model at one number of steps. is_shown: whether it has a row, or is there for comparison only."""

    folder: Path
    card: ModelCard
    num_steps: int
    role: Role
    is_shown: bool = True

    @property
    def key(self) -> tuple[str, int]:
        """What tells its pictures from those of others."""
        return self.card.hash, self.num_steps


def of_run(run: RunFolder) -> list[Subject]:
    """The finished stages, and each number of steps undistilled.   Errors: UsageError when there is none."""
    cards = {name: read_card(run.model(name)) for name in run.models()}
    if not cards:
        raise UsageError(f"`{run.path}` holds no finished model", "run `vdiff train` first", run.path)
    students = [(name, card) for name, card in cards.items() if card.is_distilled]
    found: list[Subject] = []
    for name, card in cards.items():
        if not card.is_distilled:
            found.append(Subject(run.model(name), card, card.num_steps, "original"))
            steps = sorted({student.num_steps for _, student in students} - {card.num_steps}, reverse=True)
            found += [Subject(run.model(name), card, each, "undistilled") for each in steps]
    found += [Subject(run.model(name), card, card.num_steps, "student") for name, card in students]
    _check_shapes(found)
    return found


def of_models(folders: Sequence[Path]) -> list[Subject]:
    """Each model at its own number of steps, and behind them its teacher and original where they lie beside it."""
    shown = [_own(folder, read_card(folder), True) for folder in folders]
    _check_shapes(shown)
    known = {subject.key for subject in shown}
    behind: list[Subject] = []
    for subject in shown:
        beside = {card.hash: (folder, card) for folder, card in _beside(subject.folder)}
        for card in lineage(subject.card, [card for _, card in beside.values()]):
            found = _own(*beside[card.hash], False)
            if found.key not in known:
                known.add(found.key)
                behind.append(found)
    return shown + behind


def lineage(card: ModelCard, cards: Sequence[ModelCard]) -> list[ModelCard]:
    """The own teacher and the original of a model, among `cards`, as far as hashes lead to them."""
    by_hash = {each.hash: each for each in cards}
    way: list[ModelCard] = []
    while card.parent is not None and card.parent["hash"] in by_hash and len(way) <= len(cards):
        card = by_hash[card.parent["hash"]]
        way.append(card)
    return list({each.hash: each for each in (way[:1] + [each for each in way if not each.is_distilled])}.values())


def _own(folder: Path, card: ModelCard, is_shown: bool) -> Subject:
    return Subject(folder, card, card.num_steps, "student" if card.is_distilled else "original", is_shown)


def _beside(folder: Path) -> list[tuple[Path, ModelCard]]:
    run = RunFolder(folder.resolve().parent)
    return [(run.model(name), read_card(run.model(name))) for name in run.models()]


def _check_shapes(subjects: Sequence[Subject]) -> None:
    """UsageError for models whose pictures cannot be compared."""
    for subject in subjects:
        if subject.card.shape != subjects[0].card.shape or subject.card.num_classes != subjects[0].card.num_classes:
            problem = f"`{subject.folder}` and `{subjects[0].folder}` make pictures of different shapes or classes"
            raise UsageError(problem, "evaluate them one by one")
