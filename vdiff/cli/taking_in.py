"""Models of other programs, and of hubs, where a command takes a model:
each is taken in once, into a run of its own.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vdiff.errors import UsageError

if TYPE_CHECKING:
    from vdiff.exchange.taking_in import Voice
    from vdiff.machine.processes import Processes


def taken_in(given: str | None, may_write: bool = True) -> str | None:
    """What an option names, or the model folder that was made of it if it is a file or folder of
    another program, or a model on a hub.

    It becomes `original` in `runs/<its name>`, as with `vdiff import`, unless that is there
    already.
    Errors: as `vdiff import`; UsageError where another model has that place, and where nothing may
    be written and it is not there.
    """
    if given is None:
        return None
    if not may_write:
        return _there_already(given)
    if given.startswith("hf://"):
        from vdiff.exchange import taking_in

        return str(taking_in.of_hub(given, voice()))
    if not _may_be_foreign(Path(given)):
        return given
    from vdiff.exchange import taking_in

    return str(taking_in.of_path(Path(given), voice()))


def _there_already(given: str) -> str:
    from vdiff.exchange import hub_name, into_run, taking_in
    from vdiff.model_folder.card import BASE, is_model_folder

    if hub_name.is_on_hub(given):
        here = taking_in.imported_before(hub_name.parse(given))
        if here is not None:
            return str(here)
        problem = f"`{given}` is not here yet, and `--dry-run` fetches nothing"
        raise UsageError(problem, "leave out `--dry-run` once", given)
    if not _may_be_foreign(Path(given)):
        return given
    if not is_model_folder(taking_in.RUNS / into_run.run_name(Path(given)) / BASE):
        problem = f"`{given}` is not imported yet, and `--dry-run` writes nothing"
        raise UsageError(problem, f"import it first: vdiff import {shlex.quote(given)}", given)
    # it is looked at whether it is the same, and nothing else is done
    return taken_in(given) or given


def taken_in_by_first(others: "Processes", given: str) -> str:
    """The same where several processes work together: the first one takes it in,
    the others wait and are told the name.

    Errors: as `taken_in`, in all of them.
    """
    return str(others.told(lambda: taken_in(given)))


def all_taken_in(
    others: "Processes | None", places: Sequence[str], may_write: bool = True
) -> list[str]:
    """The same for several; `others` is None where this process is alone."""
    if others is None:
        return [taken_in(place, may_write) or place for place in places]
    return [taken_in_by_first(others, place) for place in places]


def fetched(given: str) -> Path:
    """Where a model of a hub lies on this machine, to be looked at: what was imported of it here,
    else the files as the hub has them. Nothing is imported.
    """
    from vdiff.exchange import hub, hub_name, taking_in

    name = hub_name.parse(given)
    here = taking_in.imported_before(name)
    if here is not None:
        return here
    told = voice()
    return hub.fetch(name, told.say, told.has_bars).path


def voice() -> "Voice":
    """How the user is told of it."""
    from vdiff.cli import console
    from vdiff.cli.options import mode
    from vdiff.exchange.taking_in import Voice

    has_bars = console.is_terminal() and not (mode.quiet or mode.json)
    return Voice(console.say, console.warn, has_bars)


def _may_be_foreign(path: Path) -> bool:
    """Whether there is something that vdiff did not make and a format may know;
    a run's own names come first.
    """
    if not path.exists():
        return False
    if path.is_file():
        return True
    from vdiff.model_folder.card import MODEL

    # one that lost its manifest is vdiff's too: as a folder of diffusers it would know all times
    if MODEL.is_proven(path):
        return False
    return any((path / name).is_file() for name in _SIGNS)


_SIGNS = ("model_index.json", "config.json", "unet/config.json", "transformer/config.json")
"""Of folders of other programs."""
