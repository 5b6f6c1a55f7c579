"""The machine refuses for a moment: a file does not open, none may be opened, memory runs out."""

import contextlib
import errno
import random
import resource
import threading
from collections.abc import Callable

from .case import Case
from .damage import CPU, DISTILL, TRAIN
from .outcome import Outcome
from .service import Meanwhile, Service
from .world import World

_ERRORS = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENOMEM, errno.ETIMEDOUT)

_WORKS: list[tuple[str, tuple[str, ...], tuple[tuple[str, ...], ...], str]] = [
    ("empty", ("prepare",), (("prepare",),), "prepared"),
    ("empty", ("prepare",), (("prepare",),), "prepared"),
    ("prepared", TRAIN, (TRAIN,), "trained"),
    ("stopped in original", TRAIN, (TRAIN,), "trained"),
    ("trained", DISTILL, (DISTILL,), "complete"),
    ("complete", ("sample", "--checkpoint", "base_1", "-n", "8", *CPU), (DISTILL,), "complete"),
]
"""(The state it begins in, the command, what completes it, the state it must lead to)."""


def strike(world: World, service: Service, outcome: Outcome, keep: bool = False) -> None:
    """Let a call fail, or the memory be short; the same command must then lead to what an
    undisturbed one does.
    """
    rng = random.Random(f"what {outcome.fault.seed} {outcome.fault.number}")
    begins, command, completing, like = rng.choice(_WORKS)
    case = Case(world, service, outcome, begins, keep)
    try:
        if rng.random() < 0.7:
            number, at, times = (
                rng.choice(_ERRORS),
                int(rng.random() ** 3 * 3000),
                rng.choice([1, 1, 3, 1000]),
            )
            case.say(f"{errno.errorcode[number]} at opening {at}, {times} times: {command[0]}")
            ended = case.vdiff(
                *command, codes={0, 6}, fails={"errno": number, "at": at, "times": times}
            )
        else:
            megabytes = rng.choice([1, 4, 16, 64])
            case.say(f"{megabytes} MB of memory left: {command[0]}")
            ended = case.vdiff(
                *command, codes={0, 6}, meanwhile=_short_of_memory(megabytes * 2**20, rng.random())
            )
            # modules whose import failed would stay half there, which no command finds
            service.renew()
        if command[0] == "prepare" and ended.code == 0 and "skipped.tsv" in ended.output:
            case.miss("lost", "good pictures were taken for bad ones")
        parts = ("store",) if begins == "empty" else ("models", "store")
        case.completes(*completing, like=like, parts=parts)
    finally:
        case.close()


def _short_of_memory(num_bytes: int, delay: float) -> Meanwhile:
    """For two seconds, or until the command ends, a process may take only
    so much more than it has.
    """

    def limit(pid: int) -> Callable[[], None]:
        has_ended = threading.Event()

        def work() -> None:
            if has_ended.wait(delay):
                return
            with contextlib.suppress(OSError):
                with open(f"/proc/{pid}/statm") as file:
                    used = int(file.read().split()[0]) * resource.getpagesize()
                resource.prlimit(
                    pid, resource.RLIMIT_AS, (used + num_bytes, resource.RLIM_INFINITY)
                )
                has_ended.wait(2)
                resource.prlimit(
                    pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
                )

        worker = threading.Thread(target=work)
        worker.start()

        def lift() -> None:
            has_ended.set()
            worker.join()

        return lift

    return limit
