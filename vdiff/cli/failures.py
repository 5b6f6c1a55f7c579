"""What a user reads when a command fails, and its exit code."""

import difflib
import errno
import re
import shutil
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import typer

from vdiff.cli import console, launch
from vdiff.cli.options import mode
from vdiff.errors import OUT_OF_MEMORY, MachineError, Stopped, UsageError, VdiffError
from vdiff.system.packages import raised_in

INTERRUPTED = 130


def report(err: BaseException, arguments: Sequence[str]) -> int:
    """Show what ended the command `arguments`, and give its exit code."""
    # click turns a closed pipe into SystemExit(1); whoever closed it has read enough
    closed = err.__context__ if isinstance(err, SystemExit) else err
    if isinstance(closed, BrokenPipeError):
        console.close_stdout()
        return 0
    if isinstance(err, SystemExit):
        if isinstance(err.code, int):
            return err.code
        # as Python does: a text, as of sys.exit("..."), is a failure
        return int(err.code is not None)
    if isinstance(err, Stopped | KeyboardInterrupt | typer.Abort):
        exit_code, reason = ending(err)
        console.stopped(reason, exit_code)
        return exit_code
    # a command line that cannot be parsed has not reached `mode`
    mode.json |= "--json" in arguments and not launch.is_echo()
    if mode.debug or "--debug" in arguments:
        console.show_traceback("".join(traceback.format_exception(err)))
    failure = explain(err)
    console.show_error(failure)
    return failure.exit_code


def ending(err: BaseException) -> tuple[int, str]:
    """The exit code that `err` gives, and the reason in one line."""
    if isinstance(err, Stopped):
        return err.exit_code, str(err)
    if isinstance(err, KeyboardInterrupt | typer.Abort):
        return INTERRUPTED, "stopped"
    failure = explain(err)
    return failure.exit_code, f"{failure.problem}; {failure.fix}"


def explain(err: BaseException) -> VdiffError:
    """Any failure as a VdiffError: what was found, where, what to do."""
    if isinstance(err, VdiffError):
        return err
    # click's exceptions, which are typer's own copy in some versions
    if hasattr(err, "format_message"):
        return _usage(err)
    names = {kind.__name__ for kind in type(err).__mro__}
    # by name: torch is not imported only to tell what failed
    if names & {"OutOfMemoryError", "MemoryError"} or any(
        words in str(err) for words in _NO_MEMORY
    ):
        fix = (
            "send fewer pictures at once: `--set train.micro_batch=8` when training, "
            "`--batch-size 8` when sampling"
        )
        return MachineError(f"out of memory: {_first_line(err)}", fix)
    # of a library in C that failed and did not say why
    if isinstance(err, SystemError):
        fix = "see whether memory lacks: close other programs, then run the same command again"
        return MachineError(f"a library failed without a reason: {_first_line(err)}", fix)
    if isinstance(err, OSError) and err.errno in _MACHINE:
        return _machine(err)
    if isinstance(err, OSError) and err.errno in _NAMES and err.filename is not None:
        return UsageError(
            (err.strerror or "the system refuses").lower(), _NAMES[err.errno], str(err.filename)
        )
    # gloo and NCCL tell of a lost neighbour in words of sockets
    if names & {"DistBackendError", "DistNetworkError"} or "gloo/transport" in str(err):
        fix = (
            "its own message says why; of several networks, name the right one: "
            "GLOO_SOCKET_IFNAME=eth0"
        )
        return MachineError(
            "another process of this run has ended, or cannot be reached", fix, _first_line(err)
        )
    maker = raised_in(err)
    if maker is not None:
        fix = (
            "run it again with `--debug` and report what it prints to those who made it, "
            "or do without its kinds"
        )
        return MachineError(
            f"the package `{maker}` failed: {type(err).__name__}: {_first_line(err)}", fix
        )
    fix = "run it again with `--debug` and report what it prints"
    return VdiffError(f"this is a bug in vdiff: {type(err).__name__}: {_first_line(err)}", fix)


_NO_MEMORY = (
    *OUT_OF_MEMORY,
    "Cannot allocate memory",
    "std::bad_alloc",
    "failed to map segment from shared object",
    "can't start new thread",
)
"""How torch, the system, C++, the loader of libraries and Python say that there is none."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` with the nearest of the `known` words, or nothing."""
    # without the hyphens, which make any two options alike
    spelled = {known_word.lstrip("-"): known_word for known_word in known}
    near = difflib.get_close_matches(word.lstrip("-"), spelled, n=1)
    if not near:
        return ""
    return f"; did you mean `{spelled[near[0]]}`?"


_AWAY = (
    errno.ENODEV,
    errno.ENXIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENOTCONN,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
)
"""What disks say that lie on another machine, or were pulled out."""

_MACHINE = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some of your quota, or write to another disk",
    errno.EFBIG: (
        "files of that size are not allowed here: write to another disk, or look at `ulimit -f`"
    ),
    errno.EROFS: "this file system is read-only: write to another place",
    errno.EACCES: "change the permissions, or work in another place",
    errno.EPERM: "change the permissions, or work in another place",
    errno.EMFILE: "allow more open files, as in `ulimit -n 4096`",
    errno.ENFILE: "too many files are open on this machine: close some programs",
    errno.EIO: "the disk does not answer as it should: look at its health, or use another one",
    errno.ENOMEM: "close other programs, or send fewer pictures at once",
    errno.EAGAIN: "no more processes are allowed here: close some programs, or look at `ulimit -u`",
    **dict.fromkeys(
        _AWAY,
        "the disk or the connection to it is gone: mount it again, then run the same command again",
    ),
}
"""What the system refuses, and what to do about it."""

_NAMES = {
    errno.ENAMETOOLONG: "name a shorter path",
    errno.ELOOP: "name another place: this is a link that leads back to itself",
}
"""What the system says of paths that nobody can have meant."""


def _machine(err: OSError) -> MachineError:
    path = str(err.filename or "")
    free = ""
    if err.errno == errno.ENOSPC and path:
        free = f" ({_free_bytes(path):,} bytes free)"
    reason = (err.strerror or "the system refuses").lower()
    return MachineError(f"{reason}{free}", _MACHINE[err.errno or 0], path)


def _free_bytes(path: str) -> int:
    # the file that did not fit was never made, nor maybe its folder
    folder = Path(path).absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _usage(err: Any) -> UsageError:
    context = getattr(err, "ctx", None)
    command = "vdiff"
    known: list[str] = []
    if context is not None:
        command = context.command_path
        known = [name for parameter in context.command.params for name in parameter.opts]
    # click's quotes become the backticks of all other messages, which the console paints
    words = re.sub(r"'([^']*)'", r"`\1`", err.format_message().strip().rstrip("."))
    option = getattr(err, "option_name", None)
    if option and type(err).__name__ == "NoSuchOption":
        words = f"there is no option `{option}`{nearest(option, known)}"
    return UsageError(
        words[:1].lower() + words[1:], f"`{command} --help` shows what it takes", command
    )


def _first_line(err: BaseException) -> str:
    return str(err).strip().partition("\n")[0]
