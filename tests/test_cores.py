"""Systems that do not tell which cores a process may use, as macOS,
prepare and train all the same.
"""

import os
from pathlib import Path

import pytest

from tests.tiny import TinyRun
from vdiff.data.prepare import prepare
from vdiff.system.cores import num_cores


def test_the_cores_of_this_process_are_counted() -> None:
    assert num_cores() == len(os.sched_getaffinity(0))


def test_a_system_without_these_calls_prepares_and_trains(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sched_getaffinity", "posix_fadvise", "POSIX_FADV_DONTNEED"):
        monkeypatch.delattr(os, name)
    assert num_cores() == os.cpu_count()
    prepare(tmp_path / "pictures", tmp_path / "other", sizes=[8])
    assert tiny_run.base("trackers=[]").updates == 5
