"""Signals: what each does to vdiff, and how a run hears of them.

    HUP 1, INT 2, USR1 10, USR2 12, ALRM 14,    ask: the update at work is finished, everything is
    TERM 15, XCPU 24, VTALRM 26, PROF 27,       saved, status.json says `stopped`, the exit code is
    IO 29, PWR 30, 34 to 64                     128 + the number; commands without updates leave at
                                                once, what is finished lies on the disk
    QUIT 3 (Ctrl-\\)                             the emergency exit: the end at once
    ILL 4, TRAP 5, ABRT 6, BUS 7, FPE 8,        tell of a fault in the program: the end at once
    SEGV 11, STKFLT 16, SYS 31
    KILL 9                                      cannot be heard: the end at once
    32 and 33                                   belong to the C library: the end at once, or nothing
    PIPE 13, XFSZ 25                            ignored: whoever writes is told that the reader is
                                                gone, or that the file may not grow
    CHLD 17, CONT 18, URG 23, WINCH 28          ignored
    STOP 19, TSTP 20 (Ctrl-Z), TTIN 21,         a pause; CONT (`fg`) goes on
    TTOU 22

After an end at once the disk is whole too, as of the last save: the same command goes on from
there, and the free lock tells `vdiff inspect` that the run was killed, whatever status.json says.
The numbers are those of Linux on PCs. Windows has INT (Ctrl-C) and BREAK 21 (Ctrl-Break), which
ask.

One that was ignored when vdiff began stays ignored (HUP under `nohup`), but for INT, TERM and USR1:
shells start what ends in `&` without ears for INT. One that something else in this process listens
to, such as a profiler, is left to it.

Signals that come shortly after one another count once: launchers send them twice. Shortly means
within 5 seconds where a launcher or a scheduler is at work, else within 0.3, in which nobody types
Ctrl-C twice. One that comes after such a pause ends the process at once. One that comes when the
work is done changes nothing: the exit code stays 0.
"""

import atexit
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from vdiff.cli.acknowledging import Acknowledgement, restore_cursor
from vdiff.errors import ASKING, Stopped
from vdiff.system import threads
from vdiff.system.os_processes import ALWAYS_HEARD, Bell, when_forked

LAUNCHER = "VDIFF_LAUNCHER"
"""The environment variable in which `--gpus` tells its workers its process id."""

GRACE_SECONDS = 25.0
"""How long a process that cannot save may take to leave;
launchers and schedulers kill it after 30.
"""

_STUCK_SECONDS = 5.0
"""How long one that has nothing to lose, and does not even hear, is waited for."""

BURST_SECONDS = 0.3
LAUNCHED_BURST_SECONDS = 5.0

_LAUNCHERS = (
    LAUNCHER,
    "LOCAL_RANK",
    "TORCHELASTIC_RUN_ID",
    "ACCELERATE_DYNAMO_BACKEND",
    "OMPI_COMM_WORLD_SIZE",
    "SLURM_JOB_ID",
    "PBS_JOBID",
    "LSB_JOBID",
)
"""Environment variables that tell of a launcher or a scheduler."""

_PARENT = os.getppid()
"""Who started this process. Asked when it begins:
torch takes seconds to import, and the launcher may die meanwhile.
"""

_is_done = False


def is_launched() -> bool:
    """Whether signals may come from a launcher or a scheduler, which send them twice,
    and kill after 30 seconds.
    """
    return any(name in os.environ for name in _LAUNCHERS)


def work_is_done() -> None:
    """From now on no signal changes how the command ends: finished is finished."""
    global _is_done
    _is_done = True
    for number in _heard():
        signal.signal(number, signal.SIG_IGN)


def be_deaf_at_exit() -> None:
    """Have no signal that comes while Python takes itself down change the exit
    code or leave a traceback.
    """
    atexit.unregister(work_is_done)
    # who registers last is called first
    atexit.register(work_is_done)


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """After it, signals do what they did before:
    for a command that is not the whole of its process.
    """
    global _is_done
    # a notebook or a program that calls vdiff has handlers of its own
    before = {number: signal.getsignal(number) for number in ASKING}
    try:
        yield
    finally:
        _is_done = False
        for number, handler in before.items():
            if handler is not None and handler != signal.getsignal(number):
                signal.signal(number, handler)


@contextlib.contextmanager
def leaving_at_once(undone: str) -> Iterator[None]:
    """Within it, a signal raises Stopped wherever this process is:
    for work whose finished parts lie on the disk.

    undone: what is not done then, in words.
    """

    def leave(number: int) -> None:
        raise Stopped(number, undone)

    ear = Ear(leave)
    ear.nothing_is_lost = True
    try:
        yield
    finally:
        ear.close()


class StopRequest:
    """Call it to learn the number of the signal that came, 0 for none.

    follows_parent: the end of the process that started this one counts as a SIGTERM; one that does
    not leave then, because it waits for others that are gone too, is ended.
    say: is called as soon as a signal comes, in another thread.
    """

    def __init__(self, follows_parent: bool = False, say: Callable[[], None] | None = None) -> None:
        self._orphaned = 0
        self._parent: int | None = None
        if follows_parent:
            # `--gpus` tells its number; it may have died before this process could ask
            self._parent = int(os.environ.get(LAUNCHER, _PARENT))
        self._is_orphan = follows_parent and _torchrun_is_gone()
        self._closed = threading.Event()
        self._voice = None
        if say is not None:
            self._voice = Acknowledgement(say)
        self._ear = Ear(lambda number: None, _leave, self._acknowledge)
        if follows_parent:
            threads.start(threading.Thread(target=self._follow, name="launcher watch", daemon=True))

    def __call__(self) -> int:
        # a process whose parent ends becomes a child of init, or of whoever collects orphans here
        if self._is_orphan or self._parent not in (None, os.getppid()):
            self._orphaned = signal.SIGTERM
        return self._ear.number or self._orphaned

    def leave_if_asked(self, undone: str) -> None:
        """Raise Stopped if a signal has come. undone: what is not done then, in words."""
        if self():
            raise Stopped(self(), undone)

    @contextlib.contextmanager
    def joining(self) -> Iterator[None]:
        """Within it, a process that does not stop when told is ended:
        it waits for others, nothing is begun.
        """
        self._ear.nothing_is_lost = True
        try:
            yield
        finally:
            self._ear.nothing_is_lost = False

    def close(self) -> None:
        """Nobody asks any longer: signals do again what they did before,
        if the work is not done.
        """
        self._closed.set()
        self._ear.close()
        if self._voice is not None:
            self._voice.close()

    def _acknowledge(self) -> None:
        if self._voice is not None:
            self._voice.heard()

    def _follow(self) -> None:
        while not self._is_orphan and os.getppid() == self._parent:
            if self._closed.wait(_POLL_SECONDS):
                return
        if not self._closed.wait(GRACE_SECONDS):
            end_at_once(self())


class Ear:
    """Hears the signals of ASKING, in a thread too:
    Python itself hears none while it waits in a library.

    number: of the first signal that came, else 0.   nothing_is_lost: it may be ended if it does not
    leave.
    first: called with that number by the main thread, as soon as it hears.
    again: called by the other thread for a signal that comes when the first ones are over; by
    default, the end at once.
    heard: called by the other thread at the first signal; it must not wait.
    """

    def __init__(
        self,
        first: Callable[[int], None],
        again: Callable[[int], None] | None = None,
        heard: Callable[[], None] = lambda: None,
    ) -> None:
        self.number = 0
        self.nothing_is_lost = False
        self._first = first
        self._again = again or end_at_once
        self._heard = heard
        self._is_heard = False
        self._closed = threading.Event()
        self._bell = Bell()
        # Python's part in C writes the number of each signal there, at once and whatever the main
        # thread does
        self._fd_before = signal.set_wakeup_fd(self._bell.number, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._hear) for number in _heard()}
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        threads.start(self._thread)

    def close(self) -> None:
        """Signals do again what they did before, if the work is not done."""
        if self._closed.is_set():
            return
        if not _is_done:
            for number, handler in self._before.items():
                # None: somebody in C listened before, which Python cannot put back
                if handler is None:
                    handler = signal.SIG_DFL
                signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        self._closed.set()
        self._bell.ring()
        self._thread.join()
        self._bell.close()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        if not self._is_heard:
            self._is_heard = True
            self._first(self.number)

    def _listen(self) -> None:
        """Take the first signal; then wait until no more come,
        and take the next one as an order to leave at once.
        """
        came = b""
        while not came and not self._closed.is_set():
            came = self._take(None)
        if came:
            self.number = self.number or came[0]
            self._heard()
        begun = time.monotonic()
        is_burst = True
        while not self._closed.is_set():
            if is_burst:
                # first wait, then look: a thread that runs late on a busy machine makes the burst
                # longer, not shorter
                self._closed.wait(_burst_seconds())
                came = self._take(0.0)
            else:
                came = self._take(_POLL_SECONDS)
            if came and not (is_burst or _is_done or self._closed.is_set()):
                self._again(came[0])
            is_burst = is_burst and bool(came)
            if time.monotonic() - begun > self._patience() and not self._closed.is_set():
                end_at_once(self.number)

    def _take(self, seconds: float | None) -> bytes:
        """The numbers that came, within so many seconds or until there is one."""
        return bytes(number for number in self._bell.take(seconds) if number in ASKING)

    def _patience(self) -> float:
        """How many seconds after the first signal this process may still be there."""
        if self._is_heard and not self.nothing_is_lost:
            # it finishes its update and saves, which may take minutes
            return float("inf")
        if self._is_heard:
            return GRACE_SECONDS
        if self.nothing_is_lost:
            return _STUCK_SECONDS
        if is_launched():
            # it waits for others, who may be gone
            return GRACE_SECONDS
        return float("inf")


def _burst_seconds() -> float:
    if is_launched():
        return LAUNCHED_BURST_SECONDS
    return BURST_SECONDS


def end_at_once(number: int) -> None:
    """End this process; what is on the disk is whole at any moment."""
    # not sys.exit: the main thread may wait in a library for ever
    os._exit(128 + number)


def _leave(number: int) -> None:
    """As `end_at_once`, of a run that may have a live display."""
    restore_cursor()
    end_at_once(number)


def again_in_words() -> str:
    """When a further signal is an order to leave at once."""
    # of `--gpus`, the user's Ctrl-C reaches the process that started this one
    if LAUNCHER in os.environ or not is_launched():
        return "again"
    return f"again after {LAUNCHED_BURST_SECONDS:g} seconds"


def _heard() -> list[int]:
    """Those of ASKING that are ours to hear."""
    return [
        number for number in ASKING if number in ALWAYS_HEARD or _is_free(signal.getsignal(number))
    ]


def _is_free(handler: object) -> bool:
    """Whether a signal with this handler does what the system does with it,
    or is heard by an Ear.
    """
    return handler == signal.SIG_DFL or isinstance(getattr(handler, "__self__", None), Ear)


def _forget_in_child() -> None:
    """A forked process must not tell this one of its own signals."""
    signal.set_wakeup_fd(-1)


when_forked(_forget_in_child)


def _torchrun_is_gone() -> bool:
    """Whether the torchrun of this machine has ended, maybe before this process
    could ask who started it.

    torchrun listens where its workers meet, from before they start until its end; on several
    machines, only one of them does.
    """
    # Where torchrun is killed while Python starts, its worker is a child of init from the beginning
    # and never sees its parent change. The place where the workers meet tells.
    variables = os.environ
    if variables.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return False
    if variables.get("GROUP_WORLD_SIZE") != "1":
        return False
    try:
        with socket.create_connection(
            (variables["MASTER_ADDR"], int(variables["MASTER_PORT"])), timeout=5.0
        ) as reached:
            # the system answers for one that is about to end; it never speaks first
            reached.settimeout(0.2)
            return reached.recv(1) == b""
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    except (KeyError, ValueError, OSError):
        return False


_POLL_SECONDS = 0.5
