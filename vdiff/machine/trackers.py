"""Trackers: where the curves and pictures of a training go for others to look at.

accelerate has a class for each of them. What is added here: no step is told twice, also after a
stop; files lie in the run; and a tracker that fails ends no training.
"""

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
from functools import partial
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

from torch import Tensor

from vdiff.choices import TrackerKind
from vdiff.disk import whole_folder
from vdiff.disk.ours import beginning, refuse_strange_file
from vdiff.errors import MachineError, Stopped
from vdiff.images.images import on_white, to_picture

_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX")}
"""What may be installed for a tracker, where that is not the package of its name."""

_PROJECT = "vdiff"
_MOST_NAMES = 3
"""So many names are tried for a file of TensorBoard."""

_SECONDS = 30.0
"""So long Weights & Biases may look for its network; without it, the run is kept on the disk."""


Say = Callable[[str], None]


class Trackers:
    """Those that are open. Steps never go backwards: an update that is done again is not there
    twice.

    One that fails is closed, which is said once: curves for others to look at are not worth a
    training.
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
        """Show a picture, uint8 [C, H, W]; transparent parts are white,
        as not every tracker knows transparency.
        """
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

    name: of the run, for people.   first_step: from here on steps are new; what an earlier sitting
    told of them goes.
    say: told of a tracker that fails.
    """
    check(kinds)
    usual: tuple[TrackerKind, ...] = ("tensorboard",) if _is_installed("tensorboard") else ()
    wanted = list(dict.fromkeys(usual if kinds is None else kinds))
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
        memory = _memory_of(folder, kind)
        if memory.exists():
            whole_folder.write_text(memory, "{}\n", _is_memory)


def _opened(kind: TrackerKind, folder: Path, name: str, first_step: int) -> "_Tracker":
    if kind == "tensorboard":
        return _TensorBoard(folder, first_step)
    if kind == "wandb":
        return _WandB(folder, name)
    return _Plain(kind, folder, name)


def _first_line(err: Exception) -> str:
    return f"{type(err).__name__}: {str(err).strip().partition(chr(10))[0]}"


def _is_installed(kind: str) -> bool:
    assert kind in get_args(TrackerKind)
    packages = _PACKAGES.get(kind, (kind,))
    return any(importlib.util.find_spec(package) is not None for package in packages)


class _Tracker:
    _tracker: Any

    def _start(self, tracker: Any) -> None:
        """Open a tracker of accelerate, which this one is then."""
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
        """Begin a file, of which readers learn to drop what earlier files tell of steps from
        `first_step` on.

        They read files by name, and names begin with the second: two of one second may come in the
        wrong order.
        """
        from accelerate.tracking import TensorBoardTracker  # here, as in `processes`

        for _ in range(_MOST_NAMES):
            before = _names(folder)
            self._start(TensorBoardTracker(folder.name, folder.parent, purge_step=first_step))
            own = _names(folder) - before
            if not before or not own or min(own) > max(before):
                return
            self.close()
            for name in own:
                (folder / name).unlink()
            time.sleep(1 - time.time() % 1)
        # the clock went backwards: both are shown
        self._start(TensorBoardTracker(folder.name, folder.parent))

    def picture(self, name: str, picture: Tensor, step: int) -> None:
        self._tracker.log_images({name: picture[None].numpy()}, step=step)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("events.out.tfevents.*")}


class _Told(_Tracker):
    """A tracker whose steps never go back. A file in the run remembers how far it was told: that is
    not told again.

    id: of its run; another one after `begin_anew`.
    """

    def __init__(self, kind: TrackerKind, folder: Path) -> None:
        """Read what is remembered; a subclass opens the tracker.

        Errors: UsageError, MachineError.
        """
        self._memory = _memory_of(folder, kind)
        refuse_strange_file(self._memory, _is_memory)
        known = whole_folder.read_json(self._memory) if self._memory.is_file() else {}
        self._id = str(known.get("id", uuid.uuid4().hex[:16]))
        self._told = int(known.get("last_step", -1))  # by earlier sittings
        self._last = self._told
        folder.mkdir(parents=True, exist_ok=True)

    def log(self, values: Mapping[str, float], step: int) -> None:
        if step > self._told:
            super().log(values, step)
            self._remember(step)

    def picture(self, name: str, picture: Tensor, step: int) -> None:
        if step > self._told:
            self._show(name, picture, step)
            self._remember(step)

    def _show(self, name: str, picture: Tensor, step: int) -> None:
        raise NotImplementedError

    def _remember(self, step: int) -> None:
        if step > self._last:
            self._last = step
            remembered = json.dumps({"id": self._id, "last_step": step}) + "\n"
            whole_folder.write_text(self._memory, remembered, _is_memory)


class _Plain(_Told):
    """Any other tracker of accelerate, with its own settings;
    where it has no pictures, it gets the curves alone.

    One run for all sittings where the tracker can go on with one; aim and clearml begin a run of
    the same name.
    """

    def __init__(self, kind: TrackerKind, folder: Path, name: str) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS  # here, as in `processes`

        super().__init__(kind, folder)
        self._kind = kind
        own_name = f"{name}-{self._id[:4]}"
        options: dict[str, dict[str, Any]] = {
            "aim": {"run_name": name, "logging_dir": str(folder)},
            "clearml": {"project_name": _PROJECT, "task_name": name},
            # Its keys have 32 characters at least.
            "comet_ml": {"run_name": _PROJECT, "experiment_key": self._id.ljust(32, "0")},
            # Its own defaults are files where vdiff was called, and a commit of git for each run.
            "dvclive": {
                "dir": str(folder / f"dvclive-{self._id[:4]}"),
                "resume": True,
                "save_dvc_exp": False,
                "dvcyaml": None,
            },
            "mlflow": {"experiment_name": _PROJECT, "run_name": name},
            "swanlab": {
                "run_name": _PROJECT,
                "experiment_name": name,
                "logdir": str(folder / "swanlab"),
                "id": self._id,
                "resume": "allow",
            },
            "trackio": {"run_name": _PROJECT, "name": own_name, "resume": "allow"},
        }
        if kind == "mlflow" and self._told >= 0:
            options["mlflow"]["run_id"] = self._id
        self._start(LOGGER_TYPE_TO_CLASS[kind](**options[kind]))
        if kind == "mlflow":
            self._id = str(self._tracker.tracker.info.run_id)  # it takes none that it has not given

    def _show(self, name: str, picture: Tensor, step: int) -> None:
        shown = to_picture(picture.numpy())
        if self._kind == "aim":
            self._tracker.log_images({name: shown}, step=step)
        elif self._kind in ("clearml", "swanlab"):
            self._tracker.log_images({name: [shown]}, step=step)


class _WandB(_Told):
    """One run of Weights & Biases for all sittings, until a stage is made again.

    Offline where there is no key for it, or no network.
    """

    def __init__(self, folder: Path, name: str) -> None:
        from accelerate.tracking import WandBTracker  # here, as in `processes`

        super().__init__("wandb", folder)
        settings = _settings()
        mode = os.environ.get("WANDB_MODE")
        if not mode:
            mode = "online" if _has_key(settings.base_url) else "offline"
        options = {
            "dir": str(folder),
            "id": self._id,
            "name": name,
            "group": name,
            "resume": "allow",
            "settings": settings,
        }
        try:
            self._start(WandBTracker(_PROJECT, mode=mode, **options))
        except Exception:  # it tells in many ways that there is no network
            if mode == "offline":
                raise
            _forget_attempt()
            self._start(WandBTracker(_PROJECT, mode="offline", **options))

    def _show(self, name: str, picture: Tensor, step: int) -> None:
        self._tracker.log_images({name: picture[None].permute(0, 2, 3, 1).numpy()}, step=step)


def _memory_of(folder: Path, kind: str) -> Path:
    """The file that remembers the run of a tracker, and how far it was told."""
    return folder / f"{kind}.json"


def _is_memory(path: Path) -> bool:
    content = rb'\{("id": "\w+", "last_step": \d+)?\}\n?'
    return re.fullmatch(content, beginning(path, 300)) is not None


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
        "finish_timeout": _SECONDS,
        "finish_timeout_raises": False,
    }
    known = wandb.Settings.model_fields  # not the same in all versions
    return wandb.Settings(**{name: value for name, value in wanted.items() if name in known})


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
