"""What an evaluation looks at: each model at its own number of steps,
and the base at all of them, by DDIM and by solvers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vdiff.drawing.guidance import Guidance, way
from vdiff.errors import UsageError
from vdiff.metrics.table import Role
from vdiff.model_folder.card import content, parse
from vdiff.model_folder.checkpoint import ModelCard, read_card
from vdiff.runs.folder import RunFolder

SOLVERS: Mapping[str, Mapping[str, Any]] = {
    "unipc uniform": {"kind": "unipc", "grid": "uniform"},
    "unipc logsnr": {"kind": "unipc", "grid": "logsnr"},
    "ipndm logsnr": {"kind": "ipndm", "grid": "logsnr"},
}
"""What a user would take instead of distilling, each a section of a recipe: all make one network
call a step, and which of them is best depends on the pictures and the number of steps.
"""

MOST_SOLVED = 32
"""Steps that solvers are tried in: in more, nobody is short of calls, and to try them is dear."""

Key = tuple[str, int, str | None]
"""See `Subject.key`."""


@dataclass(frozen=True)
class Subject:
    """One model at one number of steps.

    partners: hashes of those its pictures are compared with.
    is_shown: whether it has a row, or is there for comparison only.
    solver: one of `SOLVERS`, which draws whatever sampler is named; None for the usual way.
    """

    folder: Path
    card: ModelCard
    num_steps: int
    role: Role
    partners: tuple[str, ...] = ()
    is_shown: bool = True
    solver: str | None = None

    def told(self) -> dict[str, str | int | None]:
        """What it is, for a plan."""
        return {
            "model": self.card.name,
            "num_steps": self.num_steps,
            "role": self.role,
            "solver": self.solver,
        }

    @property
    def key(self) -> Key:
        """What tells its pictures from those of others."""
        return self.card.hash, self.num_steps, self.solver

    def facts(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        return {**asdict(self), "folder": str(self.folder), "card": content(self.card)}


def from_facts(facts: Mapping[str, Any]) -> Subject:
    """What `Subject.facts` told."""
    folder = Path(facts["folder"])
    partners = tuple(facts["partners"])
    return Subject(
        **{**facts, "folder": folder, "card": parse(facts["card"], folder), "partners": partners}
    )


def of_run(run: RunFolder, solvers: bool = True) -> list[Subject]:
    """The finished stages, and each number of steps undistilled; by solvers too, where the base is
    a plain denoiser.

    solvers: whether any is wanted.

    Errors: UsageError when there is none.
    """
    cards = {name: read_card(run.model(name)) for name in run.models()}
    if not cards:
        raise UsageError(
            f"`{run.path}` holds no finished model", "run `vdiff train` first", run.path
        )
    students = [(name, card) for name, card in cards.items() if card.is_distilled]
    found: list[Subject] = []
    for name, card in cards.items():
        if not card.is_distilled:
            found.append(Subject(run.model(name), card, card.num_steps, "original"))
            steps = sorted(
                {student.num_steps for _, student in students} - {card.num_steps}, reverse=True
            )
            found += [
                Subject(run.model(name), card, each, "undistilled", (card.hash,)) for each in steps
            ]
            if solvers and card.is_solvable and card.guidance is None:
                found += [
                    Subject(run.model(name), card, each, "solved", (card.hash,), solver=solver)
                    for each in steps
                    if each <= MOST_SOLVED
                    for solver in SOLVERS
                ]
    found += [
        _own(run.model(name), card, lineage(card, list(cards.values()))) for name, card in students
    ]
    _check_shapes(found)
    return found


def of_models(folders: Sequence[Path]) -> list[Subject]:
    """Each model at its own number of steps, and behind them its teacher and original
    where they lie beside it.
    """
    shown: list[Subject] = []
    behind: dict[Key, Subject] = {}
    for folder in folders:
        beside = {card.hash: (place, card) for place, card in _beside(folder)}
        card = read_card(folder)
        partners = lineage(card, [card for _, card in beside.values()])
        shown.append(_own(folder, card, partners))
        others = [_own(*beside[other.hash], is_shown=False) for other in partners]
        behind |= {other.key: other for other in others}
    _check_shapes(shown)
    return shown + [
        other for key, other in behind.items() if key not in {subject.key for subject in shown}
    ]


def guidable(
    subjects: Sequence[Subject], guidance: Guidance
) -> tuple[list[Subject], list[Subject]]:
    """Those that can be guided as it is asked, and the others.

    Errors: UsageError where none of those that are shown can.
    """
    able: list[Subject] = []
    others: list[Subject] = []
    first: UsageError | None = None
    for subject in subjects:
        try:
            way(subject.card, guidance)
        except UsageError as err:
            first = first or err
            others.append(subject)
        else:
            able.append(subject)
    if first is not None and not any(subject.is_shown for subject in able):
        raise first
    known = {subject.card.hash for subject in able}
    return [
        replace(subject, partners=tuple(each for each in subject.partners if each in known))
        for subject in able
    ], others


def lineage(card: ModelCard, cards: Sequence[ModelCard]) -> list[ModelCard]:
    """The own teacher and the original of a model, among `cards`, as far as hashes lead to them."""
    by_hash = {each.hash: each for each in cards}
    way: list[ModelCard] = []
    while card.parent is not None and card.parent["hash"] in by_hash and len(way) <= len(cards):
        card = by_hash[card.parent["hash"]]
        way.append(card)
    partners = way[:1] + [each for each in way if not each.is_distilled]
    # the teacher may be the original: once
    return list({each.hash: each for each in partners}.values())


def _own(
    folder: Path, card: ModelCard, partners: Sequence[ModelCard] = (), is_shown: bool = True
) -> Subject:
    role: Role = "student" if card.is_distilled else "original"
    return Subject(
        folder, card, card.num_steps, role, tuple(partner.hash for partner in partners), is_shown
    )


def _beside(folder: Path) -> list[tuple[Path, ModelCard]]:
    run = RunFolder(folder.resolve().parent)
    return [(run.model(name), read_card(run.model(name))) for name in run.models()]


def _check_shapes(subjects: Sequence[Subject]) -> None:
    """UsageError for models whose pictures cannot be compared."""
    for subject in subjects:
        if (
            subject.card.shape != subjects[0].card.shape
            or subject.card.num_classes != subjects[0].card.num_classes
        ):
            problem = (
                f"`{subject.folder}` and `{subjects[0].folder}` make pictures of "
                "different shapes or classes"
            )
            raise UsageError(problem, "evaluate them one by one")
