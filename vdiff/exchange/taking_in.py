"""Models of other programs, and of hubs, where somebody names a model:
each is taken in once, into a run of its own.
"""

import shlex
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vdiff.disk import whole_folder
from vdiff.errors import InUseError, ModelFileError, UsageError, VdiffError
from vdiff.exchange import bring, hub, hub_name, into_run
from vdiff.model_folder import card as model_card
from vdiff.model_folder.card import BASE, MODEL, ModelCard, is_model_folder, read_card
from vdiff.runs.folder import RunFolder

RUNS = Path("runs")


@dataclass(frozen=True)
class Voice:
    """How what happens is told.

    say: what was done.   warn: what should be known.   has_bars: whether progress may be drawn.
    """

    say: Callable[[str], None]
    warn: Callable[[str], None]
    has_bars: bool = False


def of_hub(given: str, voice: Voice) -> Path:
    """The model folder that was made here of `hf://owner/name...`.

    A model folder of vdiff is copied as it is, any other model is imported.
    Errors: those of `hub.fetch` and `of_path`.
    """
    name = hub_name.parse(given)
    here = imported_before(name)
    if here is not None:
        revision = str((read_card(here).origin or {}).get("revision"))
        voice.say(f"`{given}`: `{here}` is of commit {revision[:10]}; `@REVISION` names another")
        return here
    fetched = hub.fetch(name, voice.say, voice.has_bars)
    run = RUNS / name.run
    if is_model_folder(fetched.path):
        return _copied(fetched, run, voice)
    folder = run / BASE
    if is_model_folder(folder):
        facts = {name: fetched.known.get(name) for name in ("hub", "place", "revision")}
        _refuse_other(folder, given, facts)
        return folder
    return _imported(bring.Source(fetched.path, known=fetched.known), given, run, voice)


def imported_before(name: hub_name.HubName) -> Path | None:
    """The model that was imported of this name before, if no other commit is asked for: a chain
    goes on with the teacher that it has, whatever was published since.
    """
    folder = RUNS / name.run / BASE
    if not is_model_folder(folder):
        return None
    origin = read_card(folder).origin or {}
    is_same = origin.get("hub") == name.repository and name.revision in (
        None,
        origin.get("revision"),
    )
    if not is_same or not str(origin.get("place", "")).startswith(name.place):
        return None
    return folder


def of_path(path: Path, voice: Voice) -> Path:
    """The model folder that was made here of a file or folder of another program.

    It becomes `original` in `runs/<its name>`, as with `vdiff import`, unless that is there
    already.
    Errors: as `vdiff import`; UsageError where another model has that place.
    """
    run = RUNS / into_run.run_name(path)
    folder = run / BASE
    if is_model_folder(folder):
        _refuse_other(folder, str(path), {"sha256": bring.digest(path)})
        return folder
    return _imported(bring.Source(path), str(path), run, voice)


def _imported(source: bring.Source, given: str, run: Path, voice: Voice) -> Path:
    try:
        brought = bring.read(source, voice.warn)
    except VdiffError as err:
        # the options that its fix names are those of the import
        command = f"vdiff import {shlex.quote(given)}"
        err.fix = f"import it first, with `{command}`; there {err.fix}"
        raise

    def write() -> None:
        # the command that was waited for may have imported the same
        if is_model_folder(run / BASE):
            _refuse_other(run / BASE, given, {"sha256": brought.sha256})
        else:
            into_run.write(brought, source.path, run, None, voice.warn)

    _with_patience(write, voice)
    told = f"imported `{given}` as `{run / BASE}`, a model of {brought.format}"
    voice.say(f"{told}: {brought.proof.told()}")
    return run / BASE


PATIENCE = 300.0
"""Seconds to wait for another command in the run: as a rule it takes in the same model."""


def _with_patience(work: Callable[[], object], voice: Voice) -> None:
    """Do `work` as soon as nobody else works in the run.

    Errors: InUseError if that takes long.
    """
    deadline = time.monotonic() + PATIENCE
    is_told = False
    while True:
        try:
            work()
        except InUseError as err:
            if time.monotonic() >= deadline:
                raise
            if not is_told:
                voice.say(f"waiting: {err.problem}")
                is_told = True
        else:
            return
        time.sleep(0.2)


def _refuse_other(folder: Path, given: str, facts: Mapping[str, str | None]) -> None:
    """UsageError where the model folder was made of another file or commit.

    facts: what its origin says of the one that is meant.
    """
    origin = read_card(folder).origin or {}
    if any(origin.get(name) != value for name, value in facts.items()):
        problem = f"`{folder}` is another model than `{given}`"
        fix = f"import it elsewhere first: vdiff import {shlex.quote(given)} --out RUN"
        raise UsageError(problem, fix, folder)


# ---- model folders of vdiff that lie on a hub


def _copied(fetched: hub.Fetched, run: Path, voice: Voice) -> Path:
    """A model folder of vdiff, bit for bit, with where it came from on its card."""
    card = read_card(fetched.path)
    folder = run / card.name
    if is_model_folder(folder):
        if read_card(folder).hash != card.hash:
            problem = f"`{folder}` is another model than that of `{fetched.known['hub']}`"
            raise UsageError(problem, "move it away, or work in another folder", folder)
        return folder
    _refuse_own_run(run, fetched.known["hub"])

    def copy() -> None:
        # the command that was waited for may have copied the same
        if is_model_folder(folder) and read_card(folder).hash == card.hash:
            return
        with RunFolder(run).lock(voice.warn):
            _copy(fetched.path, folder, replace(card, origin=_origin(card, fetched)))

    _with_patience(copy, voice)
    voice.say(f"copied `{fetched.known['hub']}` as `{folder}`")
    return folder


def _refuse_own_run(run: Path, hub: str) -> None:
    """UsageError for a run that was begun here: the model would be taken for a stage of it."""
    folder = RunFolder(run)
    origins = [read_card(folder.model(name)).origin or {} for name in folder.models()]
    is_of_hub = any(hub in (each.get("hub"), _before_at(each)) for each in origins)
    if folder.recipe.exists() and not is_of_hub:
        problem = f"`{run}` is a run of its own, and `{hub}` would become a stage of it"
        raise UsageError(problem, "type the command in another folder", run)


def _before_at(origin: Mapping[str, object]) -> str:
    return str(origin.get("by_way_of", "")).partition(" at ")[0]


def _origin(card: ModelCard, fetched: hub.Fetched) -> dict[str, object]:
    if card.origin is not None:
        way = f"{fetched.known['hub']} at {fetched.revision}"
        return card.origin | {"by_way_of": way}
    proof = {"how": "copied", "by": "its SHA-256 sums", "difference": 0.0, "limit": 0.0}
    same: dict[str, object] = {"format": "vdiff", "sha256": card.hash, "licence": None}
    return same | dict(fetched.known) | {"assumed": [], "proof": proof}


def _copy(source: Path, folder: Path, card: ModelCard) -> None:
    """Errors: ModelFileError for a file that is not what the card says, MachineError."""

    def fill(target: Path) -> None:
        for name in (*card.files, "README.md"):
            if not MODEL.paths.fullmatch(name):
                raise _strange(source, f"lists `{name}`, which no model folder has")
            if not (source / name).is_file():
                continue
            (target / name).parent.mkdir(exist_ok=True)
            # the cache has links, and a model folder none
            shutil.copyfile(source / name, target / name)
        wrong = whole_folder.damage(target, {"files": card.files})
        if wrong:
            raise _strange(source, f"is damaged: {'; '.join(wrong[:3])}")

    facts = {name: value for name, value in model_card.content(card).items() if name != "files"}
    whole_folder.write(folder, MODEL, facts, fill, card.num_bytes, ("README.md",))


def _strange(source: Path, problem: str) -> ModelFileError:
    return ModelFileError(f"the fetched model {problem}", "tell whoever published it", source)
