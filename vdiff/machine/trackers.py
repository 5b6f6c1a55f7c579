"""Trackers: where the curves and pictures of a training go for others to look at; TensorBoard, Weights & Biases."""

import contextlib
import importlib.util
import json
import netrc
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

from torch import Tensor

from vdiff.choices import TrackerKind
from vdiff.disk import whole_folder
from vdiff.disk.ours import beginning, refuse_strange_file
from vdiff.errors import MachineError, Stopped
from vdiff.images.images import on_white

_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}
_MOST_NAMES = 3
"""So many names are tried for a file of TensorBoard."""

_MEMORY = "wandb.json"
"""Remembers the run of Weights & Biases, and how far it was told."""

_SECONDS = 30.0
"""So long Weights & Biases may look for its network; without it, the run is kept on the disk."""


Say = Callable[[str], None]


class Trackers:
    """Those that are open. Steps never go backwards: an update that is done again is not there twice.

    One that fails is closed, which is said once: curves for others to look at are not worth a training.
    """

    def __init__(self, say: Say = lambda text: None) -> None:
        self._say = say
        self._open: dict[str, _Tracker] = {}

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each of these curves."""
        for kind in list(self._open):
            with self._guarding(kind):
                self._open[kind].log(values, step)

    def picture(self, name: str, picture: Tensor, step: int) -> None:
        """Show a picture, uint8 [C, H, W]; transparent parts are white, as not every tracker knows transparency."""
        shown = on_white(picture)
        for kind in list(self._open):
            with self._guarding(kind):
                self._open[kind].picture(name, shown, step)

    def open(self, kind: str, make: "Callable[[], _Tracker]") -> None:
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

    name: of the run, for people.   first_step: from here on steps are new; what an earlier sitting told of them goes.
    say: told of a tracker that fails.
    """
    check(kinds)
    usual: tuple[TrackerKind, ...] = ("tensorboard",) if _is_installed("tensorboard") else ()
    wanted = list(dict.fromkeys(usual if kinds is None else kinds))
    with contextlib.ExitStack() as stack:
        if wanted:
            stack.enter_context(_disk_errors_told_once())
        opens: Mapping[str, Callable[[], _Tracker]] = {
            "tensorboard": lambda: _TensorBoard(folder, first_step),
            "wandb": lambda: _WandB(folder, name),
        }
        trackers = Trackers(say)
        stack.callback(trackers.close)
        for kind in wanted:
            trackers.open(kind, opens[kind])
        yield trackers


def begin_anew(folder: Path) -> None:
    """Stages that were told of are to be made again: Weights & Biases, whose steps never go back, gets a further run.

    TensorBoard needs no word: it drops what earlier sittings told of the same steps.   Errors: MachineError.
    """
    if (folder / _MEMORY).exists():
        whole_folder.write_text(folder / _MEMORY, "{}\n", _is_memory)


def _first_line(err: Exception) -> str:
    return f"{type(err).__name__}: {str(err).strip().partition(chr(10))[0]}"


def _is_installed(kind: str) -> bool:
    assert kind in get_args(TrackerKind)
    return any(importlib.util.find_spec(package) is not None for package in _PACKAGES[kind])


class _Tracker:
    def __init__(self, tracker: Any) -> None:
        self._tracker = tracker
        tracker.start()

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._tracker.log(values, step=step)

    def picture(self, name: str, picture: Tensor, step: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._tracker.finish()


class _TensorBoard(_Tracker):
    def __init__(self, folder: Path, first_step: int) -> None:
        """Begin a file, of which readers learn to drop what earlier files tell of steps from `first_step` on.

        They read files by name, and names begin with the second: two of one second may come in the wrong order.
        """
        from accelerate.tracking import TensorBoardTracker  # here, as in `processes`

        for _ in range(_MOST_NAMES):
            before = _names(folder)
            super().__init__(TensorBoardTracker(folder.name, folder.parent, purge_step=first_step))
            own = _names(folder) - before
            if not before or not own or min(own) > max(before):
                return
            self.close()
            for name in own:
                (folder / name).unlink()
            time.sleep(1 - time.time() % 1)
        super().__init__(
            TensorBoardTracker(folder.name, folder.parent)
        )  # the clock went backwards: both are shown

    def picture(self, name: str, picture: Tensor, step: int) -> None:
        self._tracker.log_images({name: picture[None].numpy()}, step=step)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("events.out.tfevents.*")}


class _WandB(_Tracker):
    """One run of Weights & Biases for all sittings, until a stage is made again.

    Offline where there is no key for it, or no network.
    """

    def __init__(self, folder: Path, name: str) -> None:
        from accelerate.tracking import WandBTracker  # here, as in `processes`

        self._memory = folder / _MEMORY
        refuse_strange_file(self._memory, _is_memory)
        known = whole_folder.read_json(self._memory) if self._memory.is_file() else {}
        self._id = str(known.get("id", uuid.uuid4().hex[:16]))
        self._told = self._last = int(known.get("last_step", -1))
        folder.mkdir(parents=True, exist_ok=True)
        settings = _settings()
        mode = os.environ.get("WANDB_MODE") or (
            "online" if _has_key(settings.base_url) else "offline"
        )
        options = {
            "dir": str(folder),
            "id": self._id,
            "name": name,
            "group": name,
            "resume": "allow",
            "settings": settings,
        }
        try:
            super().__init__(WandBTracker("vdiff", mode=mode, **options))
        except Exception:  # it tells in many ways that there is no network
            if mode == "offline":
                raise
            _forget_attempt()
            super().__init__(WandBTracker("vdiff", mode="offline", **options))

    def log(self, values: Mapping[str, float], step: int) -> None:
        if step > self._told:
            super().log(values, step)
            self._remember(step)

    def picture(self, name: str, picture: Tensor, step: int) -> None:
        if step > self._told:
            self._tracker.log_images({name: picture[None].permute(0, 2, 3, 1).numpy()}, step=step)
            self._remember(step)

    def _remember(self, step: int) -> None:
        if step > self._last:
            self._last = step
            whole_folder.write_text(
                self._memory, json.dumps({"id": self._id, "last_step": step}) + "\n", _is_memory
            )


def _is_memory(path: Path) -> bool:
    return (
        re.fullmatch(rb'\{("id": "\w+", "last_step": \d+)?\}\n?', beginning(path, 300)) is not None
    )


def _forget_attempt() -> None:
    """Weights & Biases would go on trying, and lend the run's id to nobody else."""
    import wandb

    wandb.teardown()


def _settings() -> Any:
    import wandb

    wanted = {
        "silent": True,
        "console": "off",
        "disable_git": True,
        "save_code": False,
        "init_timeout": _SECONDS,
    }
    wanted |= {"finish_timeout": _SECONDS, "finish_timeout_raises": False}
    return wandb.Settings(
        **{name: value for name, value in wanted.items() if name in wandb.Settings.model_fields}
    )


def _has_key(address: str) -> bool:
    """Whether Weights & Biases could log in at this address without asking."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(urlsplit(address).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


@contextlib.contextmanager
def _disk_errors_told_once() -> Iterator[None]:
    """TensorBoard's writing thread raises an OSError again in the main thread: its own traceback is one too many."""
    before = threading.excepthook

    def tell(caught: threading.ExceptHookArgs) -> None:
        if not isinstance(caught.exc_value, OSError):
            before(caught)

    threading.excepthook = tell
    try:
        yield
    finally:
        threading.excepthook = before
