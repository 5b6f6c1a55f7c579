"""What the processes of a run tell one another, here as threads with one store:
facts, errors, signs of life.
"""

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from vdiff.errors import DataError, DivergedError, MachineError, Stopped, UsageError
from vdiff.machine import line, meeting
from vdiff.machine.differences import differences
from vdiff.machine.line import Line
from vdiff.machine.meeting import Meeting

Role = Callable[[Meeting], Any]


@pytest.fixture(autouse=True)
def hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little patience; and each thread has a host of its own."""
    monkeypatch.setattr(line, "SILENCE_SECONDS", 1.2)
    monkeypatch.setattr(line, "_BEAT_SECONDS", 0.05)
    monkeypatch.setattr(line, "_FAREWELL_SECONDS", 1.0)
    monkeypatch.setattr(meeting, "_FAREWELL_SECONDS", 0.5)
    monkeypatch.setattr(
        meeting.socket, "gethostname", lambda: f"h{threading.current_thread().name}"
    )


def meet(*roles: Role) -> list[Any]:
    """What each process gives, or the error that it ends with; all have left then."""
    store = torch.distributed.HashStore()
    ends: list[Any] = [None] * len(roles)

    def work(rank: int) -> None:
        found = Meeting(Line(store, rank, len(roles)), rank, len(roles))
        try:
            ends[rank] = roles[rank](found)
            found.leave()
        except Exception as err:
            ends[rank] = err
            found.leave(err)

    threads = [
        threading.Thread(target=work, args=(rank,), name=f"{rank}") for rank in range(len(roles))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return ends


def fail(err: Exception) -> Any:
    raise err


def test_all_hear_what_the_first_finds_as_json_holds_it() -> None:
    def role(found: Meeting) -> Any:
        return [
            found.told(lambda: {"rank": found.rank, "pair": (1, None)}),
            found.together(lambda: found.rank),
        ]

    wanted = {"rank": 0, "pair": [1, None]}
    assert meet(role, role, role) == [[wanted, 0], [wanted, 1], [wanted, 2]]


def test_many_meetings_leave_nothing_behind() -> None:
    store = torch.distributed.HashStore()
    sizes = []

    def work(rank: int) -> None:
        found = Meeting(Line(store, rank, 2), rank, 2)
        for _ in range(20):
            found.wait()
            if rank == 0:
                sizes.append(store.num_keys())
        found.leave()

    threads = [threading.Thread(target=work, args=(rank,), name=f"{rank}") for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert max(sizes) <= 8


def test_what_takes_the_first_long_is_waited_for() -> None:
    def role(found: Meeting) -> str:
        found.told(lambda: time.sleep(2 * line.SILENCE_SECONDS))
        return "done"

    assert meet(role, role) == ["done", "done"]


def test_an_error_of_the_first_is_everybodys() -> None:
    first, second = meet(
        *[lambda found: found.told(lambda: fail(DataError("no pictures", "make some", "store")))]
        * 2
    )
    assert (type(first), first.problem, first.where) == (DataError, "no pictures", "store")
    assert (type(second), second.problem, second.fix) == (
        DataError,
        "no pictures (process 0 on `h0`)",
        "make some",
    )


def test_an_error_of_one_is_everybodys() -> None:
    def role(found: Meeting) -> Any:
        return found.together(
            lambda: fail(DataError("no store", "", "")) if found.rank == 1 else found.rank
        )

    found = meet(role, role, role)
    assert [str(each.problem) for each in found] == [
        "no store (process 1 on `h1`)",
        "no store",
        "no store (process 1 on `h1`)",
    ]


@pytest.mark.parametrize(
    ("own", "kind", "told"),
    [
        (
            DivergedError("no longer finite", "lower it", "here"),
            DivergedError,
            "no longer finite (process 1 on `h1`)",
        ),
        (ValueError("a bug"), MachineError, "process 1 on `h1` has ended with an error"),
        (Stopped(signal.SIGUSR1, "all is saved"), Stopped, "all is saved"),
    ],
)
def test_who_waits_for_one_that_fails_elsewhere_hears_why(
    own: Exception, kind: type[Exception], told: str
) -> None:
    first, second = meet(lambda found: found.wait(), lambda found: fail(own))
    assert second is own
    assert type(first) is kind
    assert told in str(first)
    if isinstance(own, Stopped):
        assert first.exit_code == own.exit_code


def test_an_error_that_only_says_that_another_has_gone_becomes_the_reason() -> None:
    def waits(found: Meeting) -> None:
        with found.hearing():
            raise RuntimeError("[gloo/transport/tcp/pair.cc:536] Connection closed by peer")

    first, _ = meet(waits, lambda found: fail(DataError("a record is damaged", "", "")))
    assert (type(first), first.problem) == (DataError, "a record is damaged (process 1 on `h1`)")

    def has_own(found: Meeting) -> None:
        with found.hearing():
            raise ValueError("own")

    first, _ = meet(has_own, lambda found: None)
    assert isinstance(first, ValueError)


def dies(found: Meeting) -> None:
    """As a process that is killed: it says nothing any more."""
    assert found._line is not None
    found._line._questions.put(None)
    found._line._thread.join()
    found._line = None


def test_one_that_gives_no_sign_of_life_is_named() -> None:
    begun = time.monotonic()
    first, _ = meet(lambda found: found.wait(), dies)
    assert isinstance(first, MachineError)
    assert "process 1 on `h1` has given no sign of life" in first.problem
    assert time.monotonic() - begun < 20

    def hears(found: Meeting) -> None:
        with found.hearing():
            raise RuntimeError(
                "[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 300000ms"
            )

    first, _ = meet(hears, dies)
    assert "process 1 on `h1` has ended, or cannot be reached" in first.problem


def test_a_store_that_does_not_answer_is_not_waited_for() -> None:
    """As on a host whose cable was pulled, where torch waits for ever."""
    is_cut = threading.Event()

    class Cut:
        def __init__(self, store: Any) -> None:
            self._store = store

        def __getattr__(self, name: str) -> Any:
            if is_cut.is_set():
                threading.Event().wait(20)
            return getattr(self._store, name)

    found = Meeting(Line(Cut(torch.distributed.HashStore()), 0, 1), 0, 1)
    found.wait()
    is_cut.set()
    begun = time.monotonic()
    with pytest.raises(MachineError, match="meet does not answer"):
        found.wait()
    found.leave()
    assert time.monotonic() - begun < 15


def test_a_line_that_was_lost_is_not_waited_for_a_second_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut = Line(torch.distributed.HashStore(), 0, 1)
    with pytest.raises(MachineError, match="meet is gone"):
        cut.ask(lambda store: fail(RuntimeError("Connection reset by peer")))
    monkeypatch.setattr(line, "_is_set_within", lambda *given: pytest.fail("it waits"))
    with pytest.raises(MachineError, match="meet does not answer"):
        cut.ask(lambda store: pytest.fail("it asks"))
    cut.close()


def test_the_process_of_the_store_goes_when_all_others_have_gone() -> None:
    store = torch.distributed.HashStore()
    last = Line(store, 0, 3, has_store=True)
    for other in (1, 2):
        Line(store, other, 3).close()
    leaving = threading.Thread(target=last.close, args=(1e6,), daemon=True)
    leaving.start()
    leaving.join(30)
    assert not leaving.is_alive()


class Clock:
    """The time, which jumps now and then, as for a process that was suspended."""

    sleep = staticmethod(time.sleep)

    def __init__(self) -> None:
        self.jumps = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.jumps


def test_a_run_that_was_suspended_misses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(meeting, "time", clock)
    monkeypatch.setattr(meeting, "_LOOK_SECONDS", 0.05)
    is_paused = threading.Event()

    class Paused(Line):
        """Its signs of life stop while all are suspended."""

        def _give_a_sign(self) -> None:
            if not is_paused.is_set():
                super()._give_a_sign()

    monkeypatch.setitem(globals(), "Line", Paused)

    def suspends(found: Meeting) -> str:
        time.sleep(0.3)  # the other waits already
        is_paused.set()
        time.sleep(0.2)
        clock.jumps = 3600.0
        time.sleep(0.2)
        is_paused.clear()
        found.wait()
        return "done"

    def waits(found: Meeting) -> str:
        found.wait()
        return "done"

    assert meet(waits, suspends) == ["done", "done"]


def test_processes_that_lost_one_another_or_were_too_slow_say_so() -> None:
    """As where the disk of one of them hung for minutes:
    both are alive, and neither has a reason to give.
    """
    both_are_here = threading.Barrier(2)

    def hears(found: Meeting) -> None:
        both_are_here.wait()
        with found.hearing():
            raise RuntimeError(
                "[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 300000ms\nmore"
            )

    def works(found: Meeting) -> None:
        both_are_here.wait()
        time.sleep(2)

    first, _ = meet(hears, works)
    assert (type(first), first.where) == (
        MachineError,
        "[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 300000ms",
    )


def test_one_that_was_asked_to_stop_does_not_wait_for_the_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(line, "SILENCE_SECONDS", 1000.0)
    monkeypatch.setattr(meeting, "_HURRIED_SECONDS", 0.2)

    def waits(found: Meeting) -> None:
        found._is_asked = lambda: True
        found.wait()

    first, _ = meet(waits, dies)
    assert "has given no sign of life" in first.problem


def test_nobody_is_waited_for_longer_than_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "LONGEST_WAIT", meeting.timedelta(seconds=0.5))
    first, _ = meet(lambda found: found.wait(), lambda found: time.sleep(1.5))
    assert "process 1 on `h1` did not come within" in first.problem


def test_what_differs_is_named_everywhere_with_host_process_and_values() -> None:
    def role(found: Meeting) -> None:
        facts = (
            {"seed": 3, "rate": 0.1 * (1 + found.rank // 2), "own": found.rank}
            if found.rank
            else {"rate": 0.1}
        )
        facts.pop("own" if found.rank != 2 else "seed", None)
        found.agree(facts, UsageError, "they differ", "give all the same")

    found = meet(role, role, role)
    for each in found:
        assert (type(each), each.problem) == (UsageError, "they differ")
        assert (
            each.where
            == "rate: 0.1 on `h0` (process 0) and on `h1` (process 1), 0.2 on `h2` (process 2)"
        )
    assert meet(*[lambda found: found.agree({"x": 1}, UsageError, "", "")] * 2) == [None, None]


def test_differences_are_short() -> None:
    hosts = ["a", "a", "b", "b"]
    assert differences([{"x": 1}] * 4, hosts) == []
    assert differences([{"x": 1}, {}, {}, {"y": 3}], hosts) == []
    found = differences([{"x": 1, "y": None}, {"x": 1}, {"x": 2.5}, {"x": 1, "y": "v" * 50}], hosts)
    assert found == [
        "x: 1 on `a` (processes 0 to 1) and on `b` (process 3), 2.5 on `b` (process 2)",
        f"y: null on `a` (process 0), {'v' * 24}... on `b` (process 3)",
    ]
    assert differences([{"x": 0}, {"x": 1}, {"x": 1}, {"x": 0}], list("aaaa")) == [
        "x: 0 on `a` (processes 0, 3), 1 on `a` (processes 1 to 2)"
    ]
    assert differences([{"x": {"p": 1, "q": 2}}, {"x": {"q": 2, "p": 1}}], hosts) == []
    assert differences([{"x": "v" * 40}, {"x": "w" * 41}], hosts) == [
        f"x: {'v' * 40} on `a` (process 0), {'w' * 24}... on `a` (process 1)"
    ]


def test_a_process_that_is_alone_asks_nobody() -> None:
    alone = Meeting()
    assert alone.told(lambda: (1,)) == (1,)
    assert alone.is_first
    alone.agree({"x": 1}, UsageError, "", "")
    alone.wait()
    with pytest.raises(RuntimeError, match="gloo"), alone.hearing():
        raise RuntimeError("gloo")
    alone.leave()
