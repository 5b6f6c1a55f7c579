"""What can be said about a file of somebody else."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vdiff.disk.tensor_facts import TensorFact

MOST_NAMES = 200
"""How many of the names that loading a file would import or call are shown among its facts."""


@dataclass(frozen=True)
class ForeignFile:
    """A file or folder in somebody else's format. All of `facts` can be written as JSON."""

    path: Path
    kind: str
    tensors: tuple[TensorFact, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def num_parameters(self) -> int:
        """Numbers in all tensors that look learned;
        averages and optimizer moments in the file count too.
        """
        return sum(tensor.num_elements for tensor in self.tensors if tensor.is_learned)


def warning(names: tuple[str, ...]) -> dict[str, Any]:
    """The fact that everybody should see: what loading a file would run.

    Empty if it would run nothing.
    """
    if not names:
        return {}
    shown = list(names[:MOST_NAMES])
    if len(names) > MOST_NAMES:
        shown.append(f"... and {len(names) - MOST_NAMES} more")
    return {"names_that_would_be_executed": shown}
