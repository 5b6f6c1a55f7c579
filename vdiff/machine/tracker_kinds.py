"""TensorBoard, and the trackers of accelerate that need nothing but their settings."""

import time
from pathlib import Path
from typing import Any

from torch import Tensor

from vdiff.choices import TrackerKind
from vdiff.images.images import to_picture
from vdiff.machine.tracker import PROJECT, ToldTracker, Tracker

_MOST_NAMES = 3
"""So many names are tried for a file of TensorBoard."""


class TensorBoard(Tracker):
    """A file of TensorBoard for every sitting of a run."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Begin a file, of which readers learn to drop what earlier files tell of steps from
        `first_step` on.

        They read files by name, and names begin with the second: two of one second may come in the
        wrong order.
        """
        # here, because accelerate reads the environment when it is imported
        from accelerate.tracking import TensorBoardTracker

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
        """Show a picture, uint8 [C, H, W]."""
        self._tracker.log_images({name: picture[None].numpy()}, step=step)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("events.out.tfevents.*")}


class OtherTracker(ToldTracker):
    """A tracker of accelerate with its own settings;
    where it has no pictures, it gets the curves alone.

    One run for all sittings where the tracker can go on with one; aim and clearml begin a run of
    the same name.
    """

    def __init__(self, kind: TrackerKind, folder: Path, name: str) -> None:
        # here, because accelerate reads the environment when it is imported
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        super().__init__(kind, folder)
        self._kind = kind
        own_name = f"{name}-{self._id[:4]}"
        options: dict[str, dict[str, Any]] = {
            "aim": {"run_name": name, "logging_dir": str(folder)},
            "clearml": {"project_name": PROJECT, "task_name": name},
            # Its keys have 32 characters at least.
            "comet_ml": {"run_name": PROJECT, "experiment_key": self._id.ljust(32, "0")},
            # Its own defaults are files where vdiff was called, and a commit of git for each run.
            "dvclive": {
                "dir": str(folder / f"dvclive-{self._id[:4]}"),
                "resume": True,
                "save_dvc_exp": False,
                "dvcyaml": None,
            },
            "mlflow": {"experiment_name": PROJECT, "run_name": name},
            "swanlab": {
                "run_name": PROJECT,
                "experiment_name": name,
                "logdir": str(folder / "swanlab"),
                "id": self._id,
                "resume": "allow",
            },
            "trackio": {"run_name": PROJECT, "name": own_name, "resume": "allow"},
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
