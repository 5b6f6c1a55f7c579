"""Threads: where memory lacks for one to begin, that is told instead of waited for."""

import mmap
import threading
from typing import Any

import pytest

from vdiff import threads
from vdiff.data import conversion
from vdiff.errors import PausedError


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
    assert list(conversion.in_order(abs, [-1, -2, -3], workers=2)) == [1, 2, 3]
    no_room(monkeypatch)
    monkeypatch.setattr(threading.Thread, "start", never)
    with pytest.raises(PausedError, match="no further thread can be started"):
        list(conversion.in_order(abs, [-1, -2, -3], workers=2))
