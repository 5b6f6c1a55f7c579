"""A line between the processes of a run: small facts, signs of life,
and the last words of one that failed.

It leads to the store where torch's processes meet. A store does not answer when its host is gone,
and torch then waits for ever, deaf to signals. So a thread talks to it; whoever asks waits for the
thread, as long as it likes.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vdiff.errors import MachineError
from vdiff.system import threads

SILENCE_SECONDS = 60.0
"""Without a sign of life for so long, a process or the store counts as gone."""
_BEAT_SECONDS = 0.5
"""Between two signs of life."""
_PAUSE_SECONDS = 0.02
_PARTS = 20
_FAREWELL_SECONDS = 3.0
"""How long one that fails lingers, so that the others hear why."""
_LEAVING_SECONDS = 10.0
"""How long the one that has the store waits for the others to leave."""

_FAREWELL = "farewell"


@dataclass
class _Question:
    put: Callable[[Any], Any]
    answered: threading.Event = field(default_factory=threading.Event)
    answer: Any = None
    error: Exception | None = None


class Line:
    """One process's line.

    store: a `torch.distributed.Store` of this run alone.   rank: of this process, of `world_size`.
    has_store: whether the store lives in this process; torchrun keeps it in one of its own.
    place: where it is.
    """

    def __init__(
        self, store: Any, rank: int, world_size: int, has_store: bool = False, place: str = ""
    ) -> None:
        self.farewell: bytes | None = None
        """What the first process that failed has told."""
        self._store = store
        self._rank = rank
        self._has_store = has_store
        self._place = place
        self._others = [other for other in range(world_size) if other != rank]
        self._beat = 0
        self._is_dead = False
        self._questions: queue.SimpleQueue[_Question | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._work, name="line to the other processes", daemon=True
        )
        threads.start(self._thread)

    def ask(self, put: Callable[[Any], Any], seconds: float | None = None) -> Any:
        """What `put` gives when it is called with the store.
        Errors: MachineError where the store does not answer.

        seconds: how long to wait, else SILENCE_SECONDS.
        """
        if self._is_dead:
            raise self._lost("does not answer")
        question = _Question(put)
        self._questions.put(question)
        if seconds is None:
            seconds = SILENCE_SECONDS
        if not _is_set_within(question.answered, seconds):
            self._is_dead = True
            raise self._lost("does not answer")
        if question.error is not None:
            self._is_dead = True
            raise self._lost("is gone") from question.error
        return question.answer

    def set(self, key: str, value: bytes) -> None:
        """Tell all processes something."""
        self.ask(lambda store: store.set(key, value))

    def are_there(self, keys: Sequence[str]) -> bool:
        """Whether all of these were told."""
        return bool(self.ask(lambda store: store.check(list(keys))))

    def get(self, keys: Sequence[str]) -> list[bytes]:
        """What was told; all of it must be there."""
        found: list[bytes] = self.ask(lambda store: store.multi_get(list(keys)))
        return found

    def forget(self, key: str) -> None:
        """Nobody needs it any longer."""
        self.ask(lambda store: store.delete_key(key))

    def beats(self, rank: int) -> bytes:
        """A sign of life of another process: it changes as long as that is alive."""
        key = _alive(rank)
        if not self.are_there([key]):
            return b""
        return self.get([key])[0]

    def silent(self, seconds: float) -> list[int]:
        """The others that give no sign of life within so many seconds,
        or until a failed one has told why.
        """
        before = {rank: self.beats(rank) for rank in self._others}
        deadline = time.monotonic() + seconds
        while self.farewell is None and time.monotonic() < deadline:
            time.sleep(_PAUSE_SECONDS)
        return [rank for rank in self._others if self.beats(rank) == before[rank]]

    def fail(self, words: bytes) -> None:
        """Tell why this process fails, unless another one was first,
        and stay until the others have heard it.
        """
        have_heard = False
        with contextlib.suppress(MachineError):  # nobody is there to hear it
            self.ask(lambda store: store.compare_set(_FAREWELL, "", words), _FAREWELL_SECONDS)
            have_heard = self._wait_for(_heard, _FAREWELL_SECONDS)
        if have_heard:
            self.close(_FAREWELL_SECONDS)
        else:
            # nobody answers: no more than a moment for what is under way
            self.close(0.1)

    def close(self, seconds: float = _LEAVING_SECONDS) -> None:
        """Hang up. The process in which the store lives goes last:
        without it the others' torch would complain.

        seconds: how long it waits for them.
        """
        with contextlib.suppress(MachineError):
            if not self._has_store:
                self.ask(lambda store: store.set(_left(self._rank), "1"), seconds)
            else:
                self._wait_for(_left, seconds)
        self._questions.put(None)
        if not self._is_dead:  # else torch may keep the thread for ever
            self._thread.join(seconds)

    def _lost(self, what: str) -> MachineError:
        problem = (
            f"the place where the processes of this run meet {what}: "
            "its host or the network is gone"
        )
        return MachineError(
            problem, "run the same command again: it goes on from the last save", self._place
        )

    def _wait_for(self, key: Callable[[int], str], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        keys = [key(other) for other in self._others]
        while not self.are_there(keys):
            if time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE_SECONDS)
        return True

    def _work(self) -> None:
        next_beat = 0.0
        while True:
            if time.monotonic() >= next_beat:
                self._give_a_sign()
                next_beat = time.monotonic() + _BEAT_SECONDS
            try:
                question = self._questions.get(timeout=max(next_beat - time.monotonic(), 0.001))
            except queue.Empty:
                continue
            if question is None:
                return
            try:
                question.answer = question.put(self._store)
            except Exception as err:
                question.error = err
            question.answered.set()

    def _give_a_sign(self) -> None:
        self._beat += 1
        with contextlib.suppress(Exception):  # whoever asks next hears of it
            self._store.set(_alive(self._rank), str(self._beat))
            if self.farewell is None and self._store.check([_FAREWELL]):
                self.farewell = self._store.get(_FAREWELL)
                self._store.set(_heard(self._rank), "1")


def _is_set_within(event: threading.Event, seconds: float) -> bool:
    """Whether it is, in so many seconds in which this process was not suspended:
    a pause spends one part of them.
    """
    return any(event.wait(seconds / _PARTS) for _ in range(_PARTS))


def _alive(rank: int) -> str:
    return f"alive/{rank}"


def _heard(rank: int) -> str:
    return f"heard/{rank}"


def _left(rank: int) -> str:
    return f"left/{rank}"
