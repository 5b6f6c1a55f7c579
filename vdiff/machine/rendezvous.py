"""Where the processes of a run meet before they work:
whoever is missing is named, and nobody waits in silence.
"""

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

import torch
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from vdiff.errors import MachineError
from vdiff.machine.world import World
from vdiff.system import threads
from vdiff.system.plural import count

LIMIT_SECONDS = 600.0
"""How long the others are waited for, as by torchrun."""

TELL_SECONDS = 3.0
"""After this time whoever waits says so, and again each time when it has
waited three times as long.
"""

STARTED_TOGETHER_SECONDS = 20.0
"""The same where all are started together: then it is only the machine that is slow."""

_POLL_SECONDS = 0.2
_TRY_SECONDS = 1.5
_MOST_SECONDS = 10.0
"""After this time, an attempt to reach process 0 ends by itself; one that does not is given up."""

_POLLS_OF_STRANGER = 25
_MOST_NAMED = 8


def meet(world: World, say: Callable[[str], None], check: Callable[[], None]) -> Store | None:
    """Return when all processes of `world` are here. What it returns must be kept as long as they
    work together.

    say: told for whom it waits, and how long.   check: called again and again meanwhile; may raise.
    Errors: MachineError if some have not come within LIMIT_SECONDS.
    """
    if world.size == 1 or torch.distributed.is_initialized():
        return None
    waiting = _Waiting(world, say, check)
    store = _store(world, waiting)
    _gather(world, store, waiting)
    return store


def _gather(world: World, store: Store, waiting: "_Waiting") -> None:
    """Return when all are here, in this life.

    torchrun keeps the store when it starts processes again, and counts the restarts of each host by
    itself. So what was said in an earlier life may still lie there, and nothing common tells the
    lives apart but what they make up: each process leaves a word, the first one lists the words
    that it finds, each answers a list that holds its own, and the first one lets all go.
    """
    # of an answer: it is open, and a busy host is only slow
    store.set_timeout(timedelta(seconds=_MOST_SECONDS))
    word = secrets.token_hex(8)
    common = f"vdiff/{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{world.size}"
    here = [f"{common}/here/{rank}" for rank in range(world.size)]
    answers = [f"{common}/answer/{rank}" for rank in range(world.size)]
    listed = f"{common}/list"
    go = f"{common}/go"
    store.set(here[world.rank], word)

    def absent() -> list[int]:
        return [rank for rank, key in enumerate(here) if not store.check([key])]

    while True:
        if world.rank == 0:  # only it looks for every other one: there may be thousands
            late = _late(store, here, answers, listed)
            if not late:
                store.set(go, word)
                return
            waiting.once_more(lambda: absent() or late)  # noqa: B023 # it is called at once
            continue
        words = _said(store, listed).split()
        if len(words) == world.size and words[world.rank] == word:
            store.set(answers[world.rank], " ".join(words))
            if _said(store, go) == words[0]:
                return
        waiting.once_more(lambda: absent() or [0])


def _late(store: Store, here: Sequence[str], answers: Sequence[str], listed: str) -> list[int]:
    """Who has not answered the list of all words yet;
    for the first process, which writes that list.
    """
    if not store.check(list(here)):
        missing = [rank for rank, key in enumerate(here) if not store.check([key])]
        if missing:
            return missing
        # all have come in this moment: they have not answered yet
        return list(range(1, len(here)))
    words = " ".join(each.decode() for each in store.multi_get(list(here)))
    store.set(listed, words)
    return [rank for rank, key in enumerate(answers) if rank and _said(store, key) != words]


def _said(store: Store, key: str) -> str:
    """What was left there, or nothing."""
    if not store.check([key]):
        return ""
    return bytes(store.get(key)).decode()


class _Waiting:
    """One process that waits for others."""

    def __init__(self, world: World, say: Callable[[str], None], check: Callable[[], None]) -> None:
        self._world = world
        self._say = say
        self.check = check
        self._begun = time.monotonic()
        self._tells_at = TELL_SECONDS
        if world.at_once:
            self._tells_at = STARTED_TOGETHER_SECONDS

    def once_more(self, missing: Callable[[], Sequence[int]], why: str = "") -> None:
        """Wait a little longer.

        missing: the numbers of those that are not here.   Errors: MachineError.
        """
        self.check()
        waited = time.monotonic() - self._begun
        if waited > LIMIT_SECONDS:
            raise self._too_late(missing(), why)
        if waited > self._tells_at:
            self._tells_at = 3 * waited
            self._tell(missing(), why)
        time.sleep(_POLL_SECONDS)

    def _tell(self, missing: Sequence[int], why: str) -> None:
        if not missing:  # it has come in this moment
            return
        some = f"{count(len(missing), 'more process')} ({self._world.told_by})"
        most = f"for at most {LIMIT_SECONDS / 60:.0f} minutes in all"
        alone = f"to work alone, stop this and type `{self._world.alone}` first"
        self._say(f"waiting for {some}: {_named(missing)}{why}; {most}; {alone}")

    def _too_late(self, missing: Sequence[int], why: str) -> MachineError:
        verb = "have" if len(missing) > 1 else "has"
        problem = f"{_named(missing)}{why} {verb} not come within {LIMIT_SECONDS / 60:.0f} minutes"
        fix = f"start all of them; to work alone, type `{self._world.alone}` first"
        return MachineError(problem, fix, self._world.told_by)


def _named(missing: Sequence[int]) -> str:
    """`process 1`, `processes 1, 2, 5 and 12 others`."""
    noun = "process" if len(missing) == 1 else "processes"
    shown = ", ".join(map(str, missing[:_MOST_NAMED]))
    more = len(missing) - _MOST_NAMED
    if more > 0:
        return f"{noun} {shown} and {count(more, 'other')}"
    return f"{noun} {shown}"


def _store(world: World, waiting: _Waiting) -> Store:
    """The common notes of all processes, which process 0 or torchrun holds.

    Errors: MachineError.
    """
    if world.listens:
        store = _opened(world, waiting.check)
        if store is None:
            problem = (
                f"process 0 has to listen at port {world.port} of this machine, "
                "and cannot: it is taken"
            )
            fix = (
                "set MASTER_PORT to another number in all processes; "
                f"to work alone, type `{world.alone}` first"
            )
            raise MachineError(problem, fix, world.told_by)
        return store
    at = f", which has to listen at {world.host}:{world.port}"
    while True:
        reason = _unreachable(world)
        if not reason:
            store = _opened(world, waiting.check)
            if store is not None:
                return store
            reason = "what answers there is another program"
            for _ in range(_POLLS_OF_STRANGER):
                waiting.once_more(lambda: [0], f"{at} ({reason})")
        waiting.once_more(lambda: [0], f"{at} ({reason})")


def _opened(world: World, check: Callable[[], None]) -> Store | None:
    """What torch opens at that place; None if that fails, or has no end."""
    found: list[Store] = []

    def open_it() -> None:
        with contextlib.suppress(RuntimeError):  # torch's own kinds of errors are kinds of that
            store = TCPStore(
                world.host,
                world.port,
                is_master=world.listens,
                timeout=timedelta(seconds=_TRY_SECONDS),
                wait_for_workers=False,
                # so that torch finds it, and makes no second one, when it joins the processes
                multi_tenant=True,
            )
            found.append(store)

    # torch has no limit for a stranger that takes the call and says nothing
    thread = threading.Thread(target=open_it, name="rendezvous", daemon=True)
    ends = time.monotonic() + _MOST_SECONDS
    with _torch_silent():
        threads.start(thread)
        while thread.is_alive() and time.monotonic() < ends:
            thread.join(_POLL_SECONDS)
            check()
    if not found:
        return None
    return found[0]


@contextlib.contextmanager
def _torch_silent() -> Iterator[None]:
    """Within it, nothing reaches stderr: for each failure,
    torch prints fifty lines there from below Python.
    """
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _unreachable(world: World) -> str:
    """Why nothing answers where process 0 has to listen; nothing if something does."""
    try:
        socket.create_connection((world.host, world.port), timeout=_TRY_SECONDS).close()
    except (OSError, UnicodeError) as err:  # UnicodeError for what cannot be the name of a host
        return (getattr(err, "strerror", None) or str(err)).lower()
    return ""
