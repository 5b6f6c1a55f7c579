"""Threads: where memory lacks for one to begin, that is told instead of waited for."""

import mmap
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import vdiff
from vdiff.data.in_order import in_order
from vdiff.errors import PausedError
from vdiff.runs import savepoint
from vdiff.system import threads


def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int, size: int, **unused: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)


def never(*unused: object) -> None:
    raise AssertionError("a thread was started, and might be waited for without end")


def test_a_thread_begins_where_there_is_room() -> None:
    begun = threading.Event()
    thread = threading.Thread(target=begun.set)
    threads.start(thread)
    thread.join()
    assert begun.is_set()


def test_without_room_none_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    no_room(monkeypatch)
    monkeypatch.setattr(threading.Thread, "start", never)
    with pytest.raises(MemoryError, match="can't start new thread"):
        threads.start(threading.Thread())


def test_preparing_pauses_without_room_for_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(in_order(abs, [-1, -2, -3], num_threads=2)) == [1, 2, 3]
    no_room(monkeypatch)
    monkeypatch.setattr(threading.Thread, "start", never)
    with pytest.raises(PausedError, match="no further thread can be started"):
        list(in_order(abs, [-1, -2, -3], num_threads=2))


def test_a_save_without_room_for_its_thread_is_an_error_and_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"weights": {"a": torch.ones(3)}}
    saver = savepoint.Saver(tmp_path / "saves", {})
    saver.save(1, state, {})
    saver.wait()
    no_room(monkeypatch)
    monkeypatch.setattr(threading.Thread, "start", never)
    with pytest.raises(MemoryError):
        saver.save(2, state, {})
    assert [path.name for path in (tmp_path / "saves").iterdir()] == ["000000001"]
    saver.wait()  # of nothing


def test_no_thread_is_started_otherwise() -> None:
    begins = re.compile(r"[Tt]hread(\(.*\))?\.start\(")
    files = Path(vdiff.__file__).parent.rglob("*.py")
    assert [path.name for path in files if begins.search(path.read_text("utf-8"))] == ["threads.py"]
