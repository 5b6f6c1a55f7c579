"""What the processes of a run tell one another: facts, errors, and that they are still there.

A process that works may take hours while the others wait for it; one that is gone is noticed in a
minute.
"""

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

from vdiff import errors
from vdiff.errors import MachineError, Stopped, VdiffError
from vdiff.machine import line as lines
from vdiff.machine.differences import differences
from vdiff.machine.line import Line

LONGEST_WAIT = timedelta(hours=6)
"""How long they wait for what one of them does alone (reading, measuring, saving) while
it gives signs of life.
"""

_HURRIED_SECONDS = 5.0
"""The silence of another process that ends the waiting of one which was asked to stop."""
_FAREWELL_SECONDS = 2.0
"""How long one whose network broke listens for why."""
_LONGEST_PAUSE = 0.2
_LOOK_SECONDS = 0.5
"""So often one that waits looks whether those that are missing are alive."""

Found = TypeVar("Found")


class Meeting:
    """The processes of a run, as one of them sees them.

    line: to the others; None for a process that is alone.   rank: of this process, of `world_size`.
    is_asked: whether somebody asked this process to stop; it waits no longer then for one that
    seems to be gone.
    """

    def __init__(
        self,
        line: Line | None = None,
        rank: int = 0,
        world_size: int = 1,
        is_asked: Callable[[], bool] = lambda: False,
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self._is_asked = is_asked
        self._meetings = 0
        self._hosts: list[str] = []
        self._line = line
        if line is not None:
            self._hosts = self._answers(socket.gethostname)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that reads, writes and draws."""
        return self.rank == 0

    def told(self, find: Callable[[], Any]) -> Any:
        """What the first process finds, as JSON holds it, in every process;
        its error is everybody's.

        find: is called in the first process alone, and may take hours.
        """
        if self._line is None:
            return find()
        if self.is_first:
            answers = self._answers(find)
        else:
            answers = self._answers(lambda: None)
        return answers[0]

    def everybody(self, find: Callable[[], Any]) -> list[Any]:
        """What `find` gives in each process, as JSON holds it, in their order;
        an error in one is raised in all.
        """
        if self._line is None:
            return [find()]
        return self._answers(find)

    def named(self, rank: int) -> str:
        """A process, as messages call it."""
        # until all have met, nobody knows where the others are
        if rank >= len(self._hosts):
            return f"process {rank}"
        return f"process {rank} on `{self._hosts[rank]}`"

    def together(self, work: Callable[[], Found]) -> Found:
        """What `work` gives in this process; where it fails in one process,
        it fails in all of them.
        """
        if self._line is None:
            return work()
        found: list[Found] = []
        self._answers(lambda: found.append(work()))
        return found[0]

    def wait(self) -> None:
        """Until every process is here."""
        if self._line is not None:
            self._answers(lambda: None)

    def agree(
        self, facts: Mapping[str, Any], kind: type[VdiffError], problem: str, fix: str
    ) -> None:
        """See that all processes say the same; each names only what it knows.

        Errors: one of this `kind`, in every process, that names what differs, where, and both
        values.
        """
        if self._line is None:
            return
        found = differences(self._answers(lambda: dict(facts)), self._hosts)
        if found:
            raise kind(problem, fix, "; ".join(found[:8]))

    @contextlib.contextmanager
    def hearing(self) -> Iterator[None]:
        """Within it, an error which only says that another process is gone
        becomes the one that it had.

        Errors: MachineError that names the process, where that has left no word; or says that one
        was too slow.
        """
        try:
            yield
        except Exception as err:
            if self._line is None or not _is_of_the_network(err):
                raise
            silent = self._line.silent(_FAREWELL_SECONDS)
            if self._line.farewell is not None:
                raise self._farewell(self._line.farewell) from err
            if silent:
                gone = " and ".join(self.named(rank) for rank in silent)
                verb = "has" if len(silent) == 1 else "have"
                problem = f"{gone} {verb} ended, or cannot be reached"
                raise MachineError(
                    problem, f"look at the host and at what was said there, then {_GO_ON}"
                ) from err
            problem = (
                "the processes of this run lost one another, "
                "or one kept the others waiting for too long"
            )
            raise MachineError(
                problem, f"look whether a disk or a network hangs, then {_GO_ON}", _first_line(err)
            ) from err

    def leave(self, err: BaseException | None = None) -> None:
        """Leave the others in good order; with an error, tell them."""
        if self._line is None:
            return
        if err is None:
            self._line.close()
        else:
            self._line.fail(json.dumps(self._words(err)).encode())

    def _answers(self, find: Callable[[], Any]) -> list[Any]:
        """What `find` gives in each process, in their order;
        an error in one of them is raised in all.
        """
        own: VdiffError | None = None
        try:
            answer: dict[str, Any] = {"found": find()}
        except VdiffError as err:
            own = err
            answer = {"error": self._words(err)}
        answers = [json.loads(each) for each in self._exchanged(json.dumps(answer).encode())]
        if own is not None:
            raise own
        failed = next((each["error"] for each in answers if "error" in each), None)
        if failed is not None:
            raise self._error(failed)
        return [each["found"] for each in answers]

    def _exchanged(self, own: bytes) -> list[bytes]:
        """What each process says, in their order; all must come here."""
        assert self._line is not None
        number = self._meetings
        self._meetings += 1
        keys = [f"{number}/{rank}" for rank in range(self.world_size)]
        self._line.set(keys[self.rank], own)
        self._wait_for(keys)
        said = self._line.get(keys)
        if number:  # all are here, so nobody still reads what was said before
            self._line.forget(f"{number - 1}/{self.rank}")
        return said

    def _wait_for(self, keys: Sequence[str]) -> None:
        assert self._line is not None
        begun = time.monotonic()
        next_look = begun + _LOOK_SECONDS
        pause = 0.001
        signs: dict[int, _Sign] = {}
        while not self._line.are_there(keys):
            if self._line.farewell is not None:
                raise self._farewell(self._line.farewell)
            if time.monotonic() > next_look:
                next_look += _LOOK_SECONDS
                missing = [rank for rank, key in enumerate(keys) if not self._line.are_there([key])]
                self._look_after(missing, signs)
                if missing and time.monotonic() - begun > LONGEST_WAIT.total_seconds():
                    late = " and ".join(self.named(rank) for rank in missing)
                    hours = LONGEST_WAIT.total_seconds() / 3600
                    raise MachineError(f"{late} did not come within {hours:g} hours", _GO_ON)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _look_after(self, missing: Sequence[int], signs: dict[int, "_Sign"]) -> None:
        """MachineError for one that is missing and seems to be gone.

        signs: the last ones of each.
        """
        assert self._line is not None
        now = time.monotonic()
        allowed = lines.SILENCE_SECONDS
        if self._is_asked():
            allowed = _HURRIED_SECONDS
        for rank in missing:
            beat = self._line.beats(rank)
            last = signs.get(rank)
            if last is None or last.beat != beat:
                signs[rank] = _Sign(beat, now, 0.0)
                continue
            # a run that was suspended (Ctrl-Z, `scontrol suspend`) heard nothing meanwhile, which
            # means nothing
            silence = last.silence + min(now - last.looked, 2 * _LOOK_SECONDS)
            signs[rank] = _Sign(beat, now, silence)
            if silence > allowed:
                problem = f"{self.named(rank)} has given no sign of life for {silence:.0f} s"
                raise MachineError(
                    problem, f"look at its host and at what was said there, then {_GO_ON}"
                )

    def _words(self, err: BaseException) -> dict[str, Any]:
        place = {"rank": self.rank, "kind": type(err).__name__}
        if isinstance(err, VdiffError):
            return {**place, "words": [err.problem, err.fix, err.where]}
        if isinstance(err, Stopped):
            return {**place, "words": [err.exit_code - 128, err.saved]}
        return {**place, "words": []}

    def _error(self, said: Mapping[str, Any]) -> Exception:
        """The error of another process, as this one tells it."""
        by = self.named(said["rank"])
        words = said["words"]
        if said["kind"] == Stopped.__name__:
            return Stopped(*words)
        kind = getattr(errors, said["kind"], None)
        if not (isinstance(kind, type) and issubclass(kind, VdiffError)):
            return MachineError(f"{by} has ended with an error", "its own message says why")
        problem, fix, where = words
        found: VdiffError = kind(f"{problem} ({by})", fix, where)
        return found

    def _farewell(self, said: bytes) -> Exception:
        return self._error(json.loads(said))


_GO_ON = "run the same command again: it goes on from the last save"


class _Sign(NamedTuple):
    """A sign of life, when it was looked for last, and for how many seconds
    before it was the same.
    """

    beat: bytes
    looked: float
    silence: float


def _first_line(err: Exception) -> str:
    return str(err).strip().partition("\n")[0][:200]


def _is_of_the_network(err: Exception) -> bool:
    names = {kind.__name__ for kind in type(err).__mro__}
    return bool(names & {"DistBackendError", "DistNetworkError", "DistError"}) or "gloo" in str(err)
