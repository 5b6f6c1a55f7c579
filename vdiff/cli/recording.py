"""The status.json of a command that trains: how it ended, and the command that goes on."""

import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vdiff.runs.folder import RunFolder
    from vdiff.training.progress import Progress


@contextlib.contextmanager
def recorded(progress: "Progress", folder: "RunFolder", machine: str) -> Iterator["Progress"]:
    """`progress`, with a status.json that tells how the command ended.   machine: in words."""
    from vdiff.cli import failures
    from vdiff.runs.status import StatusWriter

    recorder = StatusWriter(progress, folder.status, resume_command(sys.argv[1:]), machine)
    try:
        yield recorder
    except BaseException as err:
        exit_code, reason = failures.ending(err)
        # 128 and the number of the signal: somebody asked for it, nothing went wrong
        if exit_code > 128:
            recorder.ended("stopped", exit_code, reason)
        else:
            recorder.ended("failed", exit_code, reason)
        raise
    recorder.ended("done", 0)


def resume_command(arguments: Sequence[str]) -> str:
    """The command that goes on where this one was:
    the same again, but for what would begin anew.
    """
    return shlex.join(["vdiff", *(word for word in arguments if word != "--force")])
