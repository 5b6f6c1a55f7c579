"""Where the time of an update goes: a few updates under torch's profiler,
as a table and a trace for Perfetto.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity

from vdiff import phases
from vdiff.disk.ours import free_name

WARM_UP = 3
"""Updates that are let pass, from where a stage begins or goes on."""
MEASURED = 5
"""Updates that are measured after that."""


class Profile:
    """Measures updates of one stage.

    path: of the trace; where one is already, the new one gets a number.
    say: told the table, a line at a time.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        # torch's profiler would report a missing GPU as an error
        os.environ.setdefault("KINETO_LOG_LEVEL", "5")
        self._path = path
        self._say = say
        self._updates = 0
        self._has_gpu = torch.cuda.is_available()
        activities = [ProfilerActivity.CPU]
        if self._has_gpu:
            activities.append(ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(activities=activities)

    def after_update(self) -> None:
        """Count an update that is done."""
        self._updates += 1
        if self._updates == WARM_UP:
            phases.gpu_is_measured = self._has_gpu
            self._profiler.start()
        elif self._updates == WARM_UP + MEASURED:
            phases.gpu_is_measured = False
            self._profiler.stop()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path = free_name(self._path)
            self._profiler.export_chrome_trace(str(self._path))
            for line in self._table():
                self._say(line)

    def close(self) -> None:
        """The stage is over or left; too few updates are told."""
        if WARM_UP <= self._updates < WARM_UP + MEASURED:
            phases.gpu_is_measured = False
            self._profiler.stop()
        if self._updates < WARM_UP + MEASURED:
            self._say(
                f"no profile: it needs {WARM_UP + MEASURED} updates, there were {self._updates}"
            )

    def _table(self) -> list[str]:
        # a GPU has marks of the same names, which span something else
        found = {
            each.key: each
            for each in self._profiler.key_averages()
            if each.device_type == DeviceType.CPU
        }
        seconds = {name: self._seconds(found.get(f"vdiff {name}")) for name in phases.PHASES}
        seconds["forward"] -= seconds["teacher"]
        total = sum(seconds.values())
        lines = [
            f"  {name:<10} {value * 1e3 / MEASURED:9.2f} ms {value / max(total, 1e-12):6.1%}"
            for name, value in seconds.items()
        ]
        told = f"an update takes {total * 1e3 / MEASURED:.2f} ms"
        if self._has_gpu:
            told += ", waiting for the GPU after every part"
        return [
            f"{told} (mean of {MEASURED}), of which",
            *lines,
            f"https://ui.perfetto.dev opens `{self._path}`",
        ]

    def _seconds(self, event: Any) -> float:
        if event is None:
            return 0.0
        return float(event.cpu_time_total) / 1e6
