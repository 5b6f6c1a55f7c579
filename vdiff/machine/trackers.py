"""Trackers: where the curves and pictures of a training go for others to look at.

accelerate has a class for each of them. What is added here: no step is told twice, also after a
stop; files lie in the run; and a tracker that fails ends no training.
"""

import contextlib
import importlib.util
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from torch import Tensor

from vdiff.choices import TrackerKind
from vdiff.disk import whole_folder
from vdiff.errors import MachineError, Stopped
from vdiff.images.images import on_white
from vdiff.machine.tracker import Tracker, is_memory, memory_of
from vdiff.machine.tracker_kinds import OtherTracker, TensorBoard
from vdiff.machine.weights_and_biases import WeightsAndBiases

_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX")}
"""What may be installed for a tracker, where that is not the package of its name."""


Say = Callable[[str], None]


class Trackers:
    """Those that are open. Steps never go backwards: an update that is done again is not there
    twice.

    One that fails is closed, which is said once: curves for others to look at are not worth a
    training.
    """

    def __init__(self, say: Say = lambda text: None) -> None:
        self._say = say
        self._open: dict[str, Tracker] = {}

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each of these curves."""
        for kind in list(self._open):
            with self._guarding(kind):
                self._open[kind].log(values, step)

    def picture(self, name: str, picture: Tensor, step: int) -> None:
        """Show a picture, uint8 [C, H, W]; transparent parts are white,
        as not every tracker knows transparency.
        """
        shown = on_white(picture)
        for kind in list(self._open):
            with self._guarding(kind):
                self._open[kind].picture(name, shown, step)

    def open(self, kind: str, make: Callable[[], Tracker]) -> None:
        """Begin to tell a further one."""
        with self._guarding(kind):
            self._open[kind] = make()

    def close(self) -> None:
        """Nothing more will be told."""
        for kind in list(self._open):
            with self._guarding(kind):
                self._open.pop(kind).close()

    @contextlib.contextmanager
    def _guarding(self, kind: str) -> Iterator[None]:
        try:
            yield
        except Stopped:
            raise
        except Exception as err:  # there is no end to what they raise
            self._say(
                f"the tracker `{kind}` failed and is left out from here on: {_first_line(err)}"
            )
            broken = self._open.pop(kind, None)
            if broken is not None:
                with contextlib.suppress(Exception):
                    broken.close()


def check(kinds: Sequence[TrackerKind] | None) -> None:
    """MachineError for a tracker that is asked for and not installed."""
    for kind in kinds or ():
        if not _is_installed(kind):
            raise MachineError(
                f"the tracker `{kind}` is not installed", f"pip install {kind}", "trackers"
            )


@contextlib.contextmanager
def opened(
    kinds: Sequence[TrackerKind] | None,
    folder: Path,
    name: str,
    first_step: int,
    say: Say = lambda text: None,
) -> Iterator[Trackers]:
    """Trackers that write into `folder`. kinds: None for TensorBoard where that is installed.

    name: of the run, for people.   first_step: from here on steps are new; what an earlier sitting
    told of them goes.
    say: told of a tracker that fails.
    """
    check(kinds)
    wanted: list[TrackerKind] = []
    if kinds is not None:
        # each once
        wanted += dict.fromkeys(kinds)
    elif _is_installed("tensorboard"):
        wanted.append("tensorboard")
    with contextlib.ExitStack() as stack:
        if wanted:
            stack.enter_context(_disk_errors_told_once())
        trackers = Trackers(say)
        stack.callback(trackers.close)
        for kind in wanted:
            trackers.open(kind, partial(_opened, kind, folder, name, first_step))
        yield trackers


def begin_anew(folder: Path) -> None:
    """Stages that were told of are to be made again:
    trackers whose steps never go back get a further run.

    TensorBoard needs no word: it drops what earlier sittings told of the same steps.
    Errors: MachineError.
    """
    for kind in get_args(TrackerKind):
        memory = memory_of(folder, kind)
        if memory.exists():
            whole_folder.write_text(memory, "{}\n", is_memory)


def _opened(kind: TrackerKind, folder: Path, name: str, first_step: int) -> Tracker:
    if kind == "tensorboard":
        return TensorBoard(folder, first_step)
    if kind == "wandb":
        return WeightsAndBiases(folder, name)
    return OtherTracker(kind, folder, name)


def _first_line(err: Exception) -> str:
    return f"{type(err).__name__}: {str(err).strip().partition(chr(10))[0]}"


def _is_installed(kind: str) -> bool:
    assert kind in get_args(TrackerKind)
    packages = _PACKAGES.get(kind, (kind,))
    return any(importlib.util.find_spec(package) is not None for package in packages)


@contextlib.contextmanager
def _disk_errors_told_once() -> Iterator[None]:
    """TensorBoard's writing thread raises an OSError again in the main thread:
    its own traceback is one too many.
    """
    before = threading.excepthook

    def tell(caught: threading.ExceptHookArgs) -> None:
        if not isinstance(caught.exc_value, OSError):
            before(caught)

    threading.excepthook = tell
    try:
        yield
    finally:
        threading.excepthook = before
