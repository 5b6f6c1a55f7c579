"""What a training must remember to go on as if it had never stopped:
its tensors by name, out of a learner and back into one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vdiff.errors import ModelFileError
from vdiff.machine.machine import Machine
from vdiff.networks import sharded
from vdiff.objectives.objective import Objective
from vdiff.training.ema import Average

State = dict[str, dict[str, Tensor]]
"""All that training changes: `weights`, `average`, `optimizer`, `course` and,
where it has a state, `objective`.
"""

_AVERAGES = ("exp_avg", "exp_avg_sq")
"""What Adam keeps of every weight, in the shape of the weight."""


class Course(NamedTuple):
    """What a saved state says besides its tensors; 0 where it says nothing, as older ones do."""

    rollbacks: int
    micro_batch: int


@dataclass(frozen=True)
class TrainingState:
    """The parts of a learner that training changes.

    network: placed, and in shares where the machine has its networks in shares.
    optimizer: AdamW, as `Machine.prepare` gave it back.
    """

    network: nn.Module
    average: Average | None
    optimizer: Any
    scaler: torch.amp.GradScaler
    objective: Objective
    machine: Machine

    def state(self, rollbacks: int, micro_batch: int | None) -> State:
        """Everything needed to go on, not copied."""
        state = {
            "weights": self.network.state_dict(),
            "average": self._average_tensors(),
            "optimizer": self._adam(),
            "course": self._course(rollbacks, micro_batch),
        }
        objective = self.objective.state()
        if objective:
            # left out where it is empty, so that such saves stay as they were
            state["objective"] = objective
        return state

    def load(self, state: Mapping[str, Mapping[str, Tensor]]) -> Course:
        """Copy a saved state into place; what it says besides tensors is returned.

        Errors: ModelFileError for the state of another network; nothing is changed then.
        """
        if not self._fits(state):
            fix = "add --force to begin the stage again"
            raise ModelFileError("the save does not fit the network that the recipe describes", fix)
        spread = self.machine.processes.spread
        for name, tensor in self.network.state_dict().items():
            sharded.scatter_into(tensor, spread(state["weights"][name]))
        for name, tensor in self._average_tensors().items():
            sharded.scatter_into(tensor, spread(state["average"][name]))
        if "objective" in state:
            self.objective.load({name: spread(each) for name, each in state["objective"].items()})
        self._load_adam(state["optimizer"])
        course = state.get("course", {})
        self._load_scaler(course)
        return Course(int(course.get("rollbacks", 0)), int(course.get("micro_batch", 0)))

    def _average_tensors(self) -> dict[str, Tensor]:
        if self.average is None:
            return {}
        return self.average.tensors()

    def _adam(self) -> dict[str, Tensor]:
        """What Adam remembers, as `exp_avg.<parameter>` and so on;
        nothing of a weight that was never moved.
        """
        remembered = self.optimizer.state
        return {
            f"{key}.{name}": remembered[weight][key]
            for name, weight in self.network.named_parameters()
            if weight in remembered
            for key in (*_AVERAGES, "step")
        }

    def _load_adam(self, saved: Mapping[str, Tensor]) -> None:
        spread = self.machine.processes.spread
        for name, weight in self.network.named_parameters():
            if f"step.{name}" not in saved:
                continue
            # the fused step wants its count where the weight is, the others on the host
            place = torch.device("cpu")
            if self.machine.has_fused_step:
                place = weight.device
            remembered = {"step": spread(saved[f"step.{name}"]).to(place, copy=True)}
            for key in _AVERAGES:
                # in the memory format of the weight
                empty = torch.empty_like(weight)
                remembered[key] = sharded.scatter_into(empty, spread(saved[f"{key}.{name}"]))
            self.optimizer.state[weight] = remembered

    def _course(self, rollbacks: int, micro_batch: int | None) -> dict[str, Tensor]:
        course = {
            "rollbacks": torch.tensor(rollbacks),
            # another one rounds differently
            "micro_batch": torch.tensor(micro_batch or 0),
        }
        if self.scaler.is_enabled():
            course["loss_scale"] = torch.tensor(self.scaler.get_scale())
            course["sound_updates"] = torch.tensor(self.scaler.state_dict()["_growth_tracker"])
        return course

    def _load_scaler(self, course: Mapping[str, Tensor]) -> None:
        if not self.scaler.is_enabled() or "loss_scale" not in course:
            return
        kept = {
            "scale": float(course["loss_scale"]),
            "_growth_tracker": int(course["sound_updates"]),
        }
        self.scaler.load_state_dict(self.scaler.state_dict() | kept)

    def _fits(self, state: Mapping[str, Mapping[str, Tensor]]) -> bool:
        """Whether the learner has the names and shapes that `state` gives."""
        weights = _shapes(self.network.state_dict())
        wanted = {f"step.{name}": torch.Size() for name in weights}
        for name, shape in weights.items():
            for key in _AVERAGES:
                wanted[f"{key}.{name}"] = shape
        return (
            _shapes(state["weights"]) == weights
            and _shapes(state["average"]) == _shapes(self._average_tensors())
            # a weight that was never moved has no memory
            and _shapes(state["optimizer"]).items() <= wanted.items()
            and _shapes(state.get("objective", {})) == _shapes(self.objective.state())
        )


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
