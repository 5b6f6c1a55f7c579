"""What a chain will cost: time from a few measured updates, disk and memory from the number of weights."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vdiff.diffusion.denoiser import Denoiser
from vdiff.objectives.objective import Objective
from vdiff.plan import Stage
from vdiff.recipe import Recipe
from vdiff.savepoint import NUM_KEPT
from vdiff.training.learner import Learner, RngOf
from vdiff.training.machine import Machine

_MEASURED_IMAGES = 8
_MEASURED_UPDATES = 2
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class StageEstimate:
    """What one stage will cost: seconds of training without saves and previews."""

    stage: Stage
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """What all stages will cost.

    disk_bytes: model folders and the saves of one stage.   memory_bytes: weights, gradients, optimizer, average and
    teacher, without the activations, which grow with the micro-batch.
    """

    stages: list[StageEstimate]
    num_parameters: int
    disk_bytes: int
    memory_bytes: int

    @property
    def seconds(self) -> float:
        """Of all stages together."""
        return sum(each.seconds for each in self.stages)


def estimate(recipe: Recipe, stages: Sequence[Stage], machine: Machine) -> Estimate:
    """Measure a few updates of every sort of stage on random pictures; writes nothing."""
    weights = sum(weight.numel() for weight in _denoiser(recipe).network.parameters()) * _FLOAT_BYTES
    per_image = {sort: _seconds_per_image(recipe, stage, machine) for sort, stage in _sorts(stages).items()}
    found = [
        StageEstimate(stage, per_image[_sort(stage)] * stage.settings.batch_size * stage.settings.updates)
        for stage in stages
    ]
    copies = [4 + (stage.settings.ema is not None) + (stage.index > 0) for stage in stages]
    saved = max(3 + (stage.settings.ema is not None) for stage in stages)
    return Estimate(
        found, weights // _FLOAT_BYTES, weights * (len(stages) + (NUM_KEPT + 1) * saved), weights * max(copies)
    )


def _sort(stage: Stage) -> int:
    """Stages with as many network calls per picture cost the same: 0 for the base, else the teacher's steps."""
    return stage.teacher_steps if stage.index else 0


def _sorts(stages: Sequence[Stage]) -> dict[int, Stage]:
    return {_sort(stage): stage for stage in reversed(stages)}


def _denoiser(recipe: Recipe) -> Denoiser:
    network = recipe.network.build(recipe.data.size, recipe.data.channels)
    return Denoiser(network, recipe.diffusion.schedule.build(), recipe.diffusion.predicts)


def _seconds_per_image(recipe: Recipe, stage: Stage, machine: Machine) -> float:
    count = min(stage.settings.batch_size, _MEASURED_IMAGES)
    learner = Learner(_denoiser(recipe), _objective(recipe, stage, machine), stage.settings, machine)
    x = torch.randn(count, recipe.data.channels, recipe.data.size, recipe.data.size, device=machine.device)
    num_classes = getattr(recipe.network, "num_classes", None)
    label = torch.zeros(count, dtype=torch.int64, device=machine.device) if num_classes else None
    places = torch.arange(count, device=machine.device)
    begun = 0.0
    for update in range(1 + _MEASURED_UPDATES):  # the first one sets up memory and kernels
        if update == 1:
            begun = time.monotonic()
        float(learner.step(x, label, RngOf(0, 0, update, places, count)).sum())  # waits for the device
    machine.release()
    return (time.monotonic() - begun) / _MEASURED_UPDATES / count


def _objective(recipe: Recipe, stage: Stage, machine: Machine) -> Objective:
    section, weighting = stage.settings.objective, stage.settings.weighting  # type: ignore[attr-defined]
    if stage.index == 0:
        objective: Objective = section.build(weighting)
        return objective
    teacher = _denoiser(recipe)
    machine.freeze(teacher.network)
    taught: Objective = section.build(weighting, teacher, stage.num_steps, stage.teacher_steps)
    return taught
