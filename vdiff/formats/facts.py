"""What can be said about a file of somebody else."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vdiff.disk.tensor_facts import TensorFact

MOST_NAMES = 200
"""So many names that loading a file would import or call are repeated among its facts."""


@dataclass(frozen=True)
class ForeignFile:
    """A file or folder in somebody else's format. All of `facts` can be written as JSON."""

    path: Path
    kind: str
    tensors: tuple[TensorFact, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def num_parameters(self) -> int:
        """Numbers in all tensors that look learned; averages and optimizer moments in the file count too."""
        return sum(tensor.num_elements for tensor in self.tensors if tensor.is_learned)


def warning(names: tuple[str, ...]) -> dict[str, Any]:
    """The fact that everybody should see: what loading a file would run; nothing if there is nothing to see."""
    if not names:
        return {}
    more = [f"... and {len(names) - MOST_NAMES} more"] if len(names) > MOST_NAMES else []
    return {"names_that_would_be_executed": [*names[:MOST_NAMES], *more]}
