"""Processes that torchrun starts again meet anew:
what was said in an earlier life does not count.
"""

import itertools
import threading
import time
from datetime import timedelta
from typing import cast

import pytest
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from vdiff.machine import rendezvous, world


def lives(port: int) -> list[world.World]:
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "faces"}
    return [
        world.from_environment({**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in (0, 1)
    ]


def test_one_that_comes_while_it_is_looked_for_has_not_answered_yet() -> None:
    class Sudden:
        """Not all are there at the first look, and each is at the second."""

        def check(self, keys: list[str]) -> bool:
            return len(keys) == 1

    store = cast(Store, Sudden())
    assert rendezvous._late(store, ["here/0", "here/1"], ["answer/0", "answer/1"], "list") == [1]


@pytest.mark.parametrize("early", [0, 1])
def test_who_is_started_again_waits_for_the_new_others(
    early: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hosts count their restarts by themselves, and torchrun keeps the store."""
    monkeypatch.setattr(rendezvous, "_POLL_SECONDS", 0.01)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "faces")
    kept = TCPStore(
        "127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=30), wait_for_workers=False
    )
    pair = lives(kept.port)
    assert not any(each.listens for each in pair)
    for life in range(3):
        has_met = [threading.Event(), threading.Event()]
        waits = threading.Event()

        def meets(rank: int, has_met: threading.Event, waits: threading.Event) -> None:
            if rendezvous.meet(pair[rank], lambda text: None, waits.set) is not None:
                has_met.set()

        threads = [
            threading.Thread(target=meets, args=(rank, has_met[rank], waits)) for rank in (0, 1)
        ]
        # of the host of the first one: it lost nobody
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
        threads[early].start()
        assert waits.wait(30)
        assert not has_met[early].wait(0.5)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(life))  # of the other host
        threads[1 - early].start()
        for thread, done in zip(threads, has_met, strict=True):
            thread.join(30)
            assert done.is_set()


class Opening:
    """What torch opens, after a while."""

    def __init__(self, *given: object, **more: object) -> None:
        time.sleep(0.3)


def test_what_is_opened_is_waited_for_without_hurry_and_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[threading.Thread] = []
    monkeypatch.setattr(rendezvous, "TCPStore", Opening)
    monkeypatch.setattr(rendezvous, "_MOST_SECONDS", 1e6)
    monkeypatch.setattr(
        rendezvous.threads, "start", lambda thread: (begun.append(thread), thread.start())
    )
    looked = itertools.count()
    found = rendezvous._opened(lives(29_400)[0], lambda: stop_after(20, next(looked)))
    assert isinstance(found, Opening)
    # else a stranger that says nothing would keep the process
    assert [thread.daemon for thread in begun] == [True]


def stop_after(most: int, count: int) -> None:
    assert count < most, "it is looked for without a pause, or for ever"
