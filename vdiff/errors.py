"""What can go wrong, in words a person can act on; one exit code per kind."""

import signal
from pathlib import Path


class VdiffError(Exception):
    """Something that the user can mend: the problem, the place where it was found
    and what to do about it.

    problem: what was found, one sentence without a full stop; backticks round names and values.
    fix: what to type or change.   where: a file, a file with a line, or an option; empty when the
    problem names it.
    """

    exit_code: int = 1
    problem: str
    fix: str
    where: str

    def __init__(self, problem: str, fix: str, where: str | Path = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.fix = fix
        self.where = str(where)

    def __str__(self) -> str:
        lines = [f"error: {self.problem}"]
        if self.where:
            lines.append(f"where: {self.where}")
        lines.append(f"fix: {self.fix}")
        return "\n".join(lines)


class UsageError(VdiffError):
    """The command line or the recipe asks for something that does not exist
    or does not fit together.
    """

    exit_code = 2


class DataError(VdiffError):
    """Pictures or an image store are missing, damaged or not what the recipe says."""

    exit_code = 3


class ModelFileError(VdiffError):
    """A model file is missing, damaged, unsafe or newer than this vdiff."""

    exit_code = 4


class DivergedError(VdiffError):
    """Training produced losses or gradients that are not finite,
    or a network pictures that are not.
    """

    exit_code = 5


class MachineError(VdiffError):
    """The machine refuses: disk, permission, memory, device, or a package that is not installed."""

    exit_code = 6


class PausedError(MachineError):
    """The machine refuses for now.

    What was done is kept, and the same command goes on from there.
    """


class InUseError(VdiffError):
    """Another process works in the same run folder or store."""

    exit_code = 7


# No VdiffError: stopping when asked is no error, and what handles errors must not catch it.
class Stopped(Exception):  # noqa: N818 - it is news, not an error
    """Somebody asked the run to stop, and everything is saved.

    exit_code: 128 + the number of the signal, as shells have it.
    saved: what was saved, a sentence for users.
    """

    def __init__(self, signal_number: int, saved: str) -> None:
        super().__init__(saved)
        self.exit_code: int = 128 + signal_number
        self.saved = saved


def _asking() -> tuple[int, ...]:
    # Whatever a scheduler, a launcher or a shell may send; the default action of each of them ends
    # a process that has saved nothing.
    names = "HUP INT TERM USR1 USR2 ALRM VTALRM PROF XCPU IO PWR BREAK"
    # Windows and macOS lack some of them.
    numbers = [getattr(signal, f"SIG{name}", None) for name in names.split()]
    # Real-time signals: Linux only. Without them, the range is empty.
    first_real_time = getattr(signal, "SIGRTMIN", 0)
    last_real_time = getattr(signal, "SIGRTMAX", -1)
    return (
        *(int(number) for number in numbers if number is not None),
        *range(first_real_time, last_real_time + 1),
    )


ASKING = _asking()
"""Signals that ask a process to save and leave.
`vdiff.cli.signals` has the others, and what they do.
"""

# Parts of messages: of these libraries, only the text tells lack of memory from other errors.
OUT_OF_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "MPS backend out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What libraries say when the memory for tensors runs out."""
