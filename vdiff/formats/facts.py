"""What can be said about a file of somebody else."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vdiff.headers.facts import TensorFact


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
