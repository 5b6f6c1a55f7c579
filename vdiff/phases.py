"""The phases of an update, marked so that a profile tells them apart;
nobody waits while none is made.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

PHASES = ("data", "teacher", "forward", "backward", "optimizer", "average", "logging")
"""In the order of an update; `teacher` lies within what the trace calls `forward`."""

gpu_is_measured = False
"""Whether a phase is over only when the GPU has done it:
what it launches is not told apart otherwise.
"""


def phase(name: str) -> Any:
    """Marks a phase of an update; costs next to nothing while nobody measures."""
    assert name in PHASES
    import torch

    record = torch.profiler.record_function(f"vdiff {name}")
    return _waited_for(record) if gpu_is_measured else record


@contextlib.contextmanager
def _waited_for(record: Any) -> Iterator[None]:
    import torch

    with record:
        yield
        torch.cuda.synchronize()
