"""Weights & Biases: one run for a training, online where it can log in without asking."""

import netrc
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torch import Tensor

from vdiff.machine.tracker import PROJECT, ToldTracker

_SECONDS = 30.0
"""So long Weights & Biases may look for its network; without it, the run is kept on the disk."""


class WeightsAndBiases(ToldTracker):
    """One run of Weights & Biases for all sittings, until a stage is made again.

    Offline where there is no key for it, or no network.
    """

    def __init__(self, folder: Path, name: str) -> None:
        # here, because accelerate reads the environment when it is imported
        from accelerate.tracking import WandBTracker

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
            self._start(WandBTracker(PROJECT, mode=mode, **options))
        except Exception:  # it tells in many ways that there is no network
            if mode == "offline":
                raise
            _forget_attempt()
            self._start(WandBTracker(PROJECT, mode="offline", **options))

    def _show(self, name: str, picture: Tensor, step: int) -> None:
        self._tracker.log_images({name: picture[None].permute(0, 2, 3, 1).numpy()}, step=step)


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
